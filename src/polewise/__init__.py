"""Polewise: causal sequence models from second-order IIR filters.

Layers     Focus, PublishedFocus, Attention, LocalAttention, Mega, LongConv, Hyena, S4d,
           Mamba2, Mamba3, GatedLinearAttention and their configurations
Models     PolewiseConfig, PolewiseModel, PolewiseForCausalLM, PolewiseForSequenceClassification,
           PolewiseForForecasting, PolewiseCache (with the extra `models`), Backbone,
           BackboneConfig and generate in plain torch
Ops        direct_form_filter, normal_form_filter, associative_filter, gated_filter,
           long_conv, short_conv, chunked_attention, rms_norm, gated_projection, turn,
           circular_filter; hide_padding; KernelSpectrum, WindowState
Filters    polewise.filters: coefficients, poles, responses, SciPy's sos
States     polewise.states: select_batch, detach, to, num_bytes, save, load
Processes  shard_sequence, unshard_sequence: one long sequence split over many
Contract   check_mixer, for mixers of your own
"""

from __future__ import annotations

from typing import Any

from polewise import filters, models, states
from polewise.layers.sharding import shard_sequence, unshard_sequence
from polewise.mixers import (
    MIXERS,
    Attention,
    AttentionConfig,
    ChunkAttentionConfig,
    Focus,
    FocusConfig,
    GatedLinearAttention,
    GatedLinearAttentionConfig,
    Hyena,
    HyenaConfig,
    LocalAttention,
    LongConv,
    LongConvConfig,
    Mamba2,
    Mamba2Config,
    Mamba3,
    Mamba3Config,
    Mega,
    MegaConfig,
    PublishedFocus,
    PublishedFocusConfig,
    S4d,
    S4dConfig,
    SlidingAttentionConfig,
)
from polewise.mixers.checks import check_mixer
from polewise.models import HUGGING_FACE, Backbone, BackboneConfig, generate
from polewise.ops import (
    KernelSpectrum,
    WindowState,
    associative_filter,
    chunked_attention,
    circular_filter,
    direct_form_filter,
    gated_filter,
    gated_projection,
    long_conv,
    normal_form_filter,
    rms_norm,
    short_conv,
    turn,
)
from polewise.ops.padding import hide_padding

__version__ = "0.1.0"

__all__ = [
    "MIXERS",
    "Attention",
    "AttentionConfig",
    "Backbone",
    "BackboneConfig",
    "ChunkAttentionConfig",
    "Focus",
    "FocusConfig",
    "GatedLinearAttention",
    "GatedLinearAttentionConfig",
    "Hyena",
    "HyenaConfig",
    "KernelSpectrum",
    "LocalAttention",
    "LongConv",
    "LongConvConfig",
    "Mamba2",
    "Mamba2Config",
    "Mamba3",
    "Mamba3Config",
    "Mega",
    "MegaConfig",
    "PublishedFocus",
    "PublishedFocusConfig",
    "S4d",
    "S4dConfig",
    "SlidingAttentionConfig",
    "WindowState",
    "associative_filter",
    "check_mixer",
    "chunked_attention",
    "circular_filter",
    "direct_form_filter",
    "filters",
    "gated_filter",
    "gated_projection",
    "generate",
    "hide_padding",
    "long_conv",
    "normal_form_filter",
    "rms_norm",
    "shard_sequence",
    "short_conv",
    "states",
    "turn",
    "unshard_sequence",
    *HUGGING_FACE,
]


def __getattr__(name: str) -> Any:
    if name in HUGGING_FACE:
        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
