"""The systems, one per file, behind one contract:

    y, state = mixer(x, state=None, lengths=None)

x and y are (batch, length, dim); the equation opens each file. `state` is what the segment before
returned, None at the start of a sequence; what comes back is None where a mixer cannot stream.
`lengths`, (batch,), are the real steps of each row, beyond which y is 0 and no time passes. A wrong
width, a state of other rows, or one where none can be used, raises ValueError.
`checks.check_mixer` is the contract as code.
"""

from dataclasses import fields
from typing import Any, get_type_hints

from polewise.did_you_mean import did_you_mean
from polewise.mixers.attention import Attention, AttentionConfig, AttentionState
from polewise.mixers.focus import Focus, FocusConfig, FocusState
from polewise.mixers.gated_linear_attention import (
    GatedLinearAttention,
    GatedLinearAttentionConfig,
    GatedLinearAttentionState,
)
from polewise.mixers.hyena import Hyena, HyenaConfig, HyenaState
from polewise.mixers.local_attention import (
    ChunkAttentionConfig,
    LocalAttention,
    SlidingAttentionConfig,
)
from polewise.mixers.long_conv import LongConv, LongConvConfig, LongConvState
from polewise.mixers.mamba2 import Mamba2, Mamba2Config, Mamba2State
from polewise.mixers.mamba3 import Mamba3, Mamba3Config, Mamba3State
from polewise.mixers.mega import Mega, MegaConfig, MegaState
from polewise.mixers.published_focus import (
    PublishedFocus,
    PublishedFocusConfig,
    PublishedFocusState,
)
from polewise.mixers.s4d import S4d, S4dConfig, S4dState
from polewise.options import require_choice, require_type, with_tuples

MIXERS = {
    "focus": FocusConfig,
    "published_focus": PublishedFocusConfig,
    "attention": AttentionConfig,
    "chunk_attention": ChunkAttentionConfig,
    "sliding_attention": SlidingAttentionConfig,
    "mega": MegaConfig,
    "long_conv": LongConvConfig,
    "hyena": HyenaConfig,
    "s4d": S4dConfig,
    "mamba2": Mamba2Config,
    "mamba3": Mamba3Config,
    "gated_linear_attention": GatedLinearAttentionConfig,
}
"""Every mixer by name. A new one is a file, its import and a line here."""


def mixer_config(name: str, dim: int, options: dict[str, Any]) -> Any:
    """Return the configuration of the mixer called `name`.

    Raises:
        ValueError: no mixer or no option of that name, and the nearest is suggested; or a value
            that will not do.
    """
    require_choice("mixer", name, MIXERS)
    types = mixer_option_types(name)
    for option in options:
        if option not in types:
            raise ValueError(
                f"mixer_options must name options of {name} ({', '.join(types)}); got "
                f"{option!r}.{did_you_mean(option, types)}"
            )
    read = {}
    for option, value in options.items():
        read[option] = with_tuples(value, types[option])
        require_type(option, read[option], types[option])  # a mixer of the user's may not ask
    return MIXERS[name](dim=dim, **read)


def mixer_option_types(name: str) -> dict[str, Any]:
    """Return the options of a mixer and their types; `dim` is the model's business."""
    hints = get_type_hints(MIXERS[name])
    return {each.name: hints[each.name] for each in fields(MIXERS[name]) if each.name != "dim"}


def all_options(config: Any) -> dict[str, Any]:
    """Return every option of a mixer's configuration but `dim`, for `mixer_config`.

    What is saved says them all: a default may change one day.
    """
    return {each.name: getattr(config, each.name) for each in fields(config) if each.name != "dim"}


__all__ = [
    "MIXERS",
    "Attention",
    "AttentionConfig",
    "AttentionState",
    "ChunkAttentionConfig",
    "Focus",
    "FocusConfig",
    "FocusState",
    "GatedLinearAttention",
    "GatedLinearAttentionConfig",
    "GatedLinearAttentionState",
    "Hyena",
    "HyenaConfig",
    "HyenaState",
    "LocalAttention",
    "LongConv",
    "LongConvConfig",
    "LongConvState",
    "Mamba2",
    "Mamba2Config",
    "Mamba2State",
    "Mamba3",
    "Mamba3Config",
    "Mamba3State",
    "Mega",
    "MegaConfig",
    "MegaState",
    "PublishedFocus",
    "PublishedFocusConfig",
    "PublishedFocusState",
    "S4d",
    "S4dConfig",
    "S4dState",
    "SlidingAttentionConfig",
    "all_options",
    "mixer_config",
    "mixer_option_types",
]
