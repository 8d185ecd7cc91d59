"""Bins of time: where a row stands in them, and what its steps read from them."""

from __future__ import annotations

import torch
from torch import Tensor

from polewise.ops._checks import require_axes, require_like, require_positive, require_rows


def require_offset(offset: int | Tensor, bin_length: int, x: Tensor) -> None:
    """`offset` can say where `x[:, 0]` stands in its bin: one number, or one a row."""
    if isinstance(offset, Tensor):
        require_rows("offset", offset, x)
        return
    if isinstance(offset, bool) or not isinstance(offset, int):
        raise TypeError(
            f"offset must be an int or an int64 tensor (batch,); got {type(offset).__name__}."
        )
    if not 0 <= offset < bin_length:
        raise ValueError(
            f"offset must lie in [0, bin_length), the position of x[:, 0] in its bin; "
            f"got {offset} for bin_length {bin_length}."
        )


def rows_of_offsets(offset: int | Tensor, x: Tensor) -> Tensor:
    """Where `x[:, 0]` stands in its bin, for each row: (batch,) int64."""
    if isinstance(offset, Tensor):
        return offset.to(torch.int64).contiguous()
    return torch.full((x.shape[0],), offset, dtype=torch.int64, device=x.device)


def require_bins(name: str, bins: int, offset: int | Tensor, length: int, bin_length: int) -> None:
    """The coefficients cover the sequence, bin by bin.

    An offset of its own for every row leaves the number of bins open by one: rows
    that start late in their bin reach one bin further.
    """
    if isinstance(offset, Tensor):
        fewest, most = -(-length // bin_length), -(-(bin_length - 1 + length) // bin_length)
    else:
        fewest = most = -(-(offset + length) // bin_length)
    if not fewest <= bins <= most:
        wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        raise ValueError(
            f"{name} must have ceil((offset + length) / bin_length) = {wanted} bins for length "
            f"{length} in bins of {bin_length}; got {bins}."
        )


def require_coefficients(a: Tensor, x: Tensor, bin_length: int, offset: int | Tensor) -> None:
    """`a` has two coefficients for every row, bin and channel of `x`."""
    axes = "(batch, bins, dim, 2)"
    require_positive("bin_length", bin_length, "steps")
    require_axes("a", a, axes)
    batch, length, dim = x.shape
    require_like("a", a, (batch, a.shape[1], dim, 2), x, axes)
    require_offset(offset, bin_length, x)
    require_bins("a", a.shape[1], offset, length, bin_length)


def starts_of_bins(offsets: Tensor, length: int, bin_length: int) -> Tensor:
    """Which steps of every row start a bin, (batch, length) bool."""
    time = torch.arange(length, device=offsets.device)
    return (offsets[:, None] + time) % bin_length == 0


def cleared_at_bins(state: Tensor, offsets: Tensor, bin_length: int) -> Tensor:
    """States (batch, dim, 2), 0 in the rows whose next step starts a bin."""
    return torch.where((offsets % bin_length == 0)[:, None, None], 0, state)


def bin_of_each_step(offsets: Tensor, length: int, bin_length: int, bins: int) -> Tensor:
    """The bin of every step of every row, (batch, length) int64."""
    time = torch.arange(length, device=offsets.device)
    return ((offsets[:, None] + time) // bin_length).clamp(max=max(bins - 1, 0))


def spread_over_steps(coefficients: Tensor, bin_index: Tensor) -> Tensor:
    """From one value a bin, (batch, bins, ...), to one a step, (batch, length, ...)."""
    rows = torch.arange(bin_index.shape[0], device=bin_index.device)[:, None]
    return coefficients[rows, bin_index]
