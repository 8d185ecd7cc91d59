"""Models: a backbone in plain torch, and the Hugging Face family around it.

The Hugging Face names need the extra `models` (in a checkout `pip install ".[models]"`).
"""

from __future__ import annotations

import importlib
from typing import Any

from polewise.models.backbone import Backbone, BackboneConfig, BackboneState
from polewise.models.block import Block
from polewise.models.generation import Generation, generate
from polewise.models.presets import PRESETS

HUGGING_FACE = (
    "PolewiseCache",
    "PolewiseConfig",
    "PolewiseForCausalLM",
    "PolewiseForForecasting",
    "PolewiseForSequenceClassification",
    "PolewiseModel",
)

__all__ = [
    "PRESETS",
    "Backbone",
    "BackboneConfig",
    "BackboneState",
    "Block",
    "Generation",
    "generate",
    *HUGGING_FACE,
]


def __getattr__(name: str) -> Any:
    """Import transformers only when one of its names is asked for."""
    if name not in HUGGING_FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module("polewise.models.huggingface")
    except ImportError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in ("transformers", "accelerate"):
            raise
        absent = isinstance(missing, ModuleNotFoundError) and missing.name == package
        what = "the package" if absent else "another version of"
        raise ImportError(
            f"{name} needs {what} {package} ({missing}): in a checkout of Polewise "
            'pip install ".[models]".',
            name=missing.name,
        ) from missing
    return getattr(module, name)
