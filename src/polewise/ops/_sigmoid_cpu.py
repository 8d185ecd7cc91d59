"""The logistic function of a row of float32 numbers, several lanes at once.

The compiler has no exponential for several lanes, so here is one: e^-|z| = 2^n e^f with a whole
number n and |f| <= ln(2) / 2, e^f by a polynomial of degree 7, 2^n by writing n where a float32 has
its exponent. The relative error is at most 2e-7, three units in the last place, for every z above
-87; below, the result is that at -87, which is 1.6e-38. NaN stays NaN.
"""

from __future__ import annotations

import numpy as np

from polewise.ops._compiled import compiled, vectorised

_F = np.float32
_LOG2_E = _F(1.44269504)
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)


@compiled
def scratch(width):
    """Room for `sigmoid` of rows of that width: three rows, the last two being the same memory."""
    power = np.empty(width, np.float32)
    return np.empty(width, np.float32), power, power.view(np.int32)


@vectorised
def split_exponential(z, mantissa, exponent):
    """e^-|z| as a number near 1 and the bits of a power of two."""
    for c in range(len(z)):
        x = max(-abs(z[c]), _F(-87))
        n = np.floor(x * _LOG2_E + _F(0.5))
        f = (x - n * _LN2_HIGH) - n * _LN2_LOW
        # Coefficients of Cephes' expf (S. Moshier).
        p = _F(1.9875691500e-4)
        p = p * f + _F(1.3981999507e-3)
        p = p * f + _F(8.3334519073e-3)
        p = p * f + _F(4.1665795894e-2)
        p = p * f + _F(1.6666665459e-1)
        p = p * f + _F(5.0000001201e-1)
        mantissa[c] = p * f * f + f + _F(1)
        exponent[c] = (np.int32(n) + np.int32(127)) << np.int32(23)


@vectorised
def join_sigmoid(z, mantissa, power, out):
    for c in range(len(z)):
        e = mantissa[c] * power[c]
        large = _F(1) / (_F(1) + e)
        out[c] = large if z[c] >= 0 else e * large


@compiled
def sigmoid(z, mantissa, power, exponent, out):
    """1 / (1 + e^-z), into `out`; the three rows in between are `scratch`'s."""
    split_exponential(z, mantissa, exponent)
    join_sigmoid(z, mantissa, power, out)
