"""Filtered products of keys and values on a CPU, as an operation PyTorch knows.

S[t] = p[t] S[t-1] + s[t] k[t] v[t]^T,    y[t] = Re(q[t]^T S[t]) + d v[t]

with one number d, one step s and one pole for a head, or one for each of its key channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polewise.ops._backends import refuse_second_derivative


def segment_length(state: Tensor) -> int:
    """Steps between two kept states. The gradient recomputes the states in between and holds them
    near: 64 of 64 x 64 numbers are a megabyte. More at once would keep less, and take longer."""
    parts, key_dim = state.shape[-3:-1]
    return 64 if parts * key_dim <= 64 else 32


@torch.library.custom_op(
    "polewise::products_forward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor q, Tensor k, Tensor v, Tensor step, Tensor pole, Tensor skip, Tensor state, "
    "int[] key_head) -> (Tensor, Tensor, Tensor)",
)
def filtered_products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    step: Tensor,
    pole: Tensor,
    skip: Tensor,
    state: Tensor,
    key_head: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the states where a segment starts, from which the gradient goes on.

    All of one dtype. q, k: (batch, length, key_heads, key_dim). v: (batch, length, heads,
    value_dim). step: (batch, length, heads). pole: (batch, length, heads, parts, 1 or key_dim),
    real part before imaginary. skip: (heads,). state: (batch, heads, parts, key_dim, value_dim).
    key_head: for each head the one of q and k that it looks up with.
    """
    from polewise.ops._products_cpu import forward  # numba takes half a second to import

    return forward(q, k, v, step, pole, skip, state, key_head)


@filtered_products.register_fake
def _(q, k, v, step, pole, skip, state, key_head):
    batch, length, heads, _ = v.shape
    starts = (batch, heads, -(-length // segment_length(state)), *state.shape[2:])
    return v.new_empty(v.shape), state.new_empty(state.shape), state.new_empty(starts)


@torch.library.custom_op(
    "polewise::products_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_y, Tensor grad_last, Tensor q, Tensor k, Tensor v, Tensor step, "
    "Tensor pole, Tensor skip, Tensor starts, int[] key_head) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad_y: Tensor,
    grad_last: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    step: Tensor,
    pole: Tensor,
    skip: Tensor,
    starts: Tensor,
    key_head: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from polewise.ops._products_cpu import backward

    return backward(grad_y, grad_last, q, k, v, step, pole, skip, starts, key_head)


@_backward_op.register_fake
def _(grad_y, grad_last, q, k, v, step, pole, skip, starts, key_head):
    return tuple(like.new_empty(like.shape) for like in (q, k, v, step, pole, skip, grad_last))


_backward_op.register_autograd(refuse_second_derivative)


def _setup_context(ctx, inputs, output):
    *sequences, _, ctx.key_head = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)  # or zeros are made for the kept states at every call
    ctx.save_for_backward(*sequences, output[2])


def _backward(ctx, grad_y, grad_last, _):
    saved = ctx.saved_tensors  # once: activation checkpoints hand them out no second time
    v, starts = saved[2], saved[-1]
    if grad_y is None:
        grad_y = torch.zeros_like(v)
    if grad_last is None:
        grad_last = starts.new_zeros(*starts.shape[:2], *starts.shape[3:])
    return *_backward_op(grad_y, grad_last, *saved, ctx.key_head), None


filtered_products.register_autograd(_backward, setup_context=_setup_context)
