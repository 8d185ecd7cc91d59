"""Multi-head attention over the whole sequence: the Transformer's mixer, to compare with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polewise.layers import ShortConv, require_input, steps_before
from polewise.ops import turn
from polewise.ops.nan_masking import clean_and_mark, put_back
from polewise.ops.padding import hide_padding, real_steps
from polewise.ops.precision import angle_dtype
from polewise.ops.shards import Shards
from polewise.ops.softmax_attention import softmax_attention
from polewise.options import require_at_least, require_multiple, require_types


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Softmax attention to the whole sequence so far, with rotary or learned positions."""

    dim: int
    """Channels."""
    heads: int = 4
    """Attention heads; each has an even number of channels."""
    base: float = 10000.0
    """Rotary positions: pair i of n channels has a wavelength of 2 pi base^(i / n) steps, i from 0
    to n - 1."""
    positions: int = 0
    """Learned position embeddings beside the rotary ones; no sequence may be longer. 0 leaves them
    out."""
    conv_width: int = 0
    """Taps of a short convolution that is added to the sequence before queries, keys and values are
    made of it; 0 leaves it out."""
    causal: bool = True
    """Never look ahead."""

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least("dim", self.dim, 1)
        require_at_least("heads", self.heads, 1)
        require_at_least("positions", self.positions, 0)
        require_at_least("conv_width", self.conv_width, 0)
        require_multiple("dim", self.dim, "2 * heads", 2 * self.heads)
        if not 0 < self.base < math.inf:
            raise ValueError(f"base must be a positive number; got {self.base}.")

    def build(self) -> Attention:
        return Attention(self)


class AttentionState(NamedTuple):
    """All keys and values so far: it grows with the sequence."""

    neighbours: Float[Tensor, "batch history dim"] | None
    """The last inputs of the short convolution, where there is one."""
    keys: Float[Tensor, "batch seen heads head_dim"]
    values: Float[Tensor, "batch seen heads head_dim"]
    position: Int[Tensor, " batch"]
    """Tokens seen by each row; entries of keys and values beyond are empty."""


class Attention(nn.Module):
    r"""$y = W_o \operatorname{softmax}(q k^\top / \sqrt{d})\, v$ with rotary positions.

    Raises:
        ValueError: more steps than there are learned positions.

    Source: Vaswani et al. 2017; Su et al. 2021 (rotary positions).
    """

    filter_parameters: ClassVar[tuple[str, ...]] = ("position_embedding",)

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.causal = config.causal
        self.shards: Shards | None = None
        self.short_conv = ShortConv(config.dim, config.conv_width) if config.conv_width else None
        self.position_embedding = None
        if config.positions:
            self.position_embedding = nn.Parameter(torch.empty(config.positions, config.dim))
        self.to_query = nn.Linear(config.dim, config.dim)
        self.to_key = nn.Linear(config.dim, config.dim)
        self.to_value = nn.Linear(config.dim, config.dim)
        self.to_output = nn.Linear(config.dim, config.dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.position_embedding is not None:
            nn.init.normal_(self.position_embedding, std=0.02)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: AttentionState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], AttentionState | None]:
        """Mix the sequence, as the contract in `polewise.mixers` says."""
        require_input(x, self.config.dim, state, causal=self.causal)
        x = hide_padding(x, lengths)
        length, steps = x.shape[1], real_steps(x, lengths)
        if self.shards is not None:
            self.shards.require_whole(x, state, lengths)
        position = steps_before(x, state.position if state else None, self.shards)
        time = position[:, None] + torch.arange(length, device=x.device)
        x, neighbours = self._with_positions(x, time, state, lengths)
        q, k, v = (
            project(x).unflatten(-1, (self.config.heads, -1))
            for project in (self.to_query, self.to_key, self.to_value)
        )
        # At the start of a sequence all rows have one clock.
        angle = self._angles(time[:1] if state is None else time, q.dtype)
        q, k = turn(q, angle), turn(k, angle)
        k, v = hide_padding(k, lengths), hide_padding(v, lengths)
        if state is not None:
            k, v = _appended(state.keys, k, time), _appended(state.values, v, time)
        if self.shards is not None:
            k, v = (self.shards.gather(part).movedim(0, 1).flatten(1, 2) for part in (k, v))
        visible = None  # all up to the step itself
        if state is not None or self.shards is not None or not self.causal:
            key_time = torch.arange(k.shape[1], device=x.device)
            seen = key_time <= time[..., None] if self.causal else key_time < steps[:, None, None]
            visible = seen.expand(*time.shape, len(key_time))
        y = hide_padding(self.to_output(_attend(q, k, v, visible)), lengths)
        if not self.causal:
            return y, None
        if self.shards is not None:  # keys of later pieces are not this one's past
            k, v = (part[:, : (self.shards.rank + 1) * length] for part in (k, v))
        return y, AttentionState(neighbours, k, v, position + steps)

    def _with_positions(
        self, x: Tensor, time: Tensor, state: AttentionState | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The sequence with its learned positions and its short convolution added, and the
        convolution's state."""
        if self.position_embedding is not None:
            if state is None and lengths is None:
                self._require_positions(x.shape[1] * (self.shards.size if self.shards else 1))
            now = self._embedding_at(hide_padding(time, lengths), self.position_embedding)
            x = hide_padding(x + now.to(x.dtype), lengths)
        if self.short_conv is None:
            return x, None
        mixed, neighbours = self.short_conv(x, state.neighbours if state else None, lengths)
        return hide_padding(x + mixed, lengths), neighbours

    def _embedding_at(self, time: Tensor, embedding: Tensor) -> Tensor:
        try:
            return functional.embedding(time, embedding)
        except IndexError:  # on a CPU; an accelerator reports it in its own way
            self._require_positions(int(time.max()) + 1)
            raise

    def _require_positions(self, end: int) -> None:
        if end > self.config.positions:
            raise ValueError(
                f"x must end within positions = {self.config.positions} steps, the learned ones; "
                f"it ends at {end}."
            )

    def _angles(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        """How far pairs of channels have turned."""
        half = self.config.dim // self.config.heads // 2
        wide = angle_dtype(time.device)
        rates = self.config.base ** (-torch.arange(half, device=time.device, dtype=wide) / half)
        angle = (time[..., None] * rates).remainder(2 * torch.pi)
        return angle.to(torch.promote_types(dtype, torch.float32))[:, :, None]


def _appended(old: Tensor, new: Tensor, time: Tensor) -> Tensor:
    """Keys or values so far, (batch, seen, heads, head_dim), with the new ones at their times."""
    room = functional.pad(old.to(new.dtype), (0, 0, 0, 0, 0, new.shape[1]))
    return room.scatter_add(1, time[..., None, None].expand_as(new), new)


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Softmax attention, (batch, length, channels), to the keys that are visible to each step,
    (batch, length, keys); None is all up to the step itself."""
    heads = (q.shape[2], -1)
    (clean_k, clean_v), marks = clean_and_mark(k.flatten(2), v.flatten(2))
    # What sees nothing, as padding may, sees everything: a softmax of nothing is NaN.
    mask = None if visible is None else visible[:, None] | ~visible.any(-1)[:, None, :, None]
    y = softmax_attention(
        q.transpose(1, 2),
        clean_k.unflatten(-1, heads).transpose(1, 2),
        clean_v.unflatten(-1, heads).transpose(1, 2),
        attn_mask=mask,
        is_causal=visible is None,
    )
    y = y.transpose(1, 2).flatten(2)
    if marks is None:
        return y
    if visible is None:
        return put_back(y, marks.cumsum(1)[..., None])
    return put_back(y, visible.to(marks.dtype) @ marks[..., None])
