"""Root-mean-square normalisation of every step."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from polewise.ops import rms_norm


class RmsNorm(nn.RMSNorm):
    r"""$y = w \odot x / \sqrt{\operatorname{mean}(x^2) + \epsilon}$ in the wider of both dtypes:
    under autocast the input may be narrower than the weight."""

    eps: float

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-5)

    def forward(
        self, x: Float[Tensor, "batch length *heads dim"]
    ) -> Float[Tensor, "batch length *heads dim"]:
        """Of every step, or of every head of it."""
        return rms_norm(x.flatten(2), self.weight, eps=self.eps).view(x.shape)
