r"""Attention that looks nearby, and nothing else: what a filter must be measured against.

    q, k, v = W_q x, W_k x, W_v x
    y       = W_o Attention(q, k, v)        inside chunks, or over the last tokens

The window, its learned position bias and its state are those that Focus and its publication have
where they are asked for, so what these do better comes from filters, gates and memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from polewise.layers import PositionBias, local_attention, require_input
from polewise.ops import WindowState
from polewise.ops.padding import hide_padding
from polewise.ops.shards import Shards
from polewise.options import require_at_least, require_multiple, require_types


@dataclass(frozen=True, kw_only=True)
class ChunkAttentionConfig:
    """Softmax attention inside chunks, and nothing else."""

    sliding: ClassVar[bool] = False

    dim: int
    """Channels."""
    chunk_length: int = 64
    """Tokens that attention sees at once."""
    heads: int = 4
    """Attention heads."""
    causal: bool = True
    """Never look ahead. False: each token sees its whole chunk."""

    def __post_init__(self) -> None:
        _require_valid(self)

    def build(self) -> LocalAttention:
        return LocalAttention(self)


@dataclass(frozen=True, kw_only=True)
class SlidingAttentionConfig:
    """Softmax attention to the last tokens, and nothing else."""

    sliding: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    dim: int
    """Channels."""
    chunk_length: int = 64
    """Tokens that each token sees, itself among them."""
    heads: int = 4
    """Attention heads."""

    def __post_init__(self) -> None:
        _require_valid(self)

    def build(self) -> LocalAttention:
        return LocalAttention(self)


def _require_valid(config: ChunkAttentionConfig | SlidingAttentionConfig) -> None:
    require_types(config)
    for name in ("dim", "chunk_length", "heads"):
        require_at_least(name, getattr(config, name), 1)
    require_multiple("dim", config.dim, "heads", config.heads)


class LocalAttention(nn.Module):
    r"""Multi-head attention inside chunks of M tokens, or over the last M, `(batch, length, dim)`
    to the same shape.

    $$ y_i = W_o \sum_j \operatorname{softmax}_j\!\Big(\frac{q_i^\top k_j}{\sqrt d} + b_{i-j}\Big)
       v_j $$

    Its state is the last M keys and values.

    Source: Vaswani et al. 2017; Beltagy et al. 2020 (sliding windows); Ma et al. 2023 (chunks).
    """

    def __init__(self, config: ChunkAttentionConfig | SlidingAttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.causal = config.causal
        self.shards: Shards | None = None
        self.to_query_key_value = nn.Linear(config.dim, 3 * config.dim)
        self.position_bias = PositionBias(config.heads, config.chunk_length, causal=config.causal)
        self.to_output = nn.Linear(config.dim, config.dim)

    @property
    def units(self) -> dict[str, int]:
        """Lengths by option name; a piece of a split sequence is a multiple of each."""
        return {"chunk_length": self.config.chunk_length}

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: WindowState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], WindowState | None]:
        """Mix the sequence, as the contract in `polewise.mixers` says."""
        require_input(x, self.config.dim, state, causal=self.causal)
        if self.shards is not None:
            self.shards.require_whole(x, state, lengths, **self.units)
        x = hide_padding(x, lengths)
        parts = self.to_query_key_value(x).unflatten(-1, (3, self.config.heads, -1))
        q, k, v = parts.unbind(2)
        y, state = local_attention(
            q, k, v, self.config.chunk_length, bias=self.position_bias(), causal=self.causal,
            sliding=self.config.sliding, lengths=lengths, state=state, shards=self.shards,
        )  # fmt: skip
        return hide_padding(self.to_output(y.flatten(2)), lengths), state
