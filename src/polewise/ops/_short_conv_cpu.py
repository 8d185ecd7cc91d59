"""The short convolution as compiled loops: one pass over the sequence, one back.

Some steps at a time are laid side by side, with those before them, so that every loop runs over one
line of numbers.

Gradient. With g[t] = gy[t] SiLU'(z[t]), or gy[t] itself, grad x[t] = sum_i h_i g[t + i],
grad h_i = sum_t g[t] x[t - i] and grad b = sum_t g[t]. Nothing is kept but the inputs: z is made
again.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polewise.ops._compiled import (
    array,
    compiled,
    copied,
    copy_line,
    fresh,
    multiply_line,
    rows,
    run_blocks,
    vectorised,
)
from polewise.ops._sigmoid_cpu import scratch, sigmoid

SEGMENT = 256
"""Steps of a unit: the gradient of the kernel is summed over each, then over all in one order."""

TOGETHER = 16
"""Steps that lie side by side."""


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
    taps, segments = len(kernel), -(-length // SEGMENT)
    past = np.empty((TOGETHER + taps - 1, dim), np.float32)
    mantissa, power, exponent = scratch(dim)
    share = np.empty(dim, np.float32)
    for unit in range(first, stop):
        row, begin = unit // segments, unit % segments * SEGMENT
        end = min(begin + SEGMENT, length)
        for start in range(begin, end, TOGETHER):
            steps = min(TOGETHER, end - start)
            _gather(x, stride, state[row], row * length, start, steps, past)
            for n in range(steps):
                z = y[row, start + n]
                _weigh(past, n, kernel, bias, z)
                if silu:
                    sigmoid(z, mantissa, power, exponent, share)
                    multiply_line(share, z)


@compiled
def _backward(
    grad_y, grad_stride, x, stride, state, kernel, bias, silu, grad_x, grad_state, grad_kernel,
    grad_bias, first, stop,
):  # fmt: skip
    length, dim = grad_x.shape[1:]
    taps, segments = len(kernel), -(-length // SEGMENT)
    most = TOGETHER + taps - 1
    past = np.empty((most + taps - 1, dim), np.float32)
    grad = np.empty((most, dim), np.float32)
    mantissa, power, exponent = scratch(dim)
    share, z = np.empty(dim, np.float32), np.empty(dim, np.float32)
    for unit in range(first, stop):
        row, begin = unit // segments, unit % segments * SEGMENT
        end = min(begin + SEGMENT, length)
        for start in range(begin, end, TOGETHER):
            steps = min(TOGETHER, end - start)
            # The steps after these to which they have contributed.
            seen = min(steps + taps - 1, length - start)
            _gather(x, stride, state[row], row * length, start, seen, past)
            for n in range(seen):
                copy_line(grad_y, (row * length + start + n) * grad_stride, grad[n])
                if silu:
                    _weigh(past, n, kernel, bias, z)
                    sigmoid(z, mantissa, power, exponent, share)
                    _slope(share, z, grad[n])
            for n in range(steps):
                _correlate(grad[n], past, n, grad_kernel[unit], grad_bias[unit])
                _unweigh(grad, n, seen, kernel, grad_x[row, start + n])
            if start == 0:
                for n in range(1 - taps, 0):
                    _unweigh(grad, n, seen, kernel, grad_state[row, n + taps - 1])


@compiled
def _gather(x, stride, state, base, start, steps, past):
    """So many steps and those before them that they see; before the first step lies `state`."""
    history = len(state)
    for n in range(history + steps):
        t = start + n - history
        if t < 0:
            past[n] = state[t + history]
        else:
            copy_line(x, (base + t) * stride, past[n])


@compiled
def _weigh(past, n, kernel, bias, z):
    """Four taps at a time: a pass over a short row costs more than what it computes."""
    last = n + len(kernel) - 1
    z[:] = bias
    for tap in range(0, len(kernel) - 3, 4):
        _add_four(
            kernel[tap], kernel[tap + 1], kernel[tap + 2], kernel[tap + 3], past[last - tap],
            past[last - tap - 1], past[last - tap - 2], past[last - tap - 3], z,
        )  # fmt: skip
    for tap in range(len(kernel) // 4 * 4, len(kernel)):
        _add_one(kernel[tap], past[last - tap], z)


@compiled
def _unweigh(grad, n, seen, kernel, grad_x):
    """What step n, before the first if negative, has contributed to."""
    grad_x[:] = 0
    tap, stop = max(-n, 0), min(len(kernel), seen - n)
    while tap < stop:
        if tap + 4 <= stop:
            _add_four(
                kernel[tap], kernel[tap + 1], kernel[tap + 2], kernel[tap + 3], grad[n + tap],
                grad[n + tap + 1], grad[n + tap + 2], grad[n + tap + 3], grad_x,
            )  # fmt: skip
            tap += 4
        else:
            _add_one(kernel[tap], grad[n + tap], grad_x)
            tap += 1


@compiled
def _correlate(grad, past, n, grad_kernel, grad_bias):
    last = n + len(grad_kernel) - 1
    _add(grad, grad_bias)
    for tap in range(len(grad_kernel)):
        _add_one(grad, past[last - tap], grad_kernel[tap])


@vectorised
def _add(a, total):
    for c in range(len(total)):
        total[c] += a[c]


@vectorised
def _add_one(a, b, total):
    for c in range(len(total)):
        total[c] += a[c] * b[c]


@vectorised
def _add_four(a0, a1, a2, a3, b0, b1, b2, b3, total):
    for c in range(len(total)):
        total[c] += a0[c] * b0[c] + a1[c] * b1[c] + a2[c] * b2[c] + a3[c] * b3[c]


@vectorised
def _slope(share, z, grad):
    """The gradient through z sigmoid(z)."""
    for c in range(len(grad)):
        s = share[c]
        grad[c] *= s + z[c] * s * (np.float32(1) - s)
