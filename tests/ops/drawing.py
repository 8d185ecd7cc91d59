"""Random inputs for the ops, float64 unless said otherwise."""

from __future__ import annotations

import torch
from torch import Tensor


class Draw:
    """Numbers from one seed."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def stable(self, *shape: int) -> Tensor:
        """Coefficients (..., 2) well inside the stability triangle."""
        v, u = self.normal(*shape).tanh(), self.normal(*shape).tanh()
        return 0.95 * torch.stack([(1 + v) * u, v], -1)


def with_gradients(op, inputs: list[Tensor], **options) -> tuple[Tensor, ...]:
    """What an op without a state returns, and the gradients of one number that weighs all of it."""
    y = op(*inputs, **options)
    direction = Draw(1).normal(*y.shape).to(y.dtype)
    return y, *torch.autograd.grad((y * direction).sum(), inputs)


def all_gradients(y: Tensor, state: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of one number that weighs every output and every entry of the state."""
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    state_weights = torch.linspace(2, -1, state.numel(), dtype=state.dtype).view_as(state)
    total = (y * weights).sum() + (state * state_weights).sum()
    return torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
