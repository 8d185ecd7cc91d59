"""A batch as it comes, brought to rows that mixers know: one sequence each, padded at the right.

The one place where masks and packed documents are understood. `restore` puts what a mixer
made of the rows back where its tokens stood, with 0 where there was none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Rows(NamedTuple):
    """Sequences, and the way back to where their tokens stood."""

    x: Float[Tensor, "rows longest dim"]
    lengths: Int[Tensor, " rows"] | None
    """Real steps of each row; None for all."""
    restore: Callable[[Tensor], Tensor]


def real_tokens_first(
    x: Float[Tensor, "batch length dim"], real: Bool[Tensor, "batch length"] | None
) -> Rows:
    """Each row's real tokens in order, then the others: padding and holes take no time."""
    if real is None:
        return Rows(x, None, lambda y: y)
    if x.shape[1] == 1:
        return Rows(x, real.sum(1), lambda y: y)
    order = (~real).to(torch.int8).argsort(dim=1, stable=True)
    back = order.argsort(dim=1)
    return Rows(_take(x, order), real.sum(1), lambda y: _take(y, back.to(y.device)))


def separate_documents(
    x: Float[Tensor, "batch length dim"], seq_idx: Int[Tensor, "batch length"]
) -> Rows:
    """A row for every document; one ends where its number changes, below 0 is padding."""
    if not seq_idx.numel():
        return Rows(x, None, lambda y: y)
    first = first_of_documents(seq_idx).flatten()
    document = first.cumsum(0) - 1
    token = torch.arange(len(document), device=x.device)
    place = token - token[first][document]
    real = (seq_idx >= 0).flatten()
    where = (document[real], place[real])
    lengths = torch.bincount(document[real], minlength=int(document[-1]) + 1)
    rows = x.new_zeros(len(lengths), int(lengths.max()), x.shape[2])

    def restore(y: Tensor) -> Tensor:
        flat = y.new_zeros(real.shape[0], y.shape[2])
        to, row, step = (index.to(y.device) for index in (token[real], *where))
        return flat.index_put((to,), y[row, step]).view(*seq_idx.shape, -1)

    return Rows(rows.index_put(where, x.flatten(0, 1)[real]), lengths, restore)


def first_of_documents(seq_idx: Int[Tensor, "batch length"]) -> Bool[Tensor, "batch length"]:
    """Where a document begins."""
    first = torch.ones_like(seq_idx, dtype=torch.bool)
    first[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    return first


def _take(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))
