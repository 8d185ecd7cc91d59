"""Masked products that keep NaN where it belongs.

A matrix product multiplies what its mask hides by 0, and 0 * NaN is NaN: one bad value
would reach outputs that must not see it, earlier ones included. So the products work on
cleaned factors, and the bad values come back exactly where they are visible.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clean_and_mark(*factors: Tensor) -> tuple[list[Tensor], Tensor]:
    """The factors with NaN and infinity as 0, and 1.0 at each position that had one.

    The mark drops the last axis; factors agree on all others.
    """
    finite = [torch.isfinite(factor) for factor in factors]
    cleaned = [torch.where(good, factor, 0) for good, factor in zip(finite, factors, strict=True)]
    bad = ~torch.stack([good.all(-1) for good in finite]).all(0)
    return cleaned, bad.to(factors[0].dtype)


def put_back(y: Tensor, marks_seen: Tensor) -> Tensor:
    """`y` with NaN where at least one marked position was seen."""
    return y.masked_fill(marks_seen > 0, float("nan"))
