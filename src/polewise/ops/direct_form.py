"""The direct-form filter: two poles given by the coefficients of their polynomial.

    y[t] = x[t] - a1 y[t-1] - a2 y[t-2]

with coefficients of their own in every bin of time and every channel.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polewise.ops._backends import refuse_second_derivative, usable_backend
from polewise.ops._bins import (
    bin_of_each_step,
    cleared_at_bins,
    require_coefficients,
    rows_of_offsets,
    spread_over_steps,
    starts_of_bins,
)
from polewise.ops._blockwise import affine_scan
from polewise.ops._checks import require_axes, state_or_rest
from polewise.ops.padding import real_steps


def direct_form_filter(
    x: Float[Tensor, "batch length dim"],
    a: Float[Tensor, "batch bins dim 2"],
    bin_length: int,
    *,
    offset: int | Int[Tensor, " batch"] = 0,
    lengths: Int[Tensor, " batch"] | None = None,
    state: Float[Tensor, "batch dim 2"] | None = None,
    reset: bool = False,
    backend: Literal["reference", "torch", "cpu", "triton"] | None = None,
) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch dim 2"]]:
    r"""Filter `x` with a second-order all-pole section that changes from bin to bin.

    $$ y_t = x_t - a_{1,r} y_{t-1} - a_{2,r} y_{t-2}, \qquad r = \lfloor (o + t) / R \rfloor $$

    Each bin's own (frozen) filter is stable for $|a_2| < 1$ and $|a_1| < 1 + a_2$. **That does
    not make the changing filter stable**: products of stable companion matrices can grow
    without bound. Use long bins or `reset=True`, or `normal_form_filter`, which is a
    contraction for any sequence of poles.

    Args:
        x: the sequence.
        a: $(a_1, a_2)$ for each bin, channel and row; `bins = ceil((offset + length) /
            bin_length)`. Of `x`'s dtype, or float32 beside float16 and bfloat16.
        bin_length: $R$, steps in a bin.
        offset: $o$, the position of `x[:, 0]` in its bin, in [0, `bin_length`); one for all
            rows or one a row.
        lengths: real steps in each row. From there on the row's state is held and its
            output is 0: padding takes no time. None: all.
        state: $(y_{-1}, y_{-2})$; None is rest.
        reset: clear the state where a bin starts.
        backend: "reference" is the recursion in float64, step by step; "torch" runs on any
            device by plain tensor operations; "cpu" is compiled; "triton" is compiled for a
            GPU. None takes the fastest.

    Returns:
        y: like `x`, in its dtype. "cpu" and "triton" keep it for the gradient: change no number of
            it in place.
        state: the last two outputs, float32 or wider. Feed it to the next segment and the
            outputs are those of one pass. An empty `x` returns the state it was given.

    Every floating argument has a gradient. Second derivatives want `backend="torch"`, the
    others refuse them; inside `torch.func` and forward-mode differentiation None takes "torch"
    by itself. `torch.autocast` casts nothing here: the dtypes given are those that count.

    Values are not checked (NaN comes out as NaN), except that "cpu" refuses an offset tensor
    outside [0, `bin_length`), or one by which a row reaches beyond the bins.

    Raises:
        ValueError: a shape or device is not as written above, or `backend` is unknown.
        TypeError: a dtype is not as written above.

    Source:
        Lutati, Zimerman, Wolf 2023 (arXiv 2305.14952), Eq. 4-8, as the recursion it samples;
        carried state, offsets and lengths are ours.
    """
    require_axes("x", x)
    batch, length, dim = x.shape
    require_coefficients(a, x, bin_length, offset)
    state = state_or_rest(state, (batch, dim, 2), x, "(batch, dim, 2)")
    dtype = state.dtype
    a = a.to(dtype)

    if length == 1 and lengths is None and backend is None:
        if reset:
            state = cleared_at_bins(state, rows_of_offsets(offset, x), bin_length)
        y, state = _one_step(x.to(dtype), a, state)
        return y.to(x.dtype), state

    run = _BACKENDS[usable_backend(backend, _BACKENDS, x)]
    y, state = run(
        x if run is _triton else x.to(dtype), a, rows_of_offsets(offset, x),
        real_steps(x, lengths), state, bin_length, bool(reset),
    )  # fmt: skip
    return y.to(x.dtype), state


def _definition(x, a, offsets, lengths, state, bin_length, reset):
    """The equation, one row, one step at a time, in float64. Slow, and right by inspection."""
    outputs, states = [], []
    for row in range(x.shape[0]):
        y1, y2 = state[row].double().unbind(-1)
        ys = []
        for t in range(x.shape[1]):
            if t >= lengths[row]:
                ys.append(torch.zeros_like(y1))
                continue
            position = int(offsets[row]) + t
            if reset and position % bin_length == 0:
                y1, y2 = torch.zeros_like(y1), torch.zeros_like(y2)
            a1, a2 = a[row, position // bin_length].double().unbind(-1)
            y1, y2 = x[row, t].double() - a1 * y1 - a2 * y2, y1
            ys.append(y1)
        outputs.append(torch.stack(ys) if ys else x[row].double())
        states.append(torch.stack([y1, y2], -1))
    if not outputs:
        return x.clone(), state.clone()
    return torch.stack(outputs).to(x.dtype), torch.stack(states).to(state.dtype)


def _one_step(x, a, state):
    """A single step, as in decoding, is the equation itself: any other form costs more to call."""
    y = x - (a * state[:, None]).sum(-1)
    return y, torch.stack([y[:, 0], state[..., 0]], -1)


def _blockwise(x, a, offsets, lengths, state, bin_length, reset):
    """The companion matrix of every step, scanned block by block."""
    length = x.shape[1]
    if length == 0:
        return x.clone(), state.clone()
    time = torch.arange(length, device=x.device)
    real = time < lengths[:, None]
    cleared = starts_of_bins(offsets, length, bin_length) & real & reset
    bins = bin_of_each_step(offsets, length, bin_length, a.shape[1])
    a1, a2 = spread_over_steps(a, bins).unbind(-1)
    one, zero = torch.ones_like(a1), torch.zeros_like(a1)
    companion = torch.stack([torch.stack([-a1, -a2], -1), torch.stack([one, zero], -1)], -2)
    identity = torch.eye(2, dtype=x.dtype, device=x.device)
    matrix = torch.where(real[..., None, None, None], companion, identity)
    drive = torch.where(real[..., None], x, 0)
    states = affine_scan(matrix, torch.stack([drive, zero], -1), cleared, state)
    y = torch.where(real[..., None], states[..., 0], 0)
    return y, states[:, -1].clone()


def _triton(x, a, offsets, lengths, state, bin_length, reset):
    from polewise.ops._direct_form_triton import forward  # Triton is not everywhere

    return forward(x, a, offsets, lengths, state, bin_length, reset)


def _compiled(x, a, offsets, lengths, state, bin_length, reset):
    return _forward_op(x, a, offsets, lengths, state, bin_length, reset)


_BACKENDS = {
    "reference": _definition, "torch": _blockwise, "cpu": _compiled, "triton": _triton,
}  # fmt: skip


@torch.library.custom_op(
    "polewise::direct_form_forward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor a, Tensor offsets, "
    "Tensor lengths, Tensor state, int bin_length, bool reset) "
    "-> (Tensor, Tensor)",
)
def _forward_op(
    x: Tensor,
    a: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    state: Tensor,
    bin_length: int,
    reset: bool,
) -> tuple[Tensor, Tensor]:
    from polewise.ops._direct_form_cpu import forward  # numba takes half a second to import

    return forward(x, a, offsets, lengths, state, bin_length, reset)


@_forward_op.register_fake
def _(x, a, offsets, lengths, state, bin_length, reset):
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(
        state, memory_format=torch.contiguous_format
    )


@torch.library.custom_op(
    "polewise::direct_form_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_y, Tensor grad_last, Tensor y, Tensor a, Tensor offsets, "
    "Tensor lengths, Tensor state, int bin_length, bool reset) "
    "-> (Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad_y: Tensor,
    grad_last: Tensor,
    y: Tensor,
    a: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    state: Tensor,
    bin_length: int,
    reset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from polewise.ops._direct_form_cpu import backward

    return backward(grad_y, grad_last, y, a, offsets, lengths, state, bin_length, reset)


@_backward_op.register_fake
def _(grad_y, grad_last, y, a, offsets, lengths, state, bin_length, reset):
    return tuple(
        torch.empty_like(like, memory_format=torch.contiguous_format) for like in (y, a, state)
    )


_backward_op.register_autograd(refuse_second_derivative)


def _setup_context(ctx, inputs, output):
    _, a, offsets, lengths, state, ctx.bin_length, ctx.reset = inputs
    ctx.save_for_backward(output[0], a, offsets, lengths, state)


def _backward(ctx, grad_y, grad_last):
    y, a, offsets, lengths, state = ctx.saved_tensors
    grad_x, grad_a, grad_state = _backward_op(
        grad_y, grad_last, y, a, offsets, lengths, state, ctx.bin_length, ctx.reset
    )
    return grad_x, grad_a, None, None, grad_state, None, None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
