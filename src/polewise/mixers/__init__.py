"""The systems, one per file, behind one contract:

    y, state = mixer(x, state=None, lengths=None)

x and y are (batch, length, dim). `checks.check_mixer` is the contract as code.
"""

from polewise.mixers.associative import Associative, AssociativeConfig, AssociativeState
from polewise.mixers.attention import Attention, AttentionConfig, FullAttentionState
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
from polewise.mixers.s4d import S4d, S4dConfig, S4dState

MIXERS = {
    "focus": FocusConfig,
    "associative": AssociativeConfig,
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
"""Every mixer by name. A new one is a file and a line here."""

__all__ = [
    "MIXERS",
    "Associative",
    "AssociativeConfig",
    "AssociativeState",
    "Attention",
    "AttentionConfig",
    "ChunkAttentionConfig",
    "Focus",
    "FocusConfig",
    "FocusState",
    "FullAttentionState",
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
    "S4d",
    "S4dConfig",
    "S4dState",
    "SlidingAttentionConfig",
]
