"""MEGA's moving average: many damped one-pole filters in every channel."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polewise.layers.fixed_filters import fixed_filters
from polewise.ops.precision import accumulator_dtype
from polewise.ops.shards import Shards


class DampedEma(nn.Module):
    r"""The multi-dimension damped exponential moving average.

    $$ h_{j,t} = (1 - p_j a_j)\, h_{j,t-1} + p_j \beta_j x_t, \qquad
       y_t = n^{-1/2} \sum_{j=1}^{n} \gamma_j h_{j,t} + \omega x_t $$

    with $p_j, a_j \in (0, 1)$ and all numbers of their own in every channel. Written as filters
    instead of the original's FFT: exact at any length, and streaming; the state is $h$ without its
    factor $p_j \beta_j$. Without `skip`, $\omega = 0$: of two averages, one for each direction,
    only one adds the input.

    Source: Ma et al. 2023 (MEGA), Eq. 2-4, and its published start.
    """

    filter_parameters = ("step", "damping", "into", "out", "skip")

    def __init__(self, dim: int, memories: int, *, skip: bool = True) -> None:
        super().__init__()
        self.shards: Shards | None = None
        self.step = nn.Parameter(torch.empty(memories, dim))
        self.damping = nn.Parameter(torch.empty(memories, dim))
        self.into = nn.Parameter(torch.empty(memories, dim))
        self.out = nn.Parameter(torch.empty(memories, dim))
        self.skip = nn.Parameter(torch.empty(dim)) if skip else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for logit in (self.step, self.damping):
            nn.init.normal_(logit, std=0.2)
        nn.init.normal_(self.into, std=0.02)
        with torch.no_grad():
            self.into[0::2] += 1
            self.into[1::2] -= 1
        nn.init.normal_(self.out)
        if self.skip is not None:
            nn.init.normal_(self.skip)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: Float[Tensor, "batch memories dim"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch memories dim"]]:
        """`y`, and the state."""
        dtype = accumulator_dtype(x)
        step = self.step.to(dtype).sigmoid()
        decay = 1 - step * self.damping.to(dtype).sigmoid()
        gain = step * self.into * self.out * self.out.shape[0] ** -0.5
        zero = torch.zeros_like(decay)  # poles and sums have no imaginary part
        y, sums = fixed_filters(
            x, decay, zero, torch.stack([gain, zero], -1), self.skip,
            state=None if state is None else functional.pad(state[..., None], (0, 1)),
            lengths=lengths, shards=self.shards,
        )  # fmt: skip
        return y, sums[..., 0]
