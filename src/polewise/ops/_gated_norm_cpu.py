"""Gate and norm as compiled loops: one pass over the sequence, one back, nothing kept.

Gradient. With s = sigmoid(g), u = x g s, r = 1 / sqrt(mean(u^2) + eps), a = w gy:
grad u = r a - u r^3 mean(a u), grad x = grad u g s, grad g = grad u x (s + g s (1 - s)),
grad w = sum of gy u r.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polewise.ops._compiled import (
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
"""Steps of a unit: gradients of parameters are summed over each, then over all in one order."""

TOGETHER = 4
"""Steps whose gates are opened together."""


def forward(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = fresh(gate)
    run_blocks(
        _forward, 1, _steps(gate), gate.shape[2], SEGMENT, *rows(x), *rows(gate), copied(weight),
        np.float32(eps), y.view(-1, gate.shape[2]).numpy(),
    )  # fmt: skip
    return y


def backward(
    grad_y: Tensor, x: Tensor, gate: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gate and weight."""
    channels = gate.shape[2]
    grad_x, grad_gate = fresh(x), fresh(gate)
    by_weight = torch.zeros(-(-_steps(gate) // SEGMENT), len(weight), dtype=weight.dtype)
    run_blocks(
        _backward, 1, _steps(gate), channels, SEGMENT, *rows(grad_y), *rows(x), *rows(gate),
        copied(weight), np.float32(eps),
        *(each.view(-1, channels).numpy() for each in (grad_x, grad_gate)), by_weight.numpy(),
    )  # fmt: skip
    return grad_x, grad_gate, by_weight.sum(0)


def _steps(gate: Tensor) -> int:
    return gate.shape[0] * gate.shape[1]


@compiled
def _forward(x, x_stride, gate, gate_stride, weight, eps, y, first, stop):
    steps, channels = y.shape
    most = TOGETHER * channels
    mantissa, power, exponent = scratch(most)
    share, z = np.empty(most, np.float32), np.empty(most, np.float32)
    end = min(stop * SEGMENT, steps)
    for start in range(first * SEGMENT, end, TOGETHER):
        count = min(TOGETHER, end - start)
        size = count * channels
        _gather(gate, gate_stride, start, count, channels, z)
        sigmoid(z[:size], mantissa[:size], power[:size], exponent[:size], share[:size])
        multiply_line(z[:size], share[:size])
        for n in range(count):
            out = y[start + n]
            copy_line(x, (start + n) * x_stride, out)
            multiply_line(share[n * channels : (n + 1) * channels], out)
            _normalise(weight, eps, out)


@compiled
def _backward(
    grad_y, grad_stride, x, x_stride, gate, gate_stride, weight, eps, grad_x, grad_gate,
    grad_weight, first, stop,
):  # fmt: skip
    steps, channels = grad_x.shape
    most = TOGETHER * channels
    mantissa, power, exponent = scratch(most)
    share, z = np.empty(most, np.float32), np.empty(most, np.float32)
    read, grad = np.empty(most, np.float32), np.empty(most, np.float32)
    u = np.empty(channels, np.float32)
    for unit in range(first, stop):
        end = min((unit + 1) * SEGMENT, steps)
        for start in range(unit * SEGMENT, end, TOGETHER):
            count = min(TOGETHER, end - start)
            size = count * channels
            _gather(gate, gate_stride, start, count, channels, z)
            _gather(x, x_stride, start, count, channels, read)
            _gather(grad_y, grad_stride, start, count, channels, grad)
            sigmoid(z[:size], mantissa[:size], power[:size], exponent[:size], share[:size])
            for n in range(count):
                low, high = n * channels, (n + 1) * channels
                _gated(read[low:high], z[low:high], share[low:high], u)
                _through_norm(u, weight, eps, grad[low:high], grad_weight[unit])
                _through_gate(
                    grad[low:high], read[low:high], z[low:high], share[low:high],
                    grad_x[start + n], grad_gate[start + n],
                )  # fmt: skip


@compiled
def _gather(line, stride, start, count, channels, lines):
    for n in range(count):
        copy_line(line, (start + n) * stride, lines[n * channels : (n + 1) * channels])


@vectorised
def _gated(read, z, share, out):
    for c in range(len(out)):
        out[c] = read[c] * (z[c] * share[c])


@vectorised
def _normalise(weight, eps, u):
    size = len(weight)
    for low in range(0, len(u), size):
        here, square = u[low:], np.float32(0)
        for c in range(size):
            square += here[c] * here[c]
        r = np.float32(1) / np.sqrt(square / np.float32(size) + eps)
        for c in range(size):
            here[c] *= r * weight[c]


@vectorised
def _through_norm(u, weight, eps, grad, grad_weight):
    """`grad`, by the result, becomes that by u."""
    size = len(weight)
    for low in range(0, len(u), size):
        here, by_here, square, along = u[low:], grad[low:], np.float32(0), np.float32(0)
        for c in range(size):
            square += here[c] * here[c]
            along += here[c] * (by_here[c] * weight[c])
        r = np.float32(1) / np.sqrt(square / np.float32(size) + eps)
        back = r * r * r * along / np.float32(size)
        for c in range(size):
            grad_weight[c] += by_here[c] * (here[c] * r)
            by_here[c] = r * (by_here[c] * weight[c]) - back * here[c]


@vectorised
def _through_gate(grad, read, z, share, grad_read, grad_z):
    for c in range(len(grad)):
        s = share[c]
        grad_read[c] = grad[c] * (z[c] * s)
        grad_z[c] = grad[c] * read[c] * (s + z[c] * s * (np.float32(1) - s))
