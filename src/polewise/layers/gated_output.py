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
    """`norm` and `projection`, as one op where both are the plain modules they were made as.

    Those that were replaced or are watched (an adapter's, a quantised one, one with hooks, or whose
    numbers are fetched when it is called) are called as modules.
    """
    gate = gate.to(x.dtype)
    if _is_plain(norm, RmsNorm) and _is_plain(projection, nn.Linear):
        return gated_norm(x, gate, norm.weight, projection=projection.weight, eps=norm.eps)
    return projection(norm(x, gate))


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    watched = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    plain = type(module) is kind and type(module.weight) is nn.Parameter
    own = getattr(module, "bias", None) is None and "forward" not in vars(module)
    return plain and own and not any(watched)
