"""Normalisation as compiled loops: one pass over the sequence, one back, nothing kept.

Gradient. With r = 1 / sqrt(mean(x^2) + eps) and a = w gy: grad x = r a - x r^3 mean(a x), and
grad w = sum of gy x r.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polewise.ops._compiled import compiled, copied, fresh, rows, run_blocks, vectorised

SEGMENT = 256
"""Steps of a unit: gradients of parameters are summed over each, then over all in one order."""


def forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = fresh(x)
    lines = y.flatten(0, 1)
    run_blocks(
        _normalise_rows, 1, *lines.shape, SEGMENT, *rows(x), copied(weight), np.float32(eps),
        lines.numpy(),
    )  # fmt: skip
    return y


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight."""
    grad_x = fresh(x)
    lines = grad_x.flatten(0, 1)
    grad_weight = zeros_by_segment(len(lines), weight)
    run_blocks(
        _back_rows, 1, *lines.shape, SEGMENT, *rows(grad_y), *rows(x), copied(weight),
        np.float32(eps), lines.numpy(), grad_weight.numpy(),
    )  # fmt: skip
    return grad_x, grad_weight.sum(0)


def zeros_by_segment(steps: int, weight: Tensor) -> Tensor:
    """A gradient of `weight` for every unit."""
    return torch.zeros(-(-steps // SEGMENT), len(weight), dtype=weight.dtype)


@compiled
def _normalise_rows(x, stride, weight, eps, y, first, stop):
    steps, channels = y.shape
    size = len(weight)
    for t in range(first * SEGMENT, min(stop * SEGMENT, steps)):
        for low in range(0, channels, size):
            start = t * stride + low
            _normalise(x[start : start + size], weight, eps, y[t, low : low + size])


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
