"""The long convolution: one causal kernel per channel, as long as you like.

y[t] = sum_i kernel[i] x[t - i]
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polewise.ops._backends import usable_backend
from polewise.ops._checks import checked_lengths, require_axes, require_like
from polewise.ops.cached import Cached
from polewise.ops.padding import append, hide_padding, newest
from polewise.ops.precision import accumulator_dtype, without_autocast


def long_conv(
    x: Float[Tensor, "batch length dim"],
    kernel: Float[Tensor, "taps dim"],
    *,
    lengths: Int[Tensor, " batch"] | None = None,
    state: Float[Tensor, "batch history dim"] | None = None,
    spectrum: KernelSpectrum | None = None,
    backend: Literal["reference", "torch"] | None = None,
) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch history dim"]]:
    r"""Convolve every channel with a kernel of its own, causally.

    $$ y_t = \sum_{i=0}^{K-1} h_i\, x_{t-i} $$

    Args:
        x: the sequence.
        kernel: $h$, `taps` = $K$ at least 1. Of `x`'s dtype, or float32 beside float16 and
            bfloat16.
        lengths: real steps in each row; later ones neither enter the state nor give output.
        state: the last $K - 1$ inputs, oldest first; None is silence.
        spectrum: where the kernel's spectrum is kept from call to call; None computes it anew.
        backend: "reference" sums tap by tap in float64; "torch" uses the real FFT in float32
            or wider (float16 sums overflow). What wraps around falls on outputs of the
            segment before, which are dropped.

    Returns:
        y: like `x`, in its dtype.
        state: the last $K - 1$ inputs of each row, in `x`'s dtype.

    In a stream, a segment of $B$ steps costs three transforms (two with a kept spectrum) of
    about $K + B$ points, $O((1 + K / B) \log (K + B))$ for each of its steps; a single step is the
    sum itself, $K$ products and a copy of the state, $O(K)$.

    An FFT mixes all times to rounding error: `y[t]` depends on later inputs by at most about
    1e-7 (float32) or 1e-16 (float64) of the largest entry, and a NaN anywhere reaches every
    output of its channel.

    Raises:
        ValueError: a shape or device is not as written above, or `backend` is unknown.
        TypeError: a dtype is not as written above.

    Source:
        Fu et al. 2023 (arXiv 2302.06646) for the use; overlap by state is textbook.
    """
    require_axes("x", x)
    batch, length, dim = x.shape
    require_axes("kernel", kernel, "(taps, dim)")
    taps = kernel.shape[0]
    if taps < 1:
        raise ValueError("kernel must have at least 1 tap; got 0.")
    require_like("kernel", kernel, (taps, dim), x, "(taps, dim)")
    history = taps - 1
    lengths = checked_lengths(lengths, x)
    if state is None:
        state = x.new_zeros(batch, history, dim)
    require_like("state", state, (batch, history, dim), x, "(batch, taps - 1, dim)")
    run = _BACKENDS[usable_backend(backend, _BACKENDS, x)]

    x_real = hide_padding(x, lengths)
    past = append(state, x_real)
    if length == 1 and backend is None:
        run = _one_step  # as in decoding: a transform would cost more
    y = run(past, kernel, length, spectrum) if x.numel() else x_real.clone()
    return hide_padding(y, lengths), newest(state, x_real, lengths)


class KernelSpectrum:
    """Keeps the spectrum of one kernel from call to call, for one length at a time, where no
    gradient of the kernel is wanted (`Cached`).

    To compare the kernel takes a tenth of the transform's time. Costs the memory of the kernel and
    of its spectrum, about as much as `length + taps` more taps.
    """

    def __init__(self) -> None:
        self._cached = Cached()

    def of(self, kernel: Float[Tensor, "taps dim"], size: int) -> Tensor:
        """The real FFT of `kernel`, zero-padded to `size`, in float32 or wider."""
        return self._cached(lambda: _spectrum(kernel, size), [kernel], size)


def _spectrum(kernel: Tensor, size: int) -> Tensor:
    return torch.fft.rfft(kernel.to(accumulator_dtype(kernel)), size, dim=0)


def good_fft_length(at_least: int) -> int:
    """The smallest length of the form 2^a 3^b 5^c that is not smaller than `at_least`."""
    best = 1 << max(at_least - 1, 0).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            size = three
            while size < at_least:
                size *= 2
            best = min(best, size)
            three *= 3
        five *= 5
    return best


def _definition(
    past: Tensor, kernel: Tensor, length: int, spectrum: KernelSpectrum | None
) -> Tensor:
    """The sum, tap by tap, in float64."""
    history = kernel.shape[0] - 1
    y = past.new_zeros(past.shape[0], length, past.shape[2], dtype=torch.float64)
    for tap, weight in enumerate(kernel.double()):
        y = y + weight * past[:, history - tap : history - tap + length].double()
    return y.to(past.dtype)


def _one_step(past: Tensor, kernel: Tensor, length: int, spectrum: KernelSpectrum | None) -> Tensor:
    """The sum itself, for the last step of `past`."""
    dtype = accumulator_dtype(past)
    return (past.to(dtype) * kernel.flip(0).to(dtype)).sum(1, keepdim=True).to(past.dtype)


def _by_fft(past: Tensor, kernel: Tensor, length: int, spectrum: KernelSpectrum | None) -> Tensor:
    """Multiply spectra. With as many points as `past` has steps, what wraps around falls on the
    first taps - 1 outputs, which belong to the segment before."""
    dtype = accumulator_dtype(past)
    size = good_fft_length(past.shape[1])
    with without_autocast(past.device):
        response = _spectrum(kernel, size) if spectrum is None else spectrum.of(kernel, size)
        y = torch.fft.irfft(torch.fft.rfft(past.to(dtype), size, dim=1) * response, size, dim=1)
    return y[:, kernel.shape[0] - 1 :][:, :length].to(past.dtype)


_BACKENDS = {"reference": _definition, "torch": _by_fft}
