"""Tokens to vectors of unit variance."""

from __future__ import annotations

import math

from torch import Tensor, nn


class ScaledEmbedding(nn.Embedding):
    """An embedding times the root of its width: unit variance in, while an output layer tied to it
    stays small."""

    @property
    def embed_scale(self) -> float:
        """The factor; adapters look for it by this name."""
        return math.sqrt(self.embedding_dim)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * self.embed_scale
