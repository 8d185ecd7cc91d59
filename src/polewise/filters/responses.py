"""What a section does to a frequency, and to an impulse."""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from polewise.filters._checks import (
    mix_or_real_part,
    require_floating,
    require_last_axis,
    require_section,
)
from polewise.ops.precision import accumulator_dtype


def section_frequency_response(
    b: Float[Tensor, "*shape 3"],
    a: Float[Tensor, "*shape 2"],
    frequency: Float[Tensor, " frequencies"],
) -> Complex[Tensor, "*shape frequencies"]:
    r"""The response of a general section to a stationary oscillation.

    $$ H(f) = \frac{b_0 + b_1 z^{-1} + b_2 z^{-2}}{1 + a_1 z^{-1} + a_2 z^{-2}},
       \qquad z = e^{j 2 \pi f} $$

    The response of a cascade is the product over its sections. An unstable section has a
    formula but no response; nothing checks that.

    Args:
        b, a: numerator and denominator.
        frequency: in cycles per sample.

    Returns:
        complex64, or complex128 when `a` is float64; computed in double precision.

    Raises:
        ValueError: a shape is not as written above.
        TypeError: an argument is not a floating-point tensor, or `b` and `a` differ in dtype.

    Source: Oppenheim & Schafer, Discrete-Time Signal Processing.
    """
    require_section(b, a)
    _require_frequency(frequency)
    omega = 2 * math.pi * frequency.double()
    b0, b1, b2 = b.double()[..., None].unbind(-2)
    a1, a2 = a.double()[..., None].unbind(-2)
    # Both polynomials times z: real and imaginary part come apart without cancellation.
    cosine, sine = torch.cos(omega), torch.sin(omega)
    numerator = torch.complex(b1 + (b0 + b2) * cosine, (b0 - b2) * sine)
    denominator = torch.complex(a1 + (1 + a2) * cosine, (1 - a2) * sine)
    return (numerator / denominator).to(accumulator_dtype(a).to_complex())


def direct_form_frequency_response(
    a: Float[Tensor, "*shape 2"], frequency: Float[Tensor, " frequencies"]
) -> Complex[Tensor, "*shape frequencies"]:
    r"""The response of the all-pole section, $H(f) = 1 / (1 + a_1 z^{-1} + a_2 z^{-2})$.

    Arguments, result and errors as `section_frequency_response`.

    Source: Lutati, Zimerman, Wolf 2023 (arXiv 2305.14952), Eq. 4.
    """
    require_last_axis("a", a, 2)
    return section_frequency_response(_all_pole_numerator(a), a, frequency)


def normal_form_frequency_response(
    decay: Float[Tensor, "*shape"],
    angle: Float[Tensor, "*shape"],
    frequency: Float[Tensor, " frequencies"],
    *,
    mix: Float[Tensor, "*mix_shape 2"] | None = None,
) -> Complex[Tensor, "*shape frequencies"]:
    r"""The response of a normal form.

    $$ H(f) = \frac12 \left( \frac{c_0 - j c_1}{1 - \rho e^{j(\varphi - \omega)}}
                           + \frac{c_0 + j c_1}{1 - \rho e^{-j(\varphi + \omega)}} \right),
       \qquad \omega = 2 \pi f $$

    Args:
        decay, angle: pole radius, and angle in radians per sample.
        frequency: in cycles per sample.
        mix: $(c_0, c_1)$, of any shape that broadcasts to `(*shape, 2)`; None is the real part.

    Returns:
        complex64, or complex128 when `decay` is float64; computed in double precision.

    Raises:
        ValueError: a shape is not as written above.
        TypeError: dtypes differ, or an argument is not a floating-point tensor.

    Source: ours.
    """
    mix = mix_or_real_part(decay, angle, mix)
    _require_frequency(frequency)
    omega = 2 * math.pi * frequency.double()
    rho, phi = decay.double()[..., None], angle.double()[..., None]
    gain = torch.complex(*mix.double()[..., None].unbind(-2))

    def one_pole(difference: Tensor) -> Tensor:
        return 1 - rho * torch.polar(torch.ones_like(difference), difference)

    response = gain.conj() / one_pole(phi - omega) + gain / one_pole(-phi - omega)
    return (response / 2).to(accumulator_dtype(decay).to_complex())


def section_impulse_response(
    b: Float[Tensor, "*shape 3"], a: Float[Tensor, "*shape 2"], length: int
) -> Float[Tensor, "*shape length"]:
    r"""What a general section answers to $x = (1, 0, 0, \dots)$ from rest.

    $$ h_n = b_0 g_n + b_1 g_{n-1} + b_2 g_{n-2}, \qquad
       g_n = [n = 0] - a_1 g_{n-1} - a_2 g_{n-2} $$

    Args:
        b, a: numerator and denominator.
        length: samples; 0 gives an empty response. One step of a loop each.

    Returns:
        float32, or float64 when `a` is float64; computed in double precision.

    Raises:
        ValueError: a shape is not as written above, or `length` is negative.
        TypeError: an argument is not a floating-point tensor, or `b` and `a` differ in dtype.
    """
    require_section(b, a)
    _require_length(length)
    b0, b1, b2 = b.double()[..., None].unbind(-2)
    g = torch.nn.functional.pad(_all_pole_impulse(a.double(), length), (2, 0))
    response = b0 * g[..., 2:] + b1 * g[..., 1:-1] + b2 * g[..., :-2]
    return response.to(accumulator_dtype(a))


def direct_form_impulse_response(
    a: Float[Tensor, "*shape 2"], length: int
) -> Float[Tensor, "*shape length"]:
    r"""The all-pole section's: $h_n = [n = 0] - a_1 h_{n-1} - a_2 h_{n-2}$.

    Arguments, result and errors as `section_impulse_response`.
    """
    require_last_axis("a", a, 2)
    _require_length(length)
    return _all_pole_impulse(a.double(), length).to(accumulator_dtype(a))


def normal_form_impulse_response(
    decay: Float[Tensor, "*shape"],
    angle: Float[Tensor, "*shape"],
    length: int,
    *,
    mix: Float[Tensor, "*mix_shape 2"] | None = None,
) -> Float[Tensor, "*shape length"]:
    r"""The normal form's: $h_n = \rho^n (c_0 \cos n\varphi + c_1 \sin n\varphi)$.

    Args:
        decay, angle: pole radius, and angle in radians per sample.
        length: samples; 0 gives an empty response.
        mix: $(c_0, c_1)$, of any shape that broadcasts to `(*shape, 2)`; None is the real part.

    Returns:
        float32, or float64 when `decay` is float64; computed in double precision.

    Raises:
        ValueError: a shape is not as written above, or `length` is negative.
        TypeError: dtypes differ, or an argument is not a floating-point tensor.

    Source: ours.
    """
    mix = mix_or_real_part(decay, angle, mix)
    _require_length(length)
    n = torch.arange(length, dtype=torch.float64, device=decay.device)
    phase = angle.double()[..., None] * n
    c0, c1 = mix.double()[..., None].unbind(-2)
    response = decay.double()[..., None] ** n * (c0 * torch.cos(phase) + c1 * torch.sin(phase))
    return response.to(accumulator_dtype(decay))


def _all_pole_numerator(a: Tensor) -> Tensor:
    return torch.tensor([1.0, 0.0, 0.0], dtype=a.dtype, device=a.device).expand(*a.shape[:-1], 3)


def _all_pole_impulse(a: Tensor, length: int) -> Tensor:
    a1, a2 = a.unbind(-1)
    h1, h2 = torch.zeros_like(a1), torch.zeros_like(a1)
    response = []
    for n in range(length):
        h1, h2 = float(n == 0) - a1 * h1 - a2 * h2, h1
        response.append(h1)
    return torch.stack(response, -1) if response else a.new_empty(*a1.shape, 0)


def _require_frequency(frequency: Tensor) -> None:
    require_floating("frequency", frequency)
    if frequency.ndim != 1:
        raise ValueError(f"frequency must have one axis; got {tuple(frequency.shape)}.")


def _require_length(length: int) -> None:
    if isinstance(length, bool) or not isinstance(length, int):
        raise TypeError(f"length must be an int; got {type(length).__name__}.")
    if length < 0:
        raise ValueError(f"length must be at least 0; got {length}.")
