"""The feed-forward half of a block."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class FeedForward(nn.Module):
    """$y = W_2\\, \\mathrm{SiLU}(W_1 x + b_1) + b_2$, at every step alone.

    Source: Ma et al. 2023 (MEGA), its normalised feed-forward without the norm.
    """

    def __init__(self, dim: int, intermediate_size: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, intermediate_size)
        self.down = nn.Linear(intermediate_size, dim)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.down(functional.silu(self.up(x)))
