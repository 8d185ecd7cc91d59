"""The end of a layer with a memory: gate, norm and the map to its width."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from polewise.layers.rms_norm import RmsNorm
from polewise.ops import gated_norm


def gated_output(
    x: Float[Tensor, "batch length channels"],
    gate: Float[Tensor, "batch length channels"],
    norm: RmsNorm,
    projection: nn.Linear,
) -> Float[Tensor, "batch length dim"]:
    """`gated_norm` and `projection`, as one op where that is the plain linear map it was made as.

    One that was replaced or is watched (an adapter's, a quantised one, one with hooks) is called as
    a module.
    """
    gate = gate.to(x.dtype)
    if _is_plain(projection):
        return gated_norm(x, gate, norm.weight, projection=projection.weight)
    return projection(gated_norm(x, gate, norm.weight))


def _is_plain(module: nn.Module) -> bool:
    watched = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    plain = type(module) is nn.Linear and type(module.weight) is nn.Parameter
    return plain and module.bias is None and not any(watched)
