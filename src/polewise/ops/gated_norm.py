"""What a memory lets out: a gate, then root-mean-square normalisation.

u = (x + skip v) SiLU(gate),    y = weight u / sqrt(mean(u^2) + eps)
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from polewise.ops._checks import (
    accumulator_dtype,
    refuse_second_derivative,
    require_like,
    require_sequence,
    usable_backend,
)


def gated_norm(
    x: Float[Tensor, "batch length heads value_dim"],
    v: Float[Tensor, "batch length heads value_dim"],
    gate: Float[Tensor, "batch length channels"],
    skip: Float[Tensor, " heads"],
    weight: Float[Tensor, " group"],
    *,
    eps: float = 1e-5,
    backend: Literal["reference", "torch", "cpu"] | None = None,
) -> Float[Tensor, "batch length channels"]:
    r"""Add $d v$ to what a memory returned, gate it, and give it norm $\sqrt{n}$.

    $$ u = (x + d\,v) \odot \operatorname{SiLU}(g), \qquad
       y = w \odot \frac{u}{\sqrt{\operatorname{mean}(u^2) + \epsilon}} $$

    The mean is over one head's values or over those of all heads, whichever `weight` has a number
    for.

    Args:
        x: what was read, by head.
        v: the values themselves.
        gate: $g$, the channels of all heads side by side.
        skip: $d$, one number a head.
        weight: $w$, of `value_dim` or `heads * value_dim` numbers.
        eps: $\epsilon$.
        backend: "reference" is the equation in float64; "torch" tensor operations; "cpu" compiled
            loops, in float32 alone, which keep nothing but the inputs. None takes the fastest
            that can.

    Returns:
        y: in the dtype of `x` or of `weight`, the wider.

    Raises:
        ValueError: a shape or device is not as written above, or the backend cannot run here.
        TypeError: a dtype is not as written above.

    Source:
        Dao & Gu 2024 (Mamba-2), gate before norm.
    """
    axes = "(batch, length, heads, value_dim)"
    require_sequence("x", x, axes)
    batch, length, heads, value_dim = x.shape
    require_like("v", v, tuple(x.shape), x, axes)
    require_like("gate", gate, (batch, length, heads * value_dim), x, "(batch, length, channels)")
    require_like("skip", skip, (heads,), x, "(heads,)")
    if weight.shape not in ((value_dim,), (heads * value_dim,)):
        raise ValueError(
            f"weight must have shape (value_dim,) = ({value_dim},) or (heads * value_dim,) = "
            f"({heads * value_dim},); got {tuple(weight.shape)}."
        )
    run = _BACKENDS[_backend(backend, x, v, gate, skip, weight)]
    return run(x, v, gate, skip, weight, eps)


def _backend(backend: str | None, *tensors: Tensor) -> str:
    all_float32 = all(each.dtype == torch.float32 for each in tensors)
    if backend is None and (not all_float32 or tensors[0].shape[1] <= 1):
        return "torch"
    name = usable_backend(backend, tuple(_BACKENDS), tensors[0], triton=False)
    if name == "cpu" and not all_float32:
        raise ValueError("backend 'cpu' must have float32 tensors throughout. Use None.")
    return name


def _definition(x, v, gate, skip, weight, eps):
    """The equation, in float64."""
    g = gate.double().unflatten(-1, x.shape[2:])
    u = (x.double() + skip.double()[:, None] * v.double()) * g / (1 + (-g).exp())
    u = u.flatten(2).unflatten(-1, (-1, len(weight)))
    y = weight.double() * u / (u.square().mean(-1, keepdim=True) + eps).sqrt()
    return y.flatten(2).to(torch.promote_types(x.dtype, weight.dtype))


def _by_tensors(x, v, gate, skip, weight, eps):
    u = (x + skip[:, None].to(x.dtype) * v).flatten(2) * functional.silu(gate)
    u = u.to(torch.promote_types(accumulator_dtype(u), weight.dtype))
    grouped = u.unflatten(-1, (-1, len(weight)))
    y = functional.rms_norm(grouped, weight.shape, weight.to(u.dtype), eps).flatten(2)
    return y.to(torch.promote_types(x.dtype, weight.dtype))


def _compiled(x, v, gate, skip, weight, eps):
    return _forward_op(x, v, gate, skip, weight, eps)


_BACKENDS = {"reference": _definition, "torch": _by_tensors, "cpu": _compiled}


@torch.library.custom_op(
    "polewise::gated_norm_forward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor v, Tensor gate, Tensor skip, Tensor weight, float eps) -> Tensor",
)
def _forward_op(
    x: Tensor, v: Tensor, gate: Tensor, skip: Tensor, weight: Tensor, eps: float
) -> Tensor:
    from polewise.ops._gated_norm_cpu import forward  # numba takes half a second to import

    return forward(x, v, gate, skip, weight, eps)


@_forward_op.register_fake
def _(x, v, gate, skip, weight, eps):
    return x.new_empty(gate.shape)


@torch.library.custom_op(
    "polewise::gated_norm_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_y, Tensor x, Tensor v, Tensor gate, Tensor skip, Tensor weight, "
    "float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad_y: Tensor, x: Tensor, v: Tensor, gate: Tensor, skip: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from polewise.ops._gated_norm_cpu import backward

    return backward(grad_y, x, v, gate, skip, weight, eps)


@_backward_op.register_fake
def _(grad_y, x, v, gate, skip, weight, eps):
    return tuple(like.new_empty(like.shape) for like in (x, v, gate, skip, weight))


_backward_op.register_autograd(refuse_second_derivative)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_y):
    return *_backward_op(grad_y, *ctx.saved_tensors, ctx.eps), None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
