"""A stack of blocks with any mixer: itself a mixer, under the same contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polewise.layers import RmsNorm, require_input
from polewise.mixers import mixer_config
from polewise.models.block import Block
from polewise.ops.padding import hide_padding
from polewise.ops.shards import Shards
from polewise.options import require_at_least, require_types


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Options of `Backbone`."""

    mixer: Any
    """The options of a mixer, such as `FocusConfig(dim=64)`: anything with `dim` and `build()`;
    with `build_shared()` for a part computed once for all layers, with
    `in_layer(layer, num_layers)` where the options of layers differ."""
    num_layers: int
    """Blocks."""
    intermediate_size: int
    """Width of the feed-forward; 0 leaves it out."""
    dropout: float = 0.0
    """Share of what each half of a block adds that is dropped in training."""

    @classmethod
    def named(
        cls,
        mixer: str,
        dim: int,
        mixer_options: dict[str, Any],
        *,
        num_layers: int,
        intermediate_size: int | None,
        dropout: float,
    ) -> BackboneConfig:
        """Return blocks of a mixer named in `polewise.mixers.MIXERS`. An `intermediate_size` of
        None takes the feed-forward that goes with it.

        Raises:
            ValueError: no mixer or no option of that name, or a value that will not do.
        """
        config = mixer_config(mixer, dim, mixer_options)
        return cls(
            mixer=config,
            num_layers=num_layers,
            intermediate_size=_feed_forward_width(config, intermediate_size),
            dropout=dropout,
        )

    def __post_init__(self) -> None:
        require_types(self)
        if isinstance(self.mixer, type) or not callable(getattr(self.mixer, "build", None)):
            raise ValueError(
                "mixer must be the options of a mixer, such as FocusConfig(dim=64); got "
                f"{self.mixer!r}. BackboneConfig.named takes a name."
            )
        require_at_least("num_layers", self.num_layers, 1)
        require_at_least("intermediate_size", self.intermediate_size, 0)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}.")


def _feed_forward_width(mixer: Any, width: int | None) -> int:
    """What was asked for; else none beside a mixer that contains one (`contains_feed_forward`), and
    twice the channels elsewhere."""
    if width is not None:
        return width
    return 0 if getattr(mixer, "contains_feed_forward", False) else 2 * mixer.dim


class BackboneState(NamedTuple):
    """The states of all layers, and of the part they share. Batch first."""

    layers: tuple[Any, ...]
    shared: Any


class Backbone(nn.Module):
    """Blocks, then a norm.

    In training, with `gradient_checkpointing`, every `checkpoint_every`th block is recomputed in
    the backward pass by `checkpoint`.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.dim = dim = config.mixer.dim
        build_shared = getattr(config.mixer, "build_shared", lambda: None)
        self.shared = build_shared()
        in_layer = getattr(config.mixer, "in_layer", lambda layer, num_layers: config.mixer)
        layers = [in_layer(layer, config.num_layers) for layer in range(config.num_layers)]
        mixers = [layer.build() for layer in layers]
        self.blocks = nn.ModuleList(
            Block(mixer, dim, config.intermediate_size, config.dropout) for mixer in mixers
        )
        self.norm = RmsNorm(dim)
        self.causal = all(mixer.causal for mixer in mixers)
        self.gradient_checkpointing = False  # tools ask for it by this name
        self.checkpoint_every = 1
        self.checkpoint: Callable[..., Any] = partial(checkpoint, use_reentrant=False)
        self.shards: Shards | None = None

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: BackboneState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
        *,
        read: list[Tensor] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], BackboneState | None]:
        """`y`, and the state for the next segment (None if a mixer cannot stream).

        A list given as `read` receives what each block reads. After `shard_sequence` each
        process works on its piece of the whole `x` that all are given; all return the whole `y`,
        and no state.
        """
        if state is not None and len(state.layers) != len(self.blocks):
            raise ValueError(f"state must hold {len(self.blocks)} layers; got {len(state.layers)}.")
        require_input(x, self.dim, state)
        if self.shards is not None:
            self.shards.require_whole(x, state, lengths)
            x = self.shards.piece(x)
        x = hide_padding(x, lengths)
        given, shared_state = {}, None
        if self.shared is not None:
            features, shared_state = self.shared(x, state.shared if state else None, lengths)
            given["shared"] = features
        states = []
        for layer, block in enumerate(self.blocks):
            before = state.layers[layer] if state else None
            if read is not None:
                read.append(x if self.shards is None else self.shards.whole(x))
            due = self.gradient_checkpointing and layer % self.checkpoint_every == 0
            if due and self.training:
                x, after = self.checkpoint(partial(block, **given), x, before, lengths)
            else:
                x, after = block(x, before, lengths, **given)
            states.append(after)
        y = self.norm(x)
        # Layers may lie on several devices (accelerate's device_map).
        y = hide_padding(y, None if lengths is None else lengths.to(y.device))
        if self.shards is not None:
            return self.shards.whole(y), None
        if any(after is None for after in states):
            return y, None
        return y, BackboneState(tuple(states), shared_state)
