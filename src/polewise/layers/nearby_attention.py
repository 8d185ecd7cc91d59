"""Attention inside chunks or over the last tokens, also of a sequence that is split."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polewise.ops import AttentionState, chunked_attention
from polewise.ops.shards import Shards


def nearby_attention(
    q: Float[Tensor, "batch length heads head_dim"],
    k: Float[Tensor, "batch length heads head_dim"],
    v: Float[Tensor, "batch length heads value_dim"],
    chunk_length: int,
    *,
    bias: Float[Tensor, "heads distances"],
    causal: bool = True,
    sliding: bool = False,
    lengths: Int[Tensor, " batch"] | None = None,
    state: AttentionState | None = None,
    shards: Shards | None = None,
) -> tuple[Float[Tensor, "batch length heads value_dim"], AttentionState | None]:
    """`chunked_attention`; with `shards` of this process's piece, which holds whole chunks."""
    bias = bias.to(q.dtype)
    if shards is None:
        return chunked_attention(
            q, k, v, chunk_length, bias=bias, causal=causal, sliding=sliding, lengths=lengths,
            state=state,
        )  # fmt: skip
    batch, length = q.shape[:2]
    position = torch.full((batch,), shards.rank * length, dtype=torch.int64, device=q.device)
    if sliding:
        keys, values = (shards.window_before(part, chunk_length) for part in (k, v))
        state = AttentionState(keys, values, position)
    y, after = chunked_attention(
        q, k, v, chunk_length, bias=bias, causal=causal, sliding=sliding, state=state
    )
    return y, None if after is None else after._replace(position=position + length)
