"""The direct-form filter as compiled loops: one read of `x`, one write of `y`.

In the layout (batch, length, dim) the recursion is a loop over time whose body is a
vector over channels, so a block of channels keeps its state and coefficients in the
first cache level while the sequence streams through.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polewise.ops._compiled import array, compiled, fresh, require_covered, run_units


def forward(
    x: Tensor,
    a: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    state: Tensor,
    bin_length: int,
    reset: bool,
) -> tuple[Tensor, Tensor]:
    require_covered(offsets, lengths, bin_length, a.shape[1])
    y = fresh(x)
    last = torch.empty(state.shape, dtype=state.dtype)
    run_units(
        _forward, *x.shape,
        array(x), array(a), offsets.numpy(), lengths.numpy(), array(state),
        y.numpy(), last.numpy(), bin_length, reset,
    )  # fmt: skip
    return y, last


def backward(
    grad_y: Tensor,
    grad_last: Tensor,
    y: Tensor,
    a: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    state: Tensor,
    bin_length: int,
    reset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = fresh(y)
    grad_a = torch.zeros(a.shape, dtype=a.dtype)
    grad_state = torch.empty(state.shape, dtype=state.dtype)
    run_units(
        _backward, *y.shape,
        array(grad_y), array(grad_last), array(y), array(a), offsets.numpy(), lengths.numpy(),
        array(state), grad_x.numpy(), grad_a.numpy(), grad_state.numpy(), bin_length, reset,
    )  # fmt: skip
    return grad_x, grad_a, grad_state


@compiled
def _forward(
    x, a, offsets, lengths, state, y, last, bin_length, reset, block, first, stop
):  # fmt: skip
    dim = x.shape[2]
    blocks = -(-dim // block)
    y1s, y2s = np.empty(block, x.dtype), np.empty(block, x.dtype)
    a1s, a2s = np.empty(block, x.dtype), np.empty(block, x.dtype)
    for unit in range(first, stop):
        row, low = unit // blocks, unit % blocks * block
        high = min(low + block, dim)
        # Slices of the block's own width: their loops vectorise.
        y1, y2, a1, a2 = y1s[: high - low], y2s[: high - low], a1s[: high - low], a2s[: high - low]
        y1[:], y2[:] = state[row, low:high, 0], state[row, low:high, 1]
        end, time, bin_index = lengths[row], 0, 0
        while time < end:
            begin = bin_index * bin_length - offsets[row]
            bin_end = min(end, begin + bin_length)
            a1[:], a2[:] = a[row, bin_index, low:high, 0], a[row, bin_index, low:high, 1]
            if reset and begin >= 0:
                y1[:], y2[:] = 0, 0
            for t in range(time, bin_end):
                x_t, y_t = x[row, t, low:high], y[row, t, low:high]
                for c in range(high - low):
                    value = x_t[c] - a1[c] * y1[c] - a2[c] * y2[c]
                    y2[c] = y1[c]
                    y1[c] = value
                    y_t[c] = value
            time = max(time, bin_end)
            bin_index += 1
        y[row, end:, low:high] = 0
        last[row, low:high, 0], last[row, low:high, 1] = y1, y2


@compiled
def _backward(
    grad_y, grad_last, y, a, offsets, lengths, state, grad_x, grad_a, grad_state,
    bin_length, reset, block, first, stop,
):  # fmt: skip
    """The recursion run backwards on the gradients g1, g2 of the state (y[t], y[t-1])."""
    dim = y.shape[2]
    blocks = -(-dim // block)
    scratch = np.empty((6, block), y.dtype)
    rest = np.zeros(block, y.dtype)
    states = np.empty((2, block), y.dtype)
    for unit in range(first, stop):
        row, low = unit // blocks, unit % blocks * block
        high = min(low + block, dim)
        width = high - low
        g1, g2, a1 = scratch[0, :width], scratch[1, :width], scratch[2, :width]
        a2, ga1, ga2 = scratch[3, :width], scratch[4, :width], scratch[5, :width]
        states[0, :width], states[1, :width] = state[row, low:high, 0], state[row, low:high, 1]
        end, offset = lengths[row], offsets[row]
        g1[:], g2[:] = grad_last[row, low:high, 0], grad_last[row, low:high, 1]
        grad_x[row, end:, low:high] = 0
        bin_index = (offset + end - 1) // bin_length
        time = end
        while time > 0:
            begin = bin_index * bin_length - offset
            clears = reset and begin >= 0
            a1[:], a2[:] = a[row, bin_index, low:high, 0], a[row, bin_index, low:high, 1]
            ga1[:], ga2[:] = 0, 0
            for t in range(time - 1, max(begin, 0) - 1, -1):
                # What the step read: two outputs, the state before the first, or rest.
                y1 = y[row, t - 1, low:high] if t >= 1 else states[0, :width]
                y2 = y[row, t - 2, low:high] if t >= 2 else states[1 - t, :width]
                if clears and t == begin:
                    y1 = rest[:width]
                if clears and t <= begin + 1:
                    y2 = rest[:width]
                gy, gx = grad_y[row, t, low:high], grad_x[row, t, low:high]
                for c in range(width):
                    g = gy[c] + g1[c]
                    gx[c] = g
                    ga1[c] -= g * y1[c]
                    ga2[c] -= g * y2[c]
                    g1[c] = g2[c] - a1[c] * g
                    g2[c] = -a2[c] * g
            grad_a[row, bin_index, low:high, 0], grad_a[row, bin_index, low:high, 1] = ga1, ga2
            if clears:
                g1[:], g2[:] = 0, 0
            time = max(begin, 0)
            bin_index -= 1
        grad_state[row, low:high, 0], grad_state[row, low:high, 1] = g1, g2
