"""Pairs of channels as complex numbers, turned: rotary positions, poles that turn.

y[i] + j y[n + i] = e^{j angle[i]} (x[i] + j x[n + i])

Turning queries and keys, each by the sum theta of the angles so far, turns the memory between them:
their products contain e^{j (theta[t] - theta[s])}. So a memory with complex poles runs as one with
real poles.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from polewise.ops._backends import refuse_second_derivative, usable_backend
from polewise.ops._checks import require_floating
from polewise.ops.precision import accumulator_dtype, dtype_name


def turn(
    x: Float[Tensor, "*shape channels"],
    angle: Float[Tensor, "*#shape pairs"],
    *,
    backend: Literal["torch", "cpu"] | None = None,
) -> Float[Tensor, "*shape channels"]:
    r"""Turn pairs of channels.

    $$ y_i + j\,y_{n+i} = e^{j \theta_i} (x_i + j\,x_{n+i}), \qquad i < n $$

    Args:
        x: channels last. Those after the first $2n$ come back as they are.
        angle: $\theta$ in radians for each of $n$ pairs, in a dtype that holds it well.
        backend: "torch" is the equation in tensor operations; "cpu" compiled loops, which keep
            nothing but `y`, for sequences (batch, length, heads, channels) in float32 and angles
            (1 or batch, length, 1 or heads, pairs). None takes the fastest that can.

    Returns:
        y: like `x`, in its dtype. "cpu" keeps it for the gradient: change no number of it in place.

    Raises:
        ValueError: there are fewer channels than `angle` turns, its other axes are not those of
            `x` or 1, it is on another device, or the backend cannot run here.
        TypeError: `x` or `angle` is no floating tensor.

    Source:
        Su et al. 2021 (rotary positions), who turn by multiples of the position.
    """
    require_floating("x", x)
    require_floating("angle", angle)
    if 2 * angle.shape[-1] > x.shape[-1]:
        raise ValueError(
            f"x must have at least 2 * pairs = {2 * angle.shape[-1]} channels; got {x.shape[-1]}."
        )
    leading = zip(x.shape[-2::-1], angle.shape[-2::-1], strict=False)
    if angle.ndim > x.ndim or any(given not in (size, 1) for size, given in leading):
        raise ValueError(
            f"angle must have the axes of x before the last, or 1 in place of some: "
            f"{tuple(x.shape[:-1])}; got {tuple(angle.shape[:-1])}."
        )
    if angle.device != x.device:
        raise ValueError(f"angle must be on {x.device} like x; got {angle.device}.")
    return _BACKENDS[_backend(backend, x, angle)](x, angle)


def _backend(backend: str | None, x: Tensor, angle: Tensor) -> str:
    fits = (
        x.dtype == angle.dtype == torch.float32
        and x.ndim == angle.ndim == 4
        and angle.shape[0] in (1, x.shape[0])
        and angle.shape[1] == x.shape[1]
        and angle.shape[2] in (1, x.shape[2])
    )
    if backend is None and fits and x.shape[1] <= 1:
        return "torch"  # a single step costs less than calling a compiled loop
    takes = None
    if not fits:
        takes = (
            "float32 x, (batch, length, heads, channels), and angle, (1 or batch, length, 1 or "
            f"heads, pairs); got {dtype_name(x.dtype)} {tuple(x.shape)} and "
            f"{dtype_name(angle.dtype)} {tuple(angle.shape)}"
        )
    return usable_backend(backend, _BACKENDS, x, cpu=takes)


def _by_tensors(x: Tensor, angle: Tensor) -> Tensor:
    pairs = angle.shape[-1]
    wide = x.to(accumulator_dtype(x))
    cosine, sine = angle.cos().to(wide.dtype), angle.sin().to(wide.dtype)
    real, imag, rest = wide.split([pairs, pairs, x.shape[-1] - 2 * pairs], -1)
    turned = [real * cosine - imag * sine, imag * cosine + real * sine, rest]
    return torch.cat(turned, -1).to(x.dtype)


def _compiled(x: Tensor, angle: Tensor) -> Tensor:
    return _forward_op(x, angle)


_BACKENDS = {"torch": _by_tensors, "cpu": _compiled}


@torch.library.custom_op(
    "polewise::turn_forward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor angle) -> Tensor",
)
def _forward_op(x: Tensor, angle: Tensor) -> Tensor:
    from polewise.ops._turn_cpu import forward  # numba takes half a second to import

    return forward(x, angle)


@_forward_op.register_fake
def _(x, angle):
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "polewise::turn_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_y, Tensor y, Tensor angle) -> (Tensor, Tensor)",
)
def _backward_op(grad_y: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    from polewise.ops._turn_cpu import backward

    return backward(grad_y, y, angle)


@_backward_op.register_fake
def _(grad_y, y, angle):
    return y.new_empty(y.shape), angle.new_empty(angle.shape)


_backward_op.register_autograd(refuse_second_derivative)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(output, inputs[1])


def _backward(ctx, grad_y):
    return _backward_op(grad_y, *ctx.saved_tensors)


_forward_op.register_autograd(_backward, setup_context=_setup_context)
