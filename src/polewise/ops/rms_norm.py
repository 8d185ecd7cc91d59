"""Root-mean-square normalisation of every step.

y = weight x / sqrt(mean(x^2) + eps)
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from polewise.ops._backends import float32_alone, refuse_second_derivative, usable_backend
from polewise.ops._checks import require_axes, require_groups
from polewise.ops.precision import accumulator_dtype


def rms_norm(
    x: Float[Tensor, "batch length channels"],
    weight: Float[Tensor, " group"],
    *,
    eps: float = 1e-5,
    backend: Literal["reference", "torch", "cpu"] | None = None,
) -> Float[Tensor, "batch length channels"]:
    r"""Give every step norm $\sqrt{n}$, in groups of $n$ channels.

    $$ y = w \odot \frac{x}{\sqrt{\operatorname{mean}(x^2) + \epsilon}} $$

    The mean is over groups of as many channels as `weight` has numbers: all channels, or those of
    one head.

    Args:
        x: the sequence, the channels of all heads side by side.
        weight: $w$; its length divides the channels.
        eps: $\epsilon$.
        backend: "reference" is the equation in float64; "torch" tensor operations; "cpu" compiled
            loops, in float32 alone, which keep nothing but the inputs. None takes the fastest that
            can.

    Returns:
        y: in the dtype of `x` or of `weight`, the wider.

    Raises:
        ValueError: a shape or device is not as written above, or the backend cannot run here.
        TypeError: a dtype is not as written above.

    Source:
        Zhang & Sennrich 2019.
    """
    require_axes("x", x, "(batch, length, channels)")
    require_groups(weight, x)
    return _BACKENDS[_backend(backend, x, weight)](x, weight, eps)


def _backend(backend: str | None, x: Tensor, weight: Tensor) -> str:
    if backend is None and x.shape[1] <= 1:
        return "torch"  # a single step costs less than calling a compiled loop
    return usable_backend(backend, _BACKENDS, x, cpu=float32_alone(x, weight))


def in_float64(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The equation, not rounded yet."""
    groups = x.double().unflatten(-1, (-1, len(weight)))
    scale = (groups.square().mean(-1, keepdim=True) + eps).sqrt()
    return (weight.double() * groups / scale).flatten(2)


def _definition(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return in_float64(x, weight, eps).to(torch.promote_types(x.dtype, weight.dtype))


def by_tensors(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In tensor operations, the mean in float32 or wider."""
    wide = torch.promote_types(accumulator_dtype(x), weight.dtype)
    groups = x.to(wide)
    if len(weight) < x.shape[2]:
        groups = groups.unflatten(-1, (-1, len(weight)))
    y = functional.rms_norm(groups, weight.shape, weight.to(wide), eps)
    return y.flatten(2).to(torch.promote_types(x.dtype, weight.dtype))


def _compiled(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _forward_op(x, weight, eps)


_BACKENDS = {"reference": _definition, "torch": by_tensors, "cpu": _compiled}


@torch.library.custom_op(
    "polewise::rms_norm_forward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor weight, float eps) -> Tensor",
)
def _forward_op(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    from polewise.ops._rms_norm_cpu import forward  # numba takes half a second to import

    return forward(x, weight, eps)


@_forward_op.register_fake
def _(x, weight, eps):
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "polewise::rms_norm_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_y, Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
)
def _backward_op(grad_y: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from polewise.ops._rms_norm_cpu import backward

    return backward(grad_y, x, weight, eps)


@_backward_op.register_fake
def _(grad_y, x, weight, eps):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


_backward_op.register_autograd(refuse_second_derivative)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_y):
    return *_backward_op(grad_y, *ctx.saved_tensors, ctx.eps), None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
