"""The end of a layer with a memory: gate, norm and the map to its width."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from polewise.layers.plain import is_plain
from polewise.layers.rms_norm import RmsNorm
from polewise.ops import gated_projection
from polewise.ops.gated_projection import gated


def gated_output(
    x: Float[Tensor, "batch length channels"],
    gate: Float[Tensor, "batch length channels"],
    norm: nn.Module,
    projection: nn.Module,
) -> Float[Tensor, "batch length dim"]:
    """Gate, norm and projection as one op; where a module was replaced or wrapped (adapters,
    quantisation), the modules are called."""
    gate = gate.to(x.dtype)
    if is_plain(norm, RmsNorm) and is_plain(projection, nn.Linear) and projection.bias is None:
        return gated_projection(x, gate, norm.weight, projection.weight, eps=norm.eps)
    return projection(norm(gated(x, gate)).to(x.dtype))
