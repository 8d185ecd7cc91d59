"""The published filter, taken literally: a product of spectra inside every bin.

    Y = X(f) conj(H(f)),   H = 1 / (1 + theta0 z^-1 + theta1 z^-2)

Kept for replication. **It sees the future**: the transform is circular in its bin, and the
conjugate turns the response around in time, y[t] = sum_n h[n] x[(t + n) mod R].
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from polewise.ops._bins import require_coefficients
from polewise.ops._checks import require_axes, require_positive
from polewise.ops.precision import accumulator_dtype, without_autocast


def circular_filter(
    x: Float[Tensor, "batch length dim"],
    a: Float[Tensor, "batch bins dim 2"],
    bin_length: int,
    *,
    fft_length: int | None = None,
    conjugate: bool = True,
) -> Float[Tensor, "batch length dim"]:
    r"""Filter every bin on its own by sampling the response in frequency.

    $$ y = \mathcal{F}^{-1}\!\left[ \mathcal{F}[x] \, \overline{H} \right], \qquad
       H(z) = \frac{1}{1 + a_1 z^{-1} + a_2 z^{-2}} $$

    There is no state: nothing but the coefficients crosses a bin's edge.

    Args:
        x: the sequence; a last bin that is not full is padded with zeros.
        a: $(a_1, a_2)$ of each bin, `bins = ceil(length / bin_length)`.
        bin_length: $R$.
        fft_length: points of the transform, at least R. None is R, fully circular; a longer
            one leaks less, but always a little, for sampling an endless response in
            frequency folds its tail.
        conjugate: multiply by the conjugate, as published; False leaves the circular leak
            only.

    Raises:
        ValueError: a shape or device is not as written above, or `fft_length` is too short.
        TypeError: a dtype is not as written above.

    Source:
        Lutati, Zimerman, Wolf 2023 (arXiv 2305.14952), Eq. 4-8.
    """
    require_axes("x", x)
    length = x.shape[1]
    require_coefficients(a, x, bin_length, 0)
    if fft_length is not None:
        require_positive("fft_length", fft_length, "points")
    points = bin_length if fft_length is None else fft_length
    if points < bin_length:
        raise ValueError(
            f"fft_length must be at least bin_length; got {points} for bins of {bin_length}."
        )
    if not x.numel():
        return x.clone()
    dtype = accumulator_dtype(x)
    bins = functional.pad(x, (0, 0, 0, -length % bin_length)).unflatten(1, (-1, bin_length))
    with without_autocast(x.device):
        turn = torch.arange(points // 2 + 1, device=x.device, dtype=dtype)
        delay = torch.polar(torch.ones_like(turn), turn * (-2 * torch.pi / points))
        a1, a2 = a.to(dtype)[:, :, None].unbind(-1)
        response = 1 / (1 + a1 * delay[:, None] + a2 * delay[:, None] ** 2)
        if conjugate:
            response = response.conj()
        spectrum = torch.fft.rfft(bins.to(dtype), points, dim=2)
        y = torch.fft.irfft(spectrum * response, points, dim=2)[:, :, :bin_length]
    return y.flatten(1, 2)[:, :length].to(x.dtype)
