"""The systems, one per file, behind one contract:

    y, state = mixer(x, state=None, lengths=None)

x and y are (batch, length, dim). `checks.check_mixer` is the contract as code.
"""

from polewise.mixers.associative import Associative, AssociativeConfig, AssociativeState
from polewise.mixers.attention import Attention, AttentionConfig, FullAttentionState
from polewise.mixers.focus import Focus, FocusConfig, FocusState
from polewise.mixers.mega import Mega, MegaConfig, MegaState

MIXERS = {
    "focus": FocusConfig,
    "associative": AssociativeConfig,
    "attention": AttentionConfig,
    "mega": MegaConfig,
}
"""Every mixer by name. A new one is a file and a line here."""

__all__ = [
    "MIXERS",
    "Associative",
    "AssociativeConfig",
    "AssociativeState",
    "Attention",
    "AttentionConfig",
    "Focus",
    "FocusConfig",
    "FocusState",
    "FullAttentionState",
    "Mega",
    "MegaConfig",
    "MegaState",
]
