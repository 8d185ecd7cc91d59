"""The mathematics: tensors in, tensors out.

Every op but four returns `(y, state)` and obeys one rule: a sequence cut anywhere, its pieces run
one after another with the returned state, gives the outputs and the state of one pass. `rms_norm`,
`gated_projection` and `turn` look at single steps and have no state; `circular_filter`, the
published formula, is for study.
"""

from polewise.ops.associative_filter import associative_filter
from polewise.ops.chunked_attention import WindowState, chunked_attention
from polewise.ops.circular_filter import circular_filter
from polewise.ops.direct_form import direct_form_filter
from polewise.ops.gated_filter import gated_filter
from polewise.ops.gated_projection import gated_projection
from polewise.ops.long_conv import KernelSpectrum, long_conv
from polewise.ops.normal_form import normal_form_filter
from polewise.ops.rms_norm import rms_norm
from polewise.ops.short_conv import short_conv
from polewise.ops.turn import turn

__all__ = [
    "KernelSpectrum",
    "WindowState",
    "associative_filter",
    "chunked_attention",
    "circular_filter",
    "direct_form_filter",
    "gated_filter",
    "gated_projection",
    "long_conv",
    "normal_form_filter",
    "rms_norm",
    "short_conv",
    "turn",
]
