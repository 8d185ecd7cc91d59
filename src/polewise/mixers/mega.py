r"""MEGA: a damped moving average, attention in chunks, and gates.

For a sequence x, in the order of the original:

    n       = RMSNorm(x)
    v       = SiLU(W_v n)
    m       = SiLU(EMA(n))
    u, r    = sigmoid(W_u m),  SiLU(W_r m)                 update and reset gate
    q, k    = g_0 * z + b_0,  g_1 * z + b_1,  z = SiLU(W_z m)
    a       = Attention(q, k, v) inside chunks
    h       = SiLU(W_h m + U_h (r * a))
    output  = u * (h - x)

A block adds x to that: u h + (1 - u) x, the share of the sequence as it came, not of its norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polewise.layers import DampedEma, PositionBias, RmsNorm, local_attention, require_input
from polewise.ops import WindowState
from polewise.ops.padding import hide_padding
from polewise.ops.shards import Shards
from polewise.options import require_at_least, require_types


@dataclass(frozen=True, kw_only=True)
class MegaConfig:
    """A damped moving average, attention in chunks, and gates."""

    dim: int
    """Channels."""
    chunk_length: int = 64
    """Tokens that attention sees at once."""
    key_dim: int | None = None
    """Channels of queries and keys; None is a quarter of `dim`."""
    value_dim: int | None = None
    """Channels of values and reset gate; None is twice `dim`."""
    memories: int = 16
    """Moving averages in each channel."""
    causal: bool = True
    """Never look ahead."""

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("dim", "chunk_length", "memories"):
            require_at_least(name, getattr(self, name), 1)
        for name in ("key_dim", "value_dim"):
            if getattr(self, name) is not None:
                require_at_least(name, getattr(self, name), 1)

    @property
    def keys(self) -> int:
        """Channels of queries and keys."""
        return self.key_dim or max(self.dim // 4, 1)

    @property
    def values(self) -> int:
        """Channels of values and of the reset gate."""
        return self.value_dim or 2 * self.dim

    def build(self) -> Mega:
        return Mega(self)


class MegaState(NamedTuple):
    """What a segment hands to the next one. Batch first, constant in length."""

    ema: Float[Tensor, "batch memories dim"]
    attention: WindowState


class Mega(nn.Module):
    """The moving-average gated mixer.

    Without causality a second moving average runs backwards.

    Source: Ma et al. 2023 (arXiv 2209.10655), the softmax form, with its published start.
    """

    own_norm = True

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.config = config
        self.causal = config.causal
        self.shards: Shards | None = None
        dim, keys, values = config.dim, config.keys, config.values
        self.norm = RmsNorm(dim)
        self.ema = DampedEma(dim, config.memories)
        if not config.causal:
            self.reverse_ema = DampedEma(dim, config.memories, skip=False)
        self.to_value = nn.Linear(dim, values)
        self.from_average = nn.Linear(dim, 2 * dim + keys + values)
        self.scale = nn.Parameter(torch.empty(2, keys))
        self.shift = nn.Parameter(torch.empty(2, keys))
        self.position_bias = PositionBias(1, config.chunk_length, causal=config.causal)
        self.from_attention = nn.Linear(values, dim, bias=False)
        self.reset_parameters()

    @property
    def units(self) -> dict[str, int]:
        """Lengths by option name; a piece of a split sequence is a multiple of each."""
        return {"chunk_length": self.config.chunk_length}

    def reset_parameters(self) -> None:
        for linear in (self.to_value, self.from_average, self.from_attention):
            nn.init.normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        nn.init.normal_(self.scale, std=0.02)
        nn.init.zeros_(self.shift)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: MegaState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], MegaState | None]:
        """Mix the sequence, as the contract in `polewise.mixers` says."""
        config = self.config
        require_input(x, self.config.dim, state, causal=self.causal)
        if self.shards is not None:
            self.shards.require_whole(x, state, lengths, **self.units)
        x = hide_padding(x, lengths)
        n = self.norm(x)
        average, ema = self.ema(n, state.ema if state else None, lengths)
        if not self.causal:
            average = average + self.reverse_ema(n.flip(1))[0].flip(1)
        v = functional.silu(self.to_value(n))
        sizes = [config.dim, config.keys, config.values, config.dim]
        update, z, reset, candidate = self.from_average(functional.silu(average)).split(sizes, -1)
        z = functional.silu(z)
        # Under autocast the products are narrower than the parameters.
        scale, shift = self.scale.to(z.dtype), self.shift.to(z.dtype)
        q, k = z * scale[0] + shift[0], z * scale[1] + shift[1]
        attended, attention = local_attention(
            q[:, :, None], k[:, :, None], v[:, :, None], config.chunk_length,
            bias=self.position_bias(), causal=config.causal, lengths=lengths,
            state=state.attention if state else None, shards=self.shards,
        )  # fmt: skip
        gated = functional.silu(reset) * attended[:, :, 0]
        candidate = functional.silu(candidate + self.from_attention(gated))
        y = hide_padding(update.sigmoid() * (candidate - x), lengths)
        if attention is None:
            return y, None
        return y, MegaState(ema, attention)
