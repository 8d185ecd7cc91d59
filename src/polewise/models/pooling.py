"""One vector for a whole sequence."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from polewise.ops.precision import accumulator_dtype

Pooling = Literal["mean", "last"]
"""Of all real steps, or the last of them."""


def pool(
    hidden: Float[Tensor, "batch length dim"],
    mask: Shaped[Tensor, "batch length"] | None,
    pooling: Pooling,
) -> Float[Tensor, "batch dim"]:
    """One vector a row, from the steps where `mask` is not 0; of none it is 0."""
    if not hidden.shape[1]:
        return hidden.new_zeros(hidden.shape[0], hidden.shape[2])
    mask = None if mask is None else mask.to(hidden.device)
    if pooling == "mean":
        if mask is None:
            return hidden.mean(1)
        real = mask.bool()[..., None]
        # Wider than float16, which ends at 65504: a sum of many, and a count.
        wide = accumulator_dtype(hidden)
        total = torch.where(real, hidden, 0).sum(1, dtype=wide)
        return (total / real.sum(1).clamp(min=1)).to(hidden.dtype)
    if mask is None:
        return hidden[:, -1]
    steps = torch.arange(hidden.shape[1], device=hidden.device)
    newest = (mask.bool() * steps).argmax(1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), newest]
