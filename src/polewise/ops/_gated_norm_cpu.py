"""Gate and norm as compiled loops: one pass over the sequence, one back, nothing kept.

Gradient. With s = sigmoid(g), u = x g s, r = 1 / sqrt(mean(u^2) + eps), a = w gy:
grad u = r a - u r^3 mean(a u), grad x = grad u g s, grad g = grad u x (s + g s (1 - s)),
grad w = sum of gy u r. Without a gate u = x, and that is all.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polewise.ops._compiled import compiled, copied, fresh, rows, run_blocks, vectorised
from polewise.ops._sigmoid_cpu import sigmoid

SEGMENT = 256
"""Steps of a unit: gradients of parameters are summed over each, then over all in one order."""


def forward(x: Tensor, gate: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    y = fresh(x)
    loop, read = _normalise_rows, [*rows(x)]
    if gate is not None:
        loop = _gate_and_normalise_rows
        read += rows(gate)
    run_blocks(
        loop, 1, _steps(x), x.shape[2], SEGMENT, *read, copied(weight), np.float32(eps),
        y.view(-1, x.shape[2]).numpy(),
    )  # fmt: skip
    return y


def backward(
    grad_y: Tensor, x: Tensor, gate: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gate (empty without one) and weight."""
    steps, channels = _steps(x), x.shape[2]
    grad_x = fresh(x)
    grad_gate = x.new_empty(0)
    by_weight = torch.zeros(-(-steps // SEGMENT), len(weight), dtype=weight.dtype)
    loop, read, written = _back_rows, [*rows(grad_y), *rows(x)], [grad_x]
    if gate is not None:
        loop, grad_gate = _gated_back_rows, fresh(gate)
        read += rows(gate)
        written.append(grad_gate)
    run_blocks(
        loop, 1, steps, channels, SEGMENT, *read, copied(weight), np.float32(eps),
        *(each.view(-1, channels).numpy() for each in written), by_weight.numpy(),
    )  # fmt: skip
    return grad_x, grad_gate, by_weight.sum(0)


def _steps(x: Tensor) -> int:
    return x.shape[0] * x.shape[1]


@compiled
def _normalise_rows(x, stride, weight, eps, y, first, stop):
    steps, channels = y.shape
    size = len(weight)
    for t in range(first * SEGMENT, min(stop * SEGMENT, steps)):
        for low in range(0, channels, size):
            start = t * stride + low
            _normalise(x[start : start + size], weight, eps, y[t, low : low + size])


@compiled
def _gate_and_normalise_rows(x, x_stride, gate, gate_stride, weight, eps, y, first, stop):
    steps, channels = y.shape
    size = len(weight)
    for t in range(first * SEGMENT, min(stop * SEGMENT, steps)):
        for low in range(0, channels, size):
            from_x, from_gate = t * x_stride + low, t * gate_stride + low
            _gate_and_normalise(
                x[from_x : from_x + size], gate[from_gate : from_gate + size], weight, eps,
                y[t, low : low + size],
            )  # fmt: skip


@compiled
def _back_rows(grad_y, grad_stride, x, stride, weight, eps, grad_x, grad_weight, first, stop):
    steps, channels = grad_x.shape
    size = len(weight)
    for unit in range(first, stop):
        for t in range(unit * SEGMENT, min((unit + 1) * SEGMENT, steps)):
            for low in range(0, channels, size):
                from_grad, from_x = t * grad_stride + low, t * stride + low
                _back(
                    grad_y[from_grad : from_grad + size], x[from_x : from_x + size], weight, eps,
                    grad_x[t, low : low + size], grad_weight[unit],
                )  # fmt: skip


@compiled
def _gated_back_rows(
    grad_y, grad_stride, x, x_stride, gate, gate_stride, weight, eps, grad_x, grad_gate,
    grad_weight, first, stop,
):  # fmt: skip
    steps, channels = grad_x.shape
    size = len(weight)
    share = np.empty(size, np.float32)
    for unit in range(first, stop):
        for t in range(unit * SEGMENT, min((unit + 1) * SEGMENT, steps)):
            for low in range(0, channels, size):
                from_grad, from_x = t * grad_stride + low, t * x_stride + low
                from_gate = t * gate_stride + low
                _gated_back(
                    grad_y[from_grad : from_grad + size], x[from_x : from_x + size],
                    gate[from_gate : from_gate + size], weight, eps, grad_x[t, low : low + size],
                    grad_gate[t, low : low + size], grad_weight[unit], share,
                )  # fmt: skip


@vectorised
def _normalise(x, weight, eps, y):
    size, square = len(weight), np.float32(0)
    for c in range(size):
        square += x[c] * x[c]
    r = np.float32(1) / np.sqrt(square / np.float32(size) + eps)
    for c in range(size):
        y[c] = x[c] * (r * weight[c])


@vectorised
def _back(grad_y, x, weight, eps, grad_x, grad_weight):
    size, square, along = len(weight), np.float32(0), np.float32(0)
    for c in range(size):
        square += x[c] * x[c]
        along += x[c] * (grad_y[c] * weight[c])
    r = np.float32(1) / np.sqrt(square / np.float32(size) + eps)
    back = r * r * r * along / np.float32(size)
    for c in range(size):
        grad_x[c] = r * (grad_y[c] * weight[c]) - back * x[c]
        grad_weight[c] += grad_y[c] * (x[c] * r)


@vectorised
def _gate_and_normalise(x, gate, weight, eps, y):
    size, square = len(weight), np.float32(0)
    for c in range(size):
        z = gate[c]
        u = x[c] * (z * sigmoid(z))
        square += u * u
        y[c] = u
    r = np.float32(1) / np.sqrt(square / np.float32(size) + eps)
    for c in range(size):
        y[c] *= r * weight[c]


@vectorised
def _gated_back(grad_y, x, gate, weight, eps, grad_x, grad_gate, grad_weight, share):
    """`share` is room for what the gate lets through."""
    size, square, along = len(weight), np.float32(0), np.float32(0)
    for c in range(size):
        s = sigmoid(gate[c])
        u = x[c] * (gate[c] * s)
        square += u * u
        along += u * (grad_y[c] * weight[c])
        share[c] = s
    r = np.float32(1) / np.sqrt(square / np.float32(size) + eps)
    back = r * r * r * along / np.float32(size)
    for c in range(size):
        s, z = share[c], gate[c]
        u = x[c] * (z * s)
        grad_u = r * (grad_y[c] * weight[c]) - back * u
        grad_weight[c] += grad_y[c] * (u * r)
        grad_x[c] = grad_u * (z * s)
        grad_gate[c] = grad_u * x[c] * (s + z * s * (np.float32(1) - s))
