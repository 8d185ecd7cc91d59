"""Parts that mixers and models are made of."""

from polewise.layers.adaptive_filters import (
    AdaptiveFilters,
    Realisation,
    require_filters,
    unit_noise_gain,
)
from polewise.layers.bin_features import BinFeatures, BinFeaturesState, Features
from polewise.layers.damped_ema import DampedEma
from polewise.layers.feed_forward import FeedForward
from polewise.layers.fixed_filters import fixed_filters
from polewise.layers.gated_output import gated_output
from polewise.layers.heads_for import heads_for
from polewise.layers.local_attention import local_attention
from polewise.layers.mixer_input import require_input, steps_before
from polewise.layers.plain import is_plain
from polewise.layers.position_bias import PositionBias
from polewise.layers.recurrent_embedder import RecurrentEmbedder
from polewise.layers.regularised_conv import RegularisedConv
from polewise.layers.rms_norm import RmsNorm
from polewise.layers.short_conv import ShortConv
from polewise.layers.step_size import StepSize

__all__ = [
    "AdaptiveFilters",
    "BinFeatures",
    "BinFeaturesState",
    "DampedEma",
    "Features",
    "FeedForward",
    "PositionBias",
    "Realisation",
    "RecurrentEmbedder",
    "RegularisedConv",
    "RmsNorm",
    "ShortConv",
    "StepSize",
    "fixed_filters",
    "gated_output",
    "heads_for",
    "is_plain",
    "local_attention",
    "require_filters",
    "require_input",
    "steps_before",
    "unit_noise_gain",
]
