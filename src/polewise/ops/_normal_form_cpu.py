"""The normal-form filter as compiled loops, gradient included.

Forward keeps the state at every 128th step (1.6 % of the input); backward restarts from
there, 128 steps at a time from the last to the first, and never inverts a pole.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polewise.ops._compiled import array, compiled, require_covered, run_units
from polewise.ops.normal_form import SEGMENT


def forward(
    x: Tensor,
    pole: Tensor,
    mix: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    state: Tensor,
    bin_length: int,
    reset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, dim = x.shape
    require_covered(offsets, lengths, bin_length, pole.shape[1])
    y = torch.empty(x.shape, dtype=x.dtype)
    last = torch.empty(state.shape, dtype=state.dtype)
    starts = torch.empty(batch, -(-length // SEGMENT), dim, 2, dtype=x.dtype)
    run_units(
        _forward, *x.shape,
        array(x), array(pole), array(mix), offsets.numpy(), lengths.numpy(), array(state),
        y.numpy(), last.numpy(), starts.numpy(), SEGMENT, bin_length, reset,
    )  # fmt: skip
    return y, last, starts


def backward(
    grad_y: Tensor,
    grad_last: Tensor,
    x: Tensor,
    pole: Tensor,
    mix: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    starts: Tensor,
    bin_length: int,
    reset: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x = torch.empty(x.shape, dtype=x.dtype)
    grad_pole = torch.zeros(pole.shape, dtype=pole.dtype)
    grad_mix = torch.zeros(mix.shape, dtype=mix.dtype)
    grad_state = torch.empty(grad_last.shape, dtype=grad_last.dtype)
    run_units(
        _backward, *x.shape,
        array(grad_y), array(grad_last), array(x), array(pole), array(mix), offsets.numpy(),
        lengths.numpy(), array(starts), grad_x.numpy(), grad_pole.numpy(), grad_mix.numpy(),
        grad_state.numpy(), SEGMENT, bin_length, reset,
    )  # fmt: skip
    return grad_x, grad_pole, grad_mix, grad_state


@compiled
def _forward(
    x, pole, mix, offsets, lengths, state, y, last, starts, segment_length, bin_length, reset,
    block, first, stop,
):  # fmt: skip
    dim = x.shape[2]
    blocks = -(-dim // block)
    scratch = np.empty((6, block), x.dtype)
    for unit in range(first, stop):
        row, low = unit // blocks, unit % blocks * block
        high = min(low + block, dim)
        width = high - low
        # Slices of the block's own width: their loops vectorise.
        real, imag, pole_real = scratch[0, :width], scratch[1, :width], scratch[2, :width]
        pole_imag, mix_real, mix_imag = scratch[3, :width], scratch[4, :width], scratch[5, :width]
        real[:], imag[:] = state[row, low:high, 0], state[row, low:high, 1]
        end, time, bin_index = lengths[row], 0, 0
        while time < end:
            begin = bin_index * bin_length - offsets[row]
            bin_end = min(end, begin + bin_length)
            pole_real[:] = pole[row, bin_index, low:high, 0]
            pole_imag[:] = pole[row, bin_index, low:high, 1]
            mix_real[:] = mix[row, bin_index, low:high, 0]
            mix_imag[:] = mix[row, bin_index, low:high, 1]
            if reset and begin >= 0:
                real[:], imag[:] = 0, 0
            for t in range(time, bin_end):
                if t % segment_length == 0:
                    starts[row, t // segment_length, low:high, 0] = real
                    starts[row, t // segment_length, low:high, 1] = imag
                x_t, y_t = x[row, t, low:high], y[row, t, low:high]
                for c in range(width):
                    before = real[c]
                    after = pole_real[c] * before - pole_imag[c] * imag[c] + x_t[c]
                    imag[c] = pole_imag[c] * before + pole_real[c] * imag[c]
                    real[c] = after
                    y_t[c] = mix_real[c] * after + mix_imag[c] * imag[c]
            time = max(time, bin_end)
            bin_index += 1
        y[row, end:, low:high] = 0
        last[row, low:high, 0], last[row, low:high, 1] = real, imag


@compiled
def _backward(
    grad_y, grad_last, x, pole, mix, offsets, lengths, starts, grad_x, grad_pole, grad_mix,
    grad_state, segment_length, bin_length, reset, block, first, stop,
):  # fmt: skip
    """Recompute a segment's states forwards, then run their gradient (g, h) backwards."""
    dim = x.shape[2]
    blocks = -(-dim // block)
    reals = np.empty((segment_length + 1, block), x.dtype)
    imags = np.empty((segment_length + 1, block), x.dtype)
    scratch = np.empty((10, block), x.dtype)
    for unit in range(first, stop):
        row, low = unit // blocks, unit % blocks * block
        high = min(low + block, dim)
        width = high - low
        g, h = scratch[0, :width], scratch[1, :width]
        pole_real, pole_imag = scratch[2, :width], scratch[3, :width]
        mix_real, mix_imag = scratch[4, :width], scratch[5, :width]
        gain_pole_real, gain_pole_imag = scratch[6, :width], scratch[7, :width]
        gain_mix_real, gain_mix_imag = scratch[8, :width], scratch[9, :width]
        end, offset = lengths[row], offsets[row]
        g[:], h[:] = grad_last[row, low:high, 0], grad_last[row, low:high, 1]
        grad_x[row, end:, low:high] = 0
        for segment in range(-(-end // segment_length) - 1, -1, -1):
            start, close = segment * segment_length, min(end, (segment + 1) * segment_length)
            reals[0, :width] = starts[row, segment, low:high, 0]
            imags[0, :width] = starts[row, segment, low:high, 1]
            time = start
            while time < close:  # states before every step of the segment
                bin_index = (offset + time) // bin_length
                begin = bin_index * bin_length - offset
                pole_real[:] = pole[row, bin_index, low:high, 0]
                pole_imag[:] = pole[row, bin_index, low:high, 1]
                if reset and begin == time:
                    reals[time - start, :], imags[time - start, :] = 0, 0
                bin_end = min(close, begin + bin_length)
                for t in range(time, bin_end):
                    i = t - start
                    x_t, real, imag = x[row, t, low:high], reals[i, :width], imags[i, :width]
                    next_real, next_imag = reals[i + 1, :width], imags[i + 1, :width]
                    for c in range(width):
                        next_real[c] = pole_real[c] * real[c] - pole_imag[c] * imag[c] + x_t[c]
                        next_imag[c] = pole_imag[c] * real[c] + pole_real[c] * imag[c]
                time = bin_end
            time = close
            while time > start:
                bin_index = (offset + time - 1) // bin_length
                begin = bin_index * bin_length - offset
                run_start = max(start, begin)
                pole_real[:] = pole[row, bin_index, low:high, 0]
                pole_imag[:] = pole[row, bin_index, low:high, 1]
                mix_real[:] = mix[row, bin_index, low:high, 0]
                mix_imag[:] = mix[row, bin_index, low:high, 1]
                scratch[6:, :] = 0
                for t in range(time - 1, run_start - 1, -1):
                    x_t, grad = x[row, t, low:high], grad_y[row, t, low:high]
                    real, imag = reals[t - start, :width], imags[t - start, :width]
                    grad_x_t = grad_x[row, t, low:high]
                    for c in range(width):
                        # The state after the step, computed again: a reset may have
                        # cleared its place.
                        after_real = pole_real[c] * real[c] - pole_imag[c] * imag[c] + x_t[c]
                        after_imag = pole_imag[c] * real[c] + pole_real[c] * imag[c]
                        gain_mix_real[c] += grad[c] * after_real
                        gain_mix_imag[c] += grad[c] * after_imag
                        grad_real = g[c] + grad[c] * mix_real[c]
                        grad_imag = h[c] + grad[c] * mix_imag[c]
                        grad_x_t[c] = grad_real
                        gain_pole_real[c] += grad_real * real[c] + grad_imag * imag[c]
                        gain_pole_imag[c] += grad_imag * real[c] - grad_real * imag[c]
                        g[c] = pole_real[c] * grad_real + pole_imag[c] * grad_imag
                        h[c] = pole_real[c] * grad_imag - pole_imag[c] * grad_real
                grad_pole[row, bin_index, low:high, 0] += gain_pole_real
                grad_pole[row, bin_index, low:high, 1] += gain_pole_imag
                grad_mix[row, bin_index, low:high, 0] += gain_mix_real
                grad_mix[row, bin_index, low:high, 1] += gain_mix_imag
                if reset and begin == run_start:
                    g[:], h[:] = 0, 0
                time = run_start
        grad_state[row, low:high, 0], grad_state[row, low:high, 1] = g, h
