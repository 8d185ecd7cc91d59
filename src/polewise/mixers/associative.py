"""The associative memory as a mixer of its own, with nothing local."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from polewise.layers import AssociativeMemory, AssociativeMemoryState, memory_heads
from polewise.ops.padding import hide_padding
from polewise.ops.shards import Shards
from polewise.options import require_at_least


@dataclass(frozen=True, kw_only=True)
class AssociativeConfig:
    """Options of `Associative`."""

    dim: int
    """Channels."""
    heads: int | None = None
    """Independent memories; None is one for every 32 channels."""
    key_dim: int = 32
    """Channels of a key."""
    value_dim: int = 64
    """Channels of a value."""
    turning: bool = False
    """Complex poles."""
    causal: bool = True
    """Look back only; False sums both directions."""

    def __post_init__(self) -> None:
        for name in ("dim", "key_dim", "value_dim"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least("heads", self.memories, 1)

    @property
    def memories(self) -> int:
        return memory_heads(self.dim, self.heads)

    def build(self) -> Associative:
        return Associative(self)


class AssociativeState(NamedTuple):
    """What a segment hands to the next one. Batch first, constant in length."""

    memory: AssociativeMemoryState


class Associative(nn.Module):
    r"""$y = W_o\,\operatorname{memory}(x)$, see `AssociativeMemory`.

    Source: ours.
    """

    def __init__(self, config: AssociativeConfig) -> None:
        super().__init__()
        self.config = config
        self.causal = config.causal
        self.shards: Shards | None = None
        self.memory = AssociativeMemory(
            config.dim,
            config.memories,
            config.key_dim,
            config.value_dim,
            turning=config.turning,
            causal=config.causal,
        )
        channels = config.memories * config.value_dim
        self.to_output = nn.Linear(channels, config.dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: AssociativeState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], AssociativeState | None]:
        if state is not None and not self.causal:
            raise ValueError("state must be None without causal: both directions need it all.")
        x = hide_padding(x, lengths)
        recalled, memory = self.memory(x, state.memory if state else None, lengths)
        y = hide_padding(self.to_output(recalled), lengths)
        return y, None if memory is None else AssociativeState(memory)
