"""The end of a layer with a memory: gate, norm and the map to its width."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from polewise.layers.plain import is_plain
from polewise.layers.rms_norm import RmsNorm
from polewise.ops import gated_projection


def gated_output(
    x: Float[Tensor, "batch length channels"],
    gate: Float[Tensor, "batch length channels"],
    norm: RmsNorm,
    projection: nn.Linear,
) -> Float[Tensor, "batch length dim"]:
    """`norm` and `projection`, as one op where both are the plain modules they were made as; others
    are called as modules."""
    plain = is_plain(norm, RmsNorm) and is_plain(projection, nn.Linear)
    if plain and projection.bias is None:
        return gated_projection(x, gate.to(x.dtype), norm.weight, projection.weight, eps=norm.eps)
    wide = torch.float32 if x.dtype == torch.float16 else x.dtype  # a product may leave its range
    gated = x.to(wide) * functional.silu(gate.to(wide))
    return projection(norm(gated).to(x.dtype))
