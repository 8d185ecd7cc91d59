"""How much time a token takes."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from polewise.ops.precision import accumulator_dtype


class StepSize(nn.Module):
    r"""$\Delta_t = \operatorname{softplus}(x_t + b)$, positive, in float32 or wider.

    A long step lets a state space forget and take in much, a short one passes the token by. The
    steps start log-uniform between 0.001 and 0.1, one a head.

    Source: Gu & Dao 2023 (Mamba), its selection and its published start.
    """

    filter_parameters = ("bias",)

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.start_at(self.bias.uniform_(math.log(1e-3), math.log(1e-1)).exp())

    @torch.no_grad()
    def start_at(self, step: Float[Tensor, " heads"]) -> None:
        """Choose the bias for these steps, one a head: the inverse of softplus, without the
        cancellation of log(exp(step) - 1)."""
        self.bias.copy_(step + (-torch.expm1(-step)).log())

    def forward(self, x: Float[Tensor, "*batch heads"]) -> Float[Tensor, "*batch heads"]:
        dtype = accumulator_dtype(x)
        return functional.softplus(x.to(dtype) + self.bias.to(dtype))
