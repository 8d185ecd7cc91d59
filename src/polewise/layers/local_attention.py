"""Attention inside chunks or over the last tokens, also of a sequence that is split."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from polewise.layers.mixer_input import steps_before
from polewise.ops import WindowState, chunked_attention
from polewise.ops.shards import Shards


def local_attention(
    q: Float[Tensor, "batch length heads head_dim"],
    k: Float[Tensor, "batch length heads head_dim"],
    v: Float[Tensor, "batch length heads value_dim"],
    chunk_length: int,
    *,
    bias: Float[Tensor, "heads distances"],
    causal: bool = True,
    sliding: bool = False,
    lengths: Int[Tensor, " batch"] | None = None,
    state: WindowState | None = None,
    shards: Shards | None = None,
) -> tuple[Float[Tensor, "batch length heads value_dim"], WindowState | None]:
    """`chunked_attention`; with `shards` of this process's piece, which holds whole chunks."""
    bias = bias.to(q.dtype)
    if shards is None:
        return chunked_attention(
            q, k, v, chunk_length, bias=bias, causal=causal, sliding=sliding, lengths=lengths,
            state=state,
        )  # fmt: skip
    position = steps_before(q, None, shards)
    if sliding:
        keys, values = (shards.window_before(part, chunk_length) for part in (k, v))
        state = WindowState(keys, values, position)
    y, after = chunked_attention(
        q, k, v, chunk_length, bias=bias, causal=causal, sliding=sliding, state=state
    )
    return y, None if after is None else after._replace(position=position + q.shape[1])
