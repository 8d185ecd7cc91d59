"""Gate, norm and the map behind them, some steps at a time: what lies between stays in the caches.

Gradient. With n = gated_norm(x, g), y = P n: grad n = P^T gy and grad P = gy n^T, for which the
loop back makes n once more; the rest is that of `_gated_norm_cpu`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from polewise.ops._compiled import fresh
from polewise.ops._gated_norm_cpu import write_gated, write_gated_gradients

BLOCK = 512
"""Steps at a time for every thread: fewer make products slower, more leave the caches."""


def forward(x: Tensor, gate: Tensor, weight: Tensor, projection: Tensor, eps: float) -> Tensor:
    y = fresh(x[..., :1].expand(-1, -1, len(projection)))
    for x_now, gate_now, y_now in _blocks(x, gate, y):
        n = x_now.new_empty(x_now.shape)
        write_gated(x_now, gate_now, weight, eps, n)
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
        grad_weight += write_gated_gradients(
            grad_n, x_now, gate_now, weight, eps, grad_x_now, grad_gate_now, n
        )
        grad_projection.addmm_(grad_y_now.T, n)
    return grad_x, grad_gate, grad_weight, grad_projection


def _blocks(*sequences: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The steps of all rows, some at a time."""
    size = BLOCK * torch.get_num_threads()
    return zip(*(each.flatten(0, 1).split(size) for each in sequences), strict=True)
