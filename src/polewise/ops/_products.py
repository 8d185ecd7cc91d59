"""Filtered products of keys and values on a CPU, as an operation PyTorch knows.

S[t] = p[t] S[t-1] + k[t] v[t]^T,    y[t] = Re(q[t]^T S[t])

with one pole for a head, or one for each of its key channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polewise.ops._checks import refuse_second_derivative

SEGMENT = 32
"""Steps between two kept states: the gradient recomputes the states in between."""


@torch.library.custom_op(
    "polewise::products_forward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor q, Tensor k, Tensor v, Tensor pole, Tensor state) -> (Tensor, Tensor, Tensor)",
)
def filtered_products(
    q: Tensor, k: Tensor, v: Tensor, pole: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the states at every 32nd step, which the gradient restarts from.

    All of one dtype. q, k: (batch, length, 1 or heads, key_dim). v: (batch, length, heads,
    value_dim). pole: (batch, length, heads, parts, 1 or key_dim), real part before imaginary.
    state: (batch, heads, parts, key_dim, value_dim).
    """
    from polewise.ops._products_cpu import forward  # numba takes half a second to import

    return forward(q, k, v, pole, state)


@filtered_products.register_fake
def _(q, k, v, pole, state):
    batch, length, heads, _ = v.shape
    starts = (batch, heads, -(-length // SEGMENT), *state.shape[2:])
    return v.new_empty(v.shape), state.new_empty(state.shape), state.new_empty(starts)


@torch.library.custom_op(
    "polewise::products_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_y, Tensor grad_last, Tensor q, Tensor k, Tensor v, Tensor pole, "
    "Tensor starts) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad_y: Tensor,
    grad_last: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pole: Tensor,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from polewise.ops._products_cpu import backward

    return backward(grad_y, grad_last, q, k, v, pole, starts)


@_backward_op.register_fake
def _(grad_y, grad_last, q, k, v, pole, starts):
    return tuple(like.new_empty(like.shape) for like in (q, k, v, pole, grad_last))


_backward_op.register_autograd(refuse_second_derivative)


def _setup_context(ctx, inputs, output):
    *sequences, _ = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)  # or zeros are made for the kept states at every call
    ctx.save_for_backward(*sequences, output[2])


def _backward(ctx, grad_y, grad_last, _):
    saved = ctx.saved_tensors  # once: activation checkpoints hand them out no second time
    _, _, v, _, starts = saved
    if grad_y is None:
        grad_y = torch.zeros_like(v)
    if grad_last is None:
        grad_last = starts.new_zeros(*starts.shape[:2], *starts.shape[3:])
    return _backward_op(grad_y, grad_last, *saved)


filtered_products.register_autograd(_backward, setup_context=_setup_context)
