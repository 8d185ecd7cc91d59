"""Right padding: what lies beyond a row's length does not exist."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from polewise.ops._checks import checked_lengths, require_rows
from polewise.ops.precision import without_autocast


def hide_padding(
    x: Shaped[Tensor, "batch length ..."],
    lengths: Int[Tensor, " batch"] | None,
    fill: int = 0,
) -> Shaped[Tensor, "batch length ..."]:
    """`x` with `fill` from each row's length on; NaN there disappears, also from gradients.

    Raises:
        ValueError, TypeError: `lengths` is not one integer a row.
    """
    if lengths is None:
        return x
    require_rows("lengths", lengths, x)
    real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return torch.where(real.reshape(*real.shape, *[1] * (x.ndim - 2)), x, fill)


def real_steps(
    x: Float[Tensor, "batch length ..."], lengths: Int[Tensor, " batch"] | None
) -> Int[Tensor, " batch"]:
    """How many steps of each row are real, int64.

    Raises:
        ValueError, TypeError: `lengths` is not one integer a row.
    """
    lengths = checked_lengths(lengths, x)
    if lengths is None:
        return torch.full((x.shape[0],), x.shape[1], dtype=torch.int64, device=x.device)
    return lengths


def newest(
    before: Float[Tensor, "batch kept ..."],
    new: Float[Tensor, "batch length ..."],
    lengths: Int[Tensor, " batch"] | None,
) -> Float[Tensor, "batch kept ..."]:
    """The last entries of each row, as many as `before` holds: what a window must remember."""
    kept, length = before.shape[1], new.shape[1]
    if lengths is None and length >= kept:
        return new[:, length - kept :].clone()  # a view would keep the whole segment in memory
    if lengths is None:
        return append(before[:, length:], new)
    index = real_steps(new, lengths)[:, None] + torch.arange(kept, device=new.device)
    index = index.reshape(*index.shape, *[1] * (new.ndim - 2)).expand(-1, -1, *new.shape[2:])
    return append(before, new).gather(1, index)


def append(
    before: Shaped[Tensor, "batch kept ..."], new: Shaped[Tensor, "batch length ..."]
) -> Shaped[Tensor, "batch all ..."]:
    """What was before, then `new`, in the dtype of `new`, which autocast would change."""
    with without_autocast(new.device):
        return torch.cat([before.to(new.dtype), new], 1)
