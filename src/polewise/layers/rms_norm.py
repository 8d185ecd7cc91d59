"""Root-mean-square normalisation of every step."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from polewise.ops import gated_norm


class RmsNorm(nn.RMSNorm):
    r"""$y = w \odot x / \sqrt{\operatorname{mean}(x^2) + \epsilon}$ in the wider of both dtypes:
    under autocast the input may be narrower than the weight."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-5)

    def forward(
        self, x: Float[Tensor, "batch length *heads dim"]
    ) -> Float[Tensor, "batch length *heads dim"]:
        return gated_norm(x.flatten(2), None, self.weight, eps=1e-5).view(x.shape)
