"""Masked products that keep NaN where it belongs.

A matrix product multiplies what its mask hides by 0, and 0 * NaN is NaN: one bad value
would reach outputs that must not see it, earlier ones included. So the products work on
cleaned factors, and the bad values come back exactly where they are visible.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import and_

import torch
from torch import Tensor

from polewise.ops.eager import values_are_at_hand
from polewise.ops.precision import accumulator_dtype


def clean_and_mark(*factors: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """The factors with NaN and infinity as 0, and 1.0 at each position that had one; None where a
    look has found that none had.

    Marks have the factors' axes but the last; on those, sizes agree or are 1.
    """
    if all(values_are_at_hand(factor) and _is_finite(factor) for factor in factors):
        return list(factors), None
    finite = [torch.isfinite(factor) for factor in factors]
    cleaned = [torch.where(good, factor, 0) for good, factor in zip(finite, factors, strict=True)]
    good = reduce(and_, (part.all(-1) for part in finite))
    return cleaned, (~good).to(factors[0].dtype)


def put_back(y: Tensor, marks_seen: Tensor) -> Tensor:
    """`y` with NaN where at least one marked position was seen."""
    return y.masked_fill(marks_seen > 0, float("nan"))


def put_back_from_then_on(y: Tensor, last: Tensor, marks: Tensor | None) -> tuple[Tensor, Tensor]:
    """A recursion's outputs (batch, length, heads, ...) with NaN from each head's first mark on,
    and its last state (batch, heads, ...) with NaN where there was a mark at all."""
    if marks is None:
        return y, last
    # Counted in integers: torch's deterministic mode refuses to sum floats so on CUDA.
    counts = marks.to(torch.int32).transpose(1, 2)
    seen = counts.cumsum(-1, dtype=torch.int32).transpose(1, 2)  # a scan in memory's order
    everything = marks.sum(1)
    beyond = (None,) * (last.ndim - 2)
    return put_back(y, seen[..., None]), put_back(last, everything[(..., *beyond)])


def _is_finite(x: Tensor) -> bool:
    """By one reading: a sum keeps every NaN and infinity. A sum that overflows only costs time."""
    return math.isfinite(x.detach().sum(dtype=accumulator_dtype(x)))
