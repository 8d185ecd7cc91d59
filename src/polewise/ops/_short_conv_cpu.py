"""The short convolution as compiled loops: one pass over the sequence, one back.

Some steps at a time are laid side by side, with those before them, so that loops run over dense
memory and few calls are made: a call costs as much as a row of channels.

Gradient. With g[t] = gy[t] SiLU'(z[t]), or gy[t] itself, grad x[t] = sum_i h_i g[t + i],
grad h_i = sum_t g[t] x[t - i] and grad b = sum_t g[t]. Nothing is kept but the inputs: z is made
again.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polewise.ops._compiled import array, compiled, copied, fresh, rows, run_blocks, vectorised
from polewise.ops._sigmoid_cpu import sigmoid

SEGMENT = 256
"""Steps of a unit: the gradient of the kernel is summed over each, then over all in one order."""

TOGETHER = 16
"""Steps that lie side by side, or as many as a kernel looks back."""


def forward(x: Tensor, state: Tensor, kernel: Tensor, bias: Tensor, silu: bool) -> Tensor:
    y = fresh(x)
    run_blocks(
        _forward, *x.shape, SEGMENT, *rows(x), array(state), copied(kernel), copied(bias),
        silu, y.numpy(),
    )  # fmt: skip
    return y


def backward(
    grad_y: Tensor, x: Tensor, state: Tensor, kernel: Tensor, bias: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, state, kernel and bias."""
    grad_x, grad_state = fresh(x), torch.zeros(state.shape, dtype=state.dtype)
    units = x.shape[0] * -(-x.shape[1] // SEGMENT)
    by_kernel = torch.zeros(units, *kernel.shape, dtype=kernel.dtype)
    by_bias = torch.zeros(units, *bias.shape, dtype=bias.dtype)
    run_blocks(
        _backward, *x.shape, SEGMENT, *rows(grad_y), *rows(x), array(state), copied(kernel),
        copied(bias), silu, grad_x.numpy(), grad_state.numpy(), by_kernel.numpy(), by_bias.numpy(),
    )  # fmt: skip
    return grad_x, grad_state, by_kernel.sum(0), by_bias.sum(0)


@compiled
def _forward(x, stride, state, kernel, bias, silu, y, first, stop):
    length, dim = y.shape[1:]
    history, segments = len(kernel) - 1, -(-length // SEGMENT)
    past = np.empty((history + TOGETHER, dim), np.float32)
    for unit in range(first, stop):
        row, begin = unit // segments, unit % segments * SEGMENT
        end = min(begin + SEGMENT, length)
        for start in range(begin, end, TOGETHER):
            steps = min(TOGETHER, end - start)
            _lay(x, stride, state[row], row * length, start - history, past[: history + steps])
            _convolve(past, kernel, bias, y[row, start : start + steps])
            if silu:
                _silu(y[row, start : start + steps])


@compiled
def _backward(
    grad_y, grad_stride, x, stride, state, kernel, bias, silu, grad_x, grad_state, grad_kernel,
    grad_bias, first, stop,
):  # fmt: skip
    """Against time: each step collects the gradients of the later outputs it was part of."""
    length, dim = grad_x.shape[1:]
    history, segments = len(kernel) - 1, -(-length // SEGMENT)
    together = max(TOGETHER, history)
    past = np.empty((together + 2 * history, dim), np.float32)
    z, grad = np.empty_like(past), np.empty_like(past)
    reverse, nothing = kernel[::-1].copy(), np.zeros(dim, np.float32)
    for unit in range(first, stop):
        row, begin = unit // segments, unit % segments * SEGMENT
        base, end = row * length, min(begin + SEGMENT, length)
        for block in range(-(-(end - begin) // together) - 1, -1, -1):
            start = begin + block * together
            steps = min(together, end - start)
            if start + steps < end:
                known = steps
                grad[steps : steps + history] = grad[:history]
            else:
                known = min(steps + history, length - start)
                grad[known : steps + history] = 0
            _copy(grad_y, (base + start) * grad_stride, grad_stride, grad[:known])
            _lay(x, stride, state[row], base, start - history, past[: history + known])
            if silu:
                _convolve(past, kernel, bias, z[:known])
                _through_silu(z, grad[:known])
            _correlate(grad[:steps], past, grad_kernel[unit], grad_bias[unit])
            _convolve(grad, reverse, nothing, grad_x[row, start : start + steps])
        if begin == 0:
            for n in range(history):
                for tap in range(history - n, history + 1):
                    grad_state[row, n] += kernel[tap] * grad[n - history + tap]


@compiled
def _lay(x, stride, state, base, start, steps):
    """The steps from `start` on; those before the first lie in `state`."""
    early = min(max(-start, 0), len(steps))
    for n in range(early):
        steps[n] = state[len(state) + start + n]
    _copy(x, (base + start + early) * stride, stride, steps[early:])


@vectorised
def _copy(line, start, stride, target):
    for n in range(target.shape[0]):
        source = line[start + n * stride :]
        for c in range(target.shape[1]):
            target[n, c] = source[c]


@vectorised
def _convolve(past, kernel, bias, z):
    """Four taps at a time: a pass over a short row costs more than what it computes."""
    steps, dim = z.shape
    taps = len(kernel)
    for n in range(steps):
        now = n + taps - 1
        for c in range(dim):
            z[n, c] = bias[c]
        for tap in range(0, taps - 3, 4):
            for c in range(dim):
                z[n, c] += (
                    kernel[tap, c] * past[now - tap, c]
                    + kernel[tap + 1, c] * past[now - tap - 1, c]
                    + kernel[tap + 2, c] * past[now - tap - 2, c]
                    + kernel[tap + 3, c] * past[now - tap - 3, c]
                )
        for tap in range(taps // 4 * 4, taps):
            for c in range(dim):
                z[n, c] += kernel[tap, c] * past[now - tap, c]


@vectorised
def _correlate(grad, past, grad_kernel, grad_bias):
    """Four steps at a time, for the same reason."""
    steps, dim = grad.shape
    taps = len(grad_kernel)
    whole = steps // 4 * 4
    for n in range(0, whole, 4):
        for c in range(dim):
            grad_bias[c] += grad[n, c] + grad[n + 1, c] + grad[n + 2, c] + grad[n + 3, c]
    for n in range(whole, steps):
        for c in range(dim):
            grad_bias[c] += grad[n, c]
    for tap in range(taps):
        back = taps - 1 - tap
        for n in range(0, whole, 4):
            for c in range(dim):
                grad_kernel[tap, c] += (
                    grad[n, c] * past[n + back, c]
                    + grad[n + 1, c] * past[n + back + 1, c]
                    + grad[n + 2, c] * past[n + back + 2, c]
                    + grad[n + 3, c] * past[n + back + 3, c]
                )
        for n in range(whole, steps):
            for c in range(dim):
                grad_kernel[tap, c] += grad[n, c] * past[n + back, c]


@vectorised
def _silu(z):
    for n in range(z.shape[0]):
        for c in range(z.shape[1]):
            z[n, c] *= sigmoid(z[n, c])


@vectorised
def _through_silu(z, grad):
    """The gradient of z, from that of z sigmoid(z)."""
    for n in range(grad.shape[0]):
        for c in range(grad.shape[1]):
            s = sigmoid(z[n, c])
            grad[n, c] *= s + z[n, c] * s * (np.float32(1) - s)
