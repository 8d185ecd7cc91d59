"""The end of a layer: a gate, root-mean-square normalisation, and the map to the layer's width.

u = x SiLU(gate),    n = weight u / sqrt(mean(u^2) + eps),    y = P n
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from polewise.ops._backends import float32_alone, refuse_second_derivative, usable_backend
from polewise.ops._checks import require_axes, require_groups, require_like
from polewise.ops.rms_norm import by_tensors, in_float64


def gated_projection(
    x: Float[Tensor, "batch length channels"],
    gate: Float[Tensor, "batch length channels"],
    weight: Float[Tensor, " group"],
    projection: Float[Tensor, "dim channels"],
    *,
    eps: float = 1e-5,
    backend: Literal["reference", "torch", "cpu"] | None = None,
) -> Float[Tensor, "batch length dim"]:
    r"""Gate a sequence, give it norm $\sqrt{n}$ in groups of $n$ channels, and map it.

    $$ u = x \odot \operatorname{SiLU}(g), \qquad
       n = w \odot \frac{u}{\sqrt{\operatorname{mean}(u^2) + \epsilon}}, \qquad
       y = P n $$

    One op, because a projection of its own would keep $n$ for its gradient, and make one as large.

    Args:
        x: what a memory or filters returned, the channels of all heads side by side.
        gate: $g$.
        weight: $w$; its length, that of a group, divides the channels.
        projection: $P$, as `torch.nn.Linear` has it.
        eps: $\epsilon$.
        backend: "reference" is the equation in float64; "torch" tensor operations, of which
            `torch.autocast` narrows the map alone; "cpu" compiled loops, in float32 alone, which
            keep nothing but the inputs. None takes the fastest that can.

    Returns:
        y: in the wider dtype of `x` and `weight`, unless autocast narrows it.

    Raises:
        ValueError: a shape or device is not as written above, or the backend cannot run here.
        TypeError: a dtype is not as written above.

    Source:
        Dao & Gu 2024 (Mamba-2), gate before norm.
    """
    axes = "(batch, length, channels)"
    require_axes("x", x, axes)
    require_like("gate", gate, tuple(x.shape), x, axes)
    require_groups(weight, x)
    require_like("projection", projection, (len(projection), x.shape[2]), x, "(dim, channels)")
    run = _BACKENDS[_backend(backend, x, gate, weight, projection)]
    return run(x, gate, weight, projection, eps)


def _backend(backend: str | None, x: Tensor, *others: Tensor) -> str:
    on_cpu = x.device.type == "cpu"  # autocast knows nothing of some others, such as "meta"
    if backend is None and (x.shape[1] <= 1 or (on_cpu and torch.is_autocast_enabled("cpu"))):
        return "torch"
    return usable_backend(backend, _BACKENDS, x, cpu=float32_alone(x, *others))


def _definition(x, gate, weight, projection, eps):
    """The equation, in float64."""
    g = gate.double()
    n = in_float64(x.double() * g / (1 + (-g).exp()), weight, eps)
    return (n @ projection.double().T).to(torch.promote_types(x.dtype, weight.dtype))


def gated(x: Tensor, gate: Tensor) -> Tensor:
    """x SiLU(gate); of float16 in float32, for the product may leave its range."""
    if x.dtype == torch.float16:
        x, gate = x.float(), gate.float()
    return x * functional.silu(gate)


def _by_tensors(x, gate, weight, projection, eps):
    given = torch.promote_types(x.dtype, weight.dtype)
    n = by_tensors(gated(x, gate), weight, eps)
    return functional.linear(n.to(given), projection.to(given))


def _compiled(x, gate, weight, projection, eps):
    return _forward_op(x, gate, weight, projection, eps)


_BACKENDS = {"reference": _definition, "torch": _by_tensors, "cpu": _compiled}


@torch.library.custom_op(
    "polewise::gated_projection_forward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor gate, Tensor weight, Tensor projection, float eps) -> Tensor",
)
def _forward_op(x: Tensor, gate: Tensor, weight: Tensor, projection: Tensor, eps: float) -> Tensor:
    from polewise.ops._gated_projection_cpu import forward  # numba takes half a second to import

    return forward(x, gate, weight, projection, eps)


@_forward_op.register_fake
def _(x, gate, weight, projection, eps):
    return x.new_empty(*x.shape[:2], projection.shape[0])


@torch.library.custom_op(
    "polewise::gated_projection_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_y, Tensor x, Tensor gate, Tensor weight, Tensor projection, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad_y: Tensor, x: Tensor, gate: Tensor, weight: Tensor, projection: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from polewise.ops._gated_projection_cpu import backward

    return backward(grad_y, x, gate, weight, projection, eps)


@_backward_op.register_fake
def _(grad_y, x, gate, weight, projection, eps):
    return tuple(like.new_empty(like.shape) for like in (x, gate, weight, projection))


_backward_op.register_autograd(refuse_second_derivative)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_y):
    return *_backward_op(grad_y, *ctx.saved_tensors, ctx.eps), None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
