"""Gate and norm as compiled loops: one pass over the sequence, one back, nothing kept.

Gradient. With s = sigmoid(g), u = x g s, r = 1 / sqrt(mean(u^2) + eps), a = w gy:
grad u = r a - u r^3 mean(a u), grad x = grad u g s, grad g = grad u x (s + g s (1 - s)),
grad w = sum of gy u r. Without a gate u = x, and that is all.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from polewise.ops._compiled import compiled, copied, fresh, rows, run_blocks, vectorised
from polewise.ops._sigmoid_cpu import sigmoid

SEGMENT = 256
"""Steps of a unit: gradients of parameters are summed over each, then over all in one order."""


def forward(x: Tensor, gate: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    y = fresh(x)
    if gate is not None:
        write_gated(x, gate, weight, eps, y)
        return y
    run_blocks(
        _normalise_rows, 1, _steps(x), x.shape[2], SEGMENT, *rows(x), copied(weight),
        np.float32(eps), _lines(y),
    )  # fmt: skip
    return y


def write_gated(x: Tensor, gate: Tensor, weight: Tensor, eps: float, y: Tensor) -> None:
    """`forward` with a gate, into a buffer of the caller's."""
    run_blocks(
        _gate_and_normalise_rows, 1, _steps(x), x.shape[-1], SEGMENT, *rows(x), *rows(gate),
        copied(weight), np.float32(eps), _lines(y),
    )  # fmt: skip


def backward(
    grad_y: Tensor, x: Tensor, gate: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gate (empty without one) and weight."""
    grad_x = fresh(x)
    if gate is not None:
        grad_gate, nowhere = fresh(gate), x.new_empty(0, x.shape[2])
        into = grad_x, grad_gate, nowhere
        return grad_x, grad_gate, write_gated_gradients(grad_y, x, gate, weight, eps, *into)
    grad_weight = _zeros_by_segment(x, weight)
    run_blocks(
        _back_rows, 1, _steps(x), x.shape[2], SEGMENT, *rows(grad_y), *rows(x), copied(weight),
        np.float32(eps), _lines(grad_x), grad_weight.numpy(),
    )  # fmt: skip
    return grad_x, x.new_empty(0), grad_weight.sum(0)


def write_gated_gradients(
    grad_y: Tensor,
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    eps: float,
    grad_x: Tensor,
    grad_gate: Tensor,
    y: Tensor,
) -> Tensor:
    """`backward` with a gate, into buffers of the caller's, and y once more where there is one for
    it; returns the gradient of weight."""
    grad_weight = _zeros_by_segment(x, weight)
    run_blocks(
        _gated_back_rows, 1, _steps(x), x.shape[-1], SEGMENT, *rows(grad_y), *rows(x), *rows(gate),
        copied(weight), np.float32(eps), _lines(grad_x), _lines(grad_gate), _lines(y),
        grad_weight.numpy(),
    )  # fmt: skip
    return grad_weight.sum(0)


def _zeros_by_segment(x: Tensor, weight: Tensor) -> Tensor:
    return torch.zeros(-(-_steps(x) // SEGMENT), len(weight), dtype=weight.dtype)


def _lines(x: Tensor) -> np.ndarray:
    return x.view(-1, x.shape[-1]).numpy()


def _steps(x: Tensor) -> int:
    return math.prod(x.shape[:-1])


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
    grad_y, grad_stride, x, x_stride, gate, gate_stride, weight, eps, grad_x, grad_gate, y,
    grad_weight, first, stop,
):  # fmt: skip
    steps, channels = grad_x.shape
    size = len(weight)
    room = np.empty(size, np.float32)
    for unit in range(first, stop):
        for t in range(unit * SEGMENT, min((unit + 1) * SEGMENT, steps)):
            for low in range(0, channels, size):
                from_grad, from_x = t * grad_stride + low, t * x_stride + low
                from_gate = t * gate_stride + low
                _gated_back(
                    grad_y[from_grad : from_grad + size], x[from_x : from_x + size],
                    gate[from_gate : from_gate + size], weight, eps, grad_x[t, low : low + size],
                    grad_gate[t, low : low + size], grad_weight[unit], room,
                )  # fmt: skip
                if len(y):
                    y[t, low : low + size] = room


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
def _gated_back(grad_y, x, gate, weight, eps, grad_x, grad_gate, grad_weight, y):
    """`y` is what the gate lets through first."""
    size, square, along = len(weight), np.float32(0), np.float32(0)
    for c in range(size):
        s = sigmoid(gate[c])
        u = x[c] * (gate[c] * s)
        square += u * u
        along += u * (grad_y[c] * weight[c])
        y[c] = s
    r = np.float32(1) / np.sqrt(square / np.float32(size) + eps)
    back = r * r * r * along / np.float32(size)
    for c in range(size):
        s, z = y[c], gate[c]
        u = x[c] * (z * s)
        grad_u = r * (grad_y[c] * weight[c]) - back * u
        grad_weight[c] += grad_y[c] * (u * r)
        grad_x[c] = grad_u * (z * s)
        grad_gate[c] = grad_u * x[c] * (s + z * s * (np.float32(1) - s))
        y[c] = u * (r * weight[c])
