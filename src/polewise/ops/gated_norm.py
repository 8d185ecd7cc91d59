"""What a memory lets out: a gate, then root-mean-square normalisation, which also stands alone.

u = x SiLU(gate) or x,    n = weight u / sqrt(mean(u^2) + eps),    y = n or P n
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from polewise.ops._checks import (
    refuse_second_derivative,
    require_floating,
    require_like,
    require_sequence,
    usable_backend,
)
from polewise.ops.precision import accumulator_dtype


def gated_norm(
    x: Float[Tensor, "batch length channels"],
    gate: Float[Tensor, "batch length channels"] | None,
    weight: Float[Tensor, " group"],
    *,
    projection: Float[Tensor, "dim channels"] | None = None,
    eps: float = 1e-5,
    backend: Literal["reference", "torch", "cpu"] | None = None,
) -> Float[Tensor, "batch length out"]:
    r"""Gate what a memory returned, give it norm $\sqrt{n}$, and map it.

    $$ u = x \odot \operatorname{SiLU}(g), \qquad
       n = w \odot \frac{u}{\sqrt{\operatorname{mean}(u^2) + \epsilon}}, \qquad
       y = n \ \text{ or } \ P n $$

    The mean is over groups of as many channels as `weight` has numbers: one head's values, or those
    of all heads.

    Args:
        x: what was read, the channels of all heads side by side.
        gate: $g$; None leaves it out, $u = x$.
        weight: $w$; its length divides the channels.
        projection: $P$, as `torch.nn.Linear` has it; None leaves $n$ as it is. As an operation of
            its own it would keep $n$ for its gradient, and hand back a gradient as large.
        eps: $\epsilon$.
        backend: "reference" is the equation in float64; "torch" tensor operations, of which
            `torch.autocast` narrows the map alone; "cpu" compiled loops, in float32 alone, which
            keep nothing but the inputs. None takes the fastest that can.

    Returns:
        y: in the dtype of `x` or of `weight`, the wider, but for what autocast narrows.

    Raises:
        ValueError: a shape or device is not as written above, or the backend cannot run here.
        TypeError: a dtype is not as written above.

    Source:
        Dao & Gu 2024 (Mamba-2), gate before norm.
    """
    axes = "(batch, length, channels)"
    require_sequence("x", x, axes)
    if gate is not None:
        require_like("gate", gate, tuple(x.shape), x, axes)
    require_floating("weight", weight, " (group,)")
    if weight.device != x.device:
        raise ValueError(f"weight must be on {x.device} like the sequence; got {weight.device}.")
    if weight.ndim != 1 or not len(weight) or x.shape[2] % len(weight):
        raise ValueError(
            f"weight must have shape (group,), of a size that divides {x.shape[2]} channels; got "
            f"{tuple(weight.shape)}."
        )
    if projection is not None:
        shape = (len(projection), x.shape[2])
        require_like("projection", projection, shape, x, "(dim, channels)")
    run = _BACKENDS[_backend(backend, x, gate, weight, projection)]
    return run(x, gate, weight, projection, eps)


def _backend(
    backend: str | None, x: Tensor, gate: Tensor | None, weight: Tensor, projection: Tensor | None
) -> str:
    dtypes = {each.dtype for each in (x, gate, weight, projection) if each is not None}
    on_cpu = x.device.type == "cpu"  # autocast knows nothing of some others, such as "meta"
    narrowed = projection is not None and on_cpu and torch.is_autocast_enabled("cpu")
    if backend is None and (narrowed or x.shape[1] <= 1):
        return "torch"
    takes = None
    if dtypes != {torch.float32}:
        takes = f"float32 tensors throughout; got {', '.join(sorted(map(str, dtypes)))}"
    return usable_backend(backend, _BACKENDS, x, cpu=takes)


def _definition(x, gate, weight, projection, eps):
    """The equation, in float64."""
    u = x.double()
    if gate is not None:
        g = gate.double()
        u = u * g / (1 + (-g).exp())
    u = u.unflatten(-1, (-1, len(weight)))
    y = weight.double() * u / (u.square().mean(-1, keepdim=True) + eps).sqrt()
    y = y.flatten(2)
    if projection is not None:
        y = y @ projection.double().T
    return y.to(torch.promote_types(x.dtype, weight.dtype))


def _by_tensors(x, gate, weight, projection, eps):
    given = torch.promote_types(x.dtype, weight.dtype)
    wide = torch.promote_types(accumulator_dtype(x), weight.dtype)
    if gate is not None and x.dtype == torch.float16:  # a product may leave its range
        x, gate = x.to(wide), gate.to(wide)
    u = (x if gate is None else x * functional.silu(gate)).to(wide)
    if len(weight) < u.shape[2]:
        u = u.unflatten(-1, (-1, len(weight)))
    y = functional.rms_norm(u, weight.shape, weight.to(u.dtype), eps)
    y = y.flatten(2).to(given)
    return y if projection is None else functional.linear(y, projection.to(y.dtype))


def _compiled(x, gate, weight, projection, eps):
    if gate is not None and projection is not None:
        return _projected_op(x, gate, weight, projection, eps)
    y = _forward_op(x, gate, weight, eps)
    return y if projection is None else functional.linear(y, projection)


_BACKENDS = {"reference": _definition, "torch": _by_tensors, "cpu": _compiled}


@torch.library.custom_op(
    "polewise::gated_norm_forward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor? gate, Tensor weight, float eps) -> Tensor",
)
def _forward_op(x: Tensor, gate: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    from polewise.ops._gated_norm_cpu import forward  # numba takes half a second to import

    return forward(x, gate, weight, eps)


@_forward_op.register_fake
def _(x, gate, weight, eps):
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "polewise::gated_norm_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_y, Tensor x, Tensor? gate, Tensor weight, float eps) "
    "-> (Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad_y: Tensor, x: Tensor, gate: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gate (empty without one) and weight."""
    from polewise.ops._gated_norm_cpu import backward

    return backward(grad_y, x, gate, weight, eps)


@_backward_op.register_fake
def _(grad_y, x, gate, weight, eps):
    by_gate = x.new_empty(0) if gate is None else gate.new_empty(gate.shape)
    return x.new_empty(x.shape), by_gate, weight.new_empty(weight.shape)


_backward_op.register_autograd(refuse_second_derivative)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_y):
    x, gate, weight = ctx.saved_tensors
    by_x, by_gate, by_weight = _backward_op(grad_y, x, gate, weight, ctx.eps)
    return by_x, None if gate is None else by_gate, by_weight, None


_forward_op.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op(
    "polewise::projected_norm_forward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor gate, Tensor weight, Tensor projection, float eps) -> Tensor",
)
def _projected_op(
    x: Tensor, gate: Tensor, weight: Tensor, projection: Tensor, eps: float
) -> Tensor:
    from polewise.ops._projected_norm_cpu import forward

    return forward(x, gate, weight, projection, eps)


@_projected_op.register_fake
def _(x, gate, weight, projection, eps):
    return x.new_empty(*x.shape[:2], projection.shape[0])


@torch.library.custom_op(
    "polewise::projected_norm_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_y, Tensor x, Tensor gate, Tensor weight, Tensor projection, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def _projected_backward_op(
    grad_y: Tensor, x: Tensor, gate: Tensor, weight: Tensor, projection: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from polewise.ops._projected_norm_cpu import backward

    return backward(grad_y, x, gate, weight, projection, eps)


@_projected_backward_op.register_fake
def _(grad_y, x, gate, weight, projection, eps):
    return tuple(like.new_empty(like.shape) for like in (x, gate, weight, projection))


_projected_backward_op.register_autograd(refuse_second_derivative)


def _projected_backward(ctx, grad_y):
    return *_projected_backward_op(grad_y, *ctx.saved_tensors, ctx.eps), None


_projected_op.register_autograd(_projected_backward, setup_context=_setup_context)
