"""Gate, norm and the map behind them, some steps at a time: what lies between stays in the caches.

Gradient. With s = sigmoid(g), u = x g s, n = RMSNorm(u), y = P n: grad n = P^T gy and
grad P = gy n^T, for which the loop back makes n once more; grad u and grad w are those of
`_rms_norm_cpu`, grad x = grad u g s, grad g = grad u x (s + g s (1 - s)).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from polewise.ops._compiled import compiled, copied, fresh, rows, run_blocks, vectorised
from polewise.ops._rms_norm_cpu import SEGMENT, zeros_by_segment
from polewise.ops._sigmoid_cpu import sigmoid

BLOCK = 512
"""Steps at a time for every thread: fewer make products slower, more leave the caches."""


def forward(x: Tensor, gate: Tensor, weight: Tensor, projection: Tensor, eps: float) -> Tensor:
    y = fresh(x[..., :1].expand(-1, -1, len(projection)))
    for x_now, gate_now, y_now in _blocks(x, gate, y):
        n = x_now.new_empty(x_now.shape)
        run_blocks(
            _normalise_rows, 1, *n.shape, SEGMENT, *rows(x_now), *rows(gate_now), copied(weight),
            np.float32(eps), n.numpy(),
        )  # fmt: skip
        torch.mm(n, projection.T, out=y_now)
    return y


def backward(
    grad_y: Tensor, x: Tensor, gate: Tensor, weight: Tensor, projection: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, gate, weight and projection."""
    grad_x, grad_gate = fresh(x), fresh(gate)
    # Contiguous, as their fakes are, whatever the parameters are views of.
    grad_weight, grad_projection = (
        torch.zeros_like(each, memory_format=torch.contiguous_format)
        for each in (weight, projection)
    )
    blocks = _blocks(grad_y, x, gate, grad_x, grad_gate)
    for grad_y_now, x_now, gate_now, grad_x_now, grad_gate_now in blocks:
        n, grad_n = x_now.new_empty(x_now.shape), x_now.new_empty(x_now.shape)
        torch.mm(grad_y_now, projection, out=grad_n)  # autocast would narrow one without a place
        by_segment = zeros_by_segment(len(n), weight)
        run_blocks(
            _back_rows, 1, *n.shape, SEGMENT, grad_n.numpy(), *rows(x_now), *rows(gate_now),
            copied(weight), np.float32(eps), grad_x_now.numpy(), grad_gate_now.numpy(), n.numpy(),
            by_segment.numpy(),
        )  # fmt: skip
        grad_weight += by_segment.sum(0)
        grad_projection.addmm_(grad_y_now.T, n)
    return grad_x, grad_gate, grad_weight, grad_projection


def _blocks(*sequences: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The steps of all rows, some at a time."""
    size = BLOCK * torch.get_num_threads()
    return zip(*(each.flatten(0, 1).split(size) for each in sequences), strict=True)


@compiled
def _normalise_rows(x, x_stride, gate, gate_stride, weight, eps, n, first, stop):
    steps, channels = n.shape
    size = len(weight)
    for t in range(first * SEGMENT, min(stop * SEGMENT, steps)):
        for low in range(0, channels, size):
            from_x, from_gate = t * x_stride + low, t * gate_stride + low
            _gate_and_normalise(
                x[from_x : from_x + size], gate[from_gate : from_gate + size], weight, eps,
                n[t, low : low + size],
            )  # fmt: skip


@compiled
def _back_rows(
    grad_n, x, x_stride, gate, gate_stride, weight, eps, grad_x, grad_gate, n, grad_weight, first,
    stop,
):  # fmt: skip
    steps, channels = n.shape
    size = len(weight)
    for unit in range(first, stop):
        for t in range(unit * SEGMENT, min((unit + 1) * SEGMENT, steps)):
            for low in range(0, channels, size):
                high, from_x, from_gate = low + size, t * x_stride + low, t * gate_stride + low
                _back(
                    grad_n[t, low:high], x[from_x : from_x + size],
                    gate[from_gate : from_gate + size], weight, eps, grad_x[t, low:high],
                    grad_gate[t, low:high], n[t, low:high], grad_weight[unit],
                )  # fmt: skip


@vectorised
def _gate_and_normalise(x, gate, weight, eps, n):
    size, square = len(weight), np.float32(0)
    for c in range(size):
        z = gate[c]
        u = x[c] * (z * sigmoid(z))
        square += u * u
        n[c] = u
    r = np.float32(1) / np.sqrt(square / np.float32(size) + eps)
    for c in range(size):
        n[c] *= r * weight[c]


@vectorised
def _back(grad_n, x, gate, weight, eps, grad_x, grad_gate, n, grad_weight):
    """`n` holds sigmoid(gate) until it is n."""
    size, square, along = len(weight), np.float32(0), np.float32(0)
    for c in range(size):
        s = sigmoid(gate[c])
        u = x[c] * (gate[c] * s)
        square += u * u
        along += u * (grad_n[c] * weight[c])
        n[c] = s
    r = np.float32(1) / np.sqrt(square / np.float32(size) + eps)
    back = r * r * r * along / np.float32(size)
    for c in range(size):
        s, z = n[c], gate[c]
        u = x[c] * (z * s)
        grad_u = r * (grad_n[c] * weight[c]) - back * u
        grad_weight[c] += grad_n[c] * (u * r)
        grad_x[c] = grad_u * (z * s)
        grad_gate[c] = grad_u * x[c] * (s + z * s * (np.float32(1) - s))
        n[c] = u * (r * weight[c])
