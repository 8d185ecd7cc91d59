r"""Gated linear attention: keys and values add up in a state that forgets.

For a sequence x, in each of H heads:

    q, k, v, g = W x
    S[t]       = diag(decay[t]) S[t-1] + k[t] v[t]^T
    y[t]       = S[t]^T q[t] / sqrt(key_dim)
    output     = W_o (SiLU(g) * RMSNorm(y))

with one of three decays:

    "key"       sigmoid(W_2 W_1 x + b)^(1/16), for every key channel      gated linear attention
    "head"      sigmoid(W x + b)^(1/16), one a head                       gated RetNet
    "constant"  1 - 2^(-5 - h) for head h, whatever was read              RetNet
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polewise.layers import RmsNorm, ShortConv, heads_for, require_input
from polewise.ops import associative_filter, gated_filter
from polewise.ops.padding import hide_padding
from polewise.ops.precision import accumulator_dtype
from polewise.options import require_at_least, require_types

TEMPERATURE = 16
"""Decays are sigmoids to the power of 1 / 16: near 1 from the start, as published."""
RANK = 16
"""Width between W_1 and W_2, as published."""


@dataclass(frozen=True, kw_only=True)
class GatedLinearAttentionConfig:
    """Linear attention whose state forgets, by a rate for every key channel."""

    causal: ClassVar[bool] = True

    dim: int
    """Channels."""
    heads: int | None = None
    """Heads. None is one for every 256 channels, the published size of a head."""
    key_dim: int | None = None
    """Channels of a key in each head; None is `dim / heads / 2`."""
    value_dim: int | None = None
    """Channels of a value in each head; None is `dim / heads`."""
    decay: Literal["key", "head", "constant"] = "key"
    """Chosen by every token, for every key channel or for a head; or constant."""
    conv_width: int = 0
    """Taps of a short convolution of queries, keys and values, with SiLU; 0 leaves it out, as
    published."""

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least("dim", self.dim, 1)
        require_at_least("heads", self.num_heads, 1)
        for name in ("key_dim", "value_dim"):
            if getattr(self, name) is not None:
                require_at_least(name, getattr(self, name), 1)
        require_at_least("conv_width", self.conv_width, 0)

    @property
    def num_heads(self) -> int:
        """Heads, chosen or by default."""
        return heads_for(self.dim, 256) if self.heads is None else self.heads

    @property
    def head_key_dim(self) -> int:
        """Channels of a key in each head."""
        return self.key_dim or max(self.dim // (2 * self.num_heads), 1)

    @property
    def head_value_dim(self) -> int:
        """Channels of a value in each head."""
        return self.value_dim or max(self.dim // self.num_heads, 1)

    def build(self) -> GatedLinearAttention:
        return GatedLinearAttention(self)


class GatedLinearAttentionState(NamedTuple):
    """What a segment hands to the next one. Batch first, constant in length."""

    neighbours: Float[Tensor, "batch history channels"] | None
    """The last inputs of the short convolution, where there is one."""
    products: Float[Tensor, "batch heads key_dim value_dim"]


class GatedLinearAttention(nn.Module):
    """Linear attention with decay, output norm and gate.

    RetNet's rotation of queries and keys is left out of the constant form, which is then that of
    Lightning Attention.

    Source: Yang et al. 2024 (arXiv 2312.06635); Sun et al. 2023 (arXiv 2307.08621) for the
    constant decay, Sun et al. 2024 (arXiv 2405.05254) for one a head.
    """

    causal = True

    def __init__(self, config: GatedLinearAttentionConfig) -> None:
        super().__init__()
        self.config = config
        keys = config.num_heads * config.head_key_dim
        values = config.num_heads * config.head_value_dim
        self.parts = [keys, keys, values]
        self.to_query_key_value = nn.Linear(config.dim, sum(self.parts), bias=False)
        self.to_gate = nn.Linear(config.dim, values, bias=False)
        self.short_conv: ShortConv | None = None
        self.to_decay: nn.Module | None = None
        if config.conv_width:
            self.short_conv = ShortConv(sum(self.parts), config.conv_width, silu=True)
        if config.decay == "key":
            self.to_decay = nn.Sequential(
                nn.Linear(config.dim, RANK, bias=False), nn.Linear(RANK, keys)
            )
        elif config.decay == "head":
            self.to_decay = nn.Linear(config.dim, config.num_heads)
        self.norm = RmsNorm(config.head_value_dim)
        self.to_output = nn.Linear(values, config.dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: GatedLinearAttentionState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], GatedLinearAttentionState]:
        """Mix the sequence, as the contract in `polewise.mixers` says."""
        config = self.config
        require_input(x, config.dim, state, causal=self.causal)
        x = hide_padding(x, lengths)
        mixed, neighbours = self.to_query_key_value(x), None
        if self.short_conv is not None:
            before = state.neighbours if state else None
            mixed, neighbours = self.short_conv(mixed, before, lengths)
        q, k, v = (p.unflatten(-1, (config.num_heads, -1)) for p in mixed.split(self.parts, -1))
        q = q * config.head_key_dim**-0.5

        decay, products = self._decay(x), state.products if state else None
        if config.decay == "key":
            decay = decay.unflatten(-1, (config.num_heads, -1))
            y, products = gated_filter(q, k, v, decay, lengths=lengths, state=products)
        else:
            products = None if products is None else products[:, :, None]
            y, products = associative_filter(q, k, v, decay, lengths=lengths, state=products)
            products = products[:, :, 0]

        y = functional.silu(self.to_gate(x)) * self.norm(y).flatten(2)
        return (
            hide_padding(self.to_output(y), lengths),
            GatedLinearAttentionState(neighbours, products),
        )

    def _decay(self, x: Tensor) -> Tensor:
        """In (0, 1), float32 or wider: one a head, or one a key channel of all heads."""
        dtype = accumulator_dtype(x)
        if self.to_decay is None:
            order = torch.arange(self.config.num_heads, dtype=dtype, device=x.device)
            return (1 - 2 ** (-5 - order)).expand(*x.shape[:2], -1)
        return (functional.logsigmoid(self.to_decay(x).to(dtype)) / TEMPERATURE).exp()
