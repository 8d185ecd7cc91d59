"""A short causal convolution, one small kernel per channel: neighbours meet.

z[t] = bias + sum_i kernel[i] x[t - i],    y[t] = z[t], or SiLU(z[t])
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from polewise.ops._backends import float32_alone, refuse_second_derivative, usable_backend
from polewise.ops._checks import checked_lengths, require_axes, require_like
from polewise.ops.padding import append, hide_padding, newest
from polewise.ops.precision import accumulator_dtype


def short_conv(
    x: Float[Tensor, "batch length dim"],
    kernel: Float[Tensor, "width dim"],
    bias: Float[Tensor, " dim"] | None = None,
    *,
    silu: bool = False,
    lengths: Int[Tensor, " batch"] | None = None,
    state: Float[Tensor, "batch history dim"] | None = None,
    backend: Literal["reference", "torch", "cpu"] | None = None,
) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch history dim"]]:
    r"""Weigh each step and the few before it, channel by channel.

    $$ z_t = b + \sum_{i=0}^{w-1} h_i x_{t-i}, \qquad
       y_t = z_t \ \text{ or } \ \operatorname{SiLU}(z_t) $$

    Nothing is transformed, so a NaN does not reach earlier outputs.

    Args:
        x: the sequence.
        kernel: $h$, the present step's weight first.
        bias: $b$; None is 0.
        silu: pass the result through $z / (1 + e^{-z})$.
        lengths: real steps in each row; later ones do not exist and give 0.
        state: the `width - 1` inputs before the first; None is silence.
        backend: "reference" is the sum in float64, step by step; "torch" a sum of shifted
            sequences; "cpu" compiled loops, in float32 alone. None takes the fastest that can.

    Returns:
        y: like `x`, in its dtype.
        state: the last `width - 1` inputs of each row.

    Raises:
        ValueError: a shape or device is not as written above, or the backend cannot run here.
        TypeError: a dtype is not as written above.

    Source:
        Poli et al. 2023 (Hyena), Dao & Gu 2024 (Mamba-2), who follow it with a SiLU.
    """
    require_axes("x", x)
    batch, _, dim = x.shape
    require_axes("kernel", kernel, "(width, dim)")
    width = kernel.shape[0]
    if width < 1:
        raise ValueError("kernel must have at least 1 tap; got 0.")
    require_like("kernel", kernel, (width, dim), x, "(width, dim)")
    if bias is not None:
        require_like("bias", bias, (dim,), x, "(dim,)")
    if state is None:
        state = x.new_zeros(batch, width - 1, dim)
    else:
        require_like("state", state, (batch, width - 1, dim), x, "(batch, width - 1, dim)")
        state = state.to(x.dtype)
    lengths = checked_lengths(lengths, x)
    x = hide_padding(x, lengths)
    kernel = kernel.to(accumulator_dtype(x))
    bias = kernel.new_zeros(dim) if bias is None else bias.to(kernel.dtype)
    run = _BACKENDS[_backend(backend, x)]
    y = run(x, state, kernel, bias, silu)
    return hide_padding(y, lengths), newest(state, x, lengths)


def _backend(backend: str | None, x: Tensor) -> str:
    if backend is None and x.shape[1] <= 1:
        return "torch"  # a single step is the sum itself: any other form costs more to call
    return usable_backend(backend, _BACKENDS, x, cpu=float32_alone(x))


def _definition(x: Tensor, state: Tensor, kernel: Tensor, bias: Tensor, silu: bool) -> Tensor:
    """The sum, step by step, in float64."""
    past = append(state, x).double()
    steps = []
    for t in range(x.shape[1]):
        window = past[:, t : t + len(kernel)].flip(1)
        z = bias.double() + (kernel.double() * window).sum(1)
        steps.append(z / (1 + (-z).exp()) if silu else z)
    return torch.stack(steps, 1).to(x.dtype) if steps else x.clone()


def _sum_of_shifts(x: Tensor, state: Tensor, kernel: Tensor, bias: Tensor, silu: bool) -> Tensor:
    past, width, length = append(state, x), len(kernel), x.shape[1]
    z = bias
    for tap in range(width):
        z = torch.addcmul(z, kernel[tap], past[:, width - 1 - tap : width - 1 - tap + length])
    return (functional.silu(z) if silu else z).to(x.dtype)


def _compiled(x: Tensor, state: Tensor, kernel: Tensor, bias: Tensor, silu: bool) -> Tensor:
    return _forward_op(x, state, kernel, bias, silu)


_BACKENDS = {"reference": _definition, "torch": _sum_of_shifts, "cpu": _compiled}


@torch.library.custom_op(
    "polewise::short_conv_forward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor state, Tensor kernel, Tensor bias, bool silu) -> Tensor",
)
def _forward_op(x: Tensor, state: Tensor, kernel: Tensor, bias: Tensor, silu: bool) -> Tensor:
    from polewise.ops._short_conv_cpu import forward  # numba takes half a second to import

    return forward(x, state, kernel, bias, silu)


@_forward_op.register_fake
def _(x, state, kernel, bias, silu):
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "polewise::short_conv_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_y, Tensor x, Tensor state, Tensor kernel, Tensor bias, bool silu) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad_y: Tensor, x: Tensor, state: Tensor, kernel: Tensor, bias: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from polewise.ops._short_conv_cpu import backward

    return backward(grad_y, x, state, kernel, bias, silu)


@_backward_op.register_fake
def _(grad_y, x, state, kernel, bias, silu):
    return tuple(like.new_empty(like.shape) for like in (x, state, kernel, bias))


_backward_op.register_autograd(refuse_second_derivative)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_y):
    return *_backward_op(grad_y, *ctx.saved_tensors, ctx.silu), None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
