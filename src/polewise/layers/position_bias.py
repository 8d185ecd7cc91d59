"""A learned number for every distance."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class PositionBias(nn.Module):
    """$b_{i-j}$, one per head and distance, added to attention's logits.

    Args:
        heads: attention heads.
        chunk_length: tokens that can see each other.
        causal: distances 0 to M - 1; else -(M - 1) to M - 1.

    Source: Ma et al. 2023 (MEGA), the simple relative bias.
    """

    def __init__(self, heads: int, chunk_length: int, *, causal: bool) -> None:
        super().__init__()
        distances = chunk_length if causal else 2 * chunk_length - 1
        self.bias = nn.Parameter(torch.empty(heads, distances))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.bias, std=0.02)

    def forward(self) -> Float[Tensor, "heads distances"]:
        return self.bias
