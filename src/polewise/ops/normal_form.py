"""The normal-form filter: a pair of poles given by radius and angle, stable however they move.

    s[t] = decay e^{j angle} s[t-1] + x[t],    y[t] = mix0 Re s[t] + mix1 Im s[t] + skip x[t]

with poles of their own in every bin of time and every channel. Every step turns the state
and shrinks it, so no sequence of poles can make it grow.
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
    require_bins,
    require_offset,
    rows_of_offsets,
    spread_over_steps,
    starts_of_bins,
)
from polewise.ops._blockwise import affine_scan
from polewise.ops._checks import (
    require_axes,
    require_like,
    require_positive,
    state_or_rest,
)
from polewise.ops.associative_filter import associative_filter
from polewise.ops.padding import hide_padding, real_steps
from polewise.ops.precision import angle_dtype

SEGMENT = 128
"""Steps between two kept states: the gradient recomputes the states in between."""


def normal_form_filter(
    x: Float[Tensor, "batch length dim"],
    decay: Float[Tensor, "batch bins dim"],
    angle: Float[Tensor, "batch bins dim"],
    bin_length: int,
    *,
    mix: Float[Tensor, "dim 2"] | Float[Tensor, "batch bins dim 2"] | None = None,
    skip: Float[Tensor, " dim"] | None = None,
    offset: int | Int[Tensor, " batch"] = 0,
    lengths: Int[Tensor, " batch"] | None = None,
    state: Float[Tensor, "batch dim 2"] | None = None,
    reset: bool = False,
    backend: Literal["reference", "torch", "cpu", "triton"] | None = None,
) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch dim 2"]]:
    r"""Filter `x` with a conjugate pair of poles that moves from bin to bin.

    $$ s_t = \rho_r e^{j \varphi_r} s_{t-1} + x_t, \qquad
       y_t = c_0 \operatorname{Re} s_t + c_1 \operatorname{Im} s_t + d x_t, \qquad
       r = \lfloor (o + t) / R \rfloor $$

    For any sequence of poles $|s_t| \le \rho_r |s_{t-1}| + |x_t|$, hence from rest
    $|y| \le (|c| / (1 - \max\rho) + |d|) \max|x|$. An angle of 0 is the exponential moving average,
    $\pi$ the alternating one.

    Args:
        x: the sequence.
        decay: $\rho$, the pole radius (no unit), meant to lie in [0, 1); `bins =
            ceil((offset + length) / bin_length)`. Of `x`'s dtype, or float32 beside float16
            and bfloat16 (bfloat16's largest number below 1 is 1 - 2^-8: keep poles float32).
        angle: $\varphi$, radians a sample; the pole's frequency is $\varphi / 2\pi$ cycles
            per sample.
        bin_length: $R$, steps in a bin.
        mix: $(c_0, c_1)$, one for all bins or one a bin; None is (1, 0), the real part.
        skip: $d$, how much of `x` is added to the output, one number a channel; None is 0.
        offset: $o$, the position of `x[:, 0]` in its bin, in [0, `bin_length`); one for all
            rows or one a row.
        lengths: real steps in each row. From there on the row's state is held and its
            output is 0: padding takes no time. None: all.
        state: $(\operatorname{Re} s_{-1}, \operatorname{Im} s_{-1})$; None is rest.
        reset: clear the state where a bin starts.
        backend: "reference" is the recursion in float64, step by step; "torch" runs on any
            device by plain tensor operations; "cpu" is compiled; "triton" is compiled for a
            GPU. None takes the fastest.

    Returns:
        y: like `x`, in its dtype.
        state: $s$ after the last real step, float32 or wider. Feed it to the next segment
            and the outputs are those of one pass. An empty `x` returns the state it was given.

    Every floating argument has a gradient. Second derivatives want `backend="torch"`, the
    others refuse them; inside `torch.func` and forward-mode differentiation None takes "torch"
    by itself. `torch.autocast` casts nothing here: the dtypes given are those that count.

    Values are not checked (NaN comes out as NaN), except that "cpu" refuses an offset tensor
    outside [0, `bin_length`), or one by which a row reaches beyond the bins.

    Raises:
        ValueError: a shape or device is not as written above, or `backend` is unknown.
        TypeError: a dtype is not as written above.

    Source:
        The normal (coupled) form of Gold & Rader; for poles that a network moves, ours.
    """
    require_axes("x", x)
    batch, length, dim = x.shape
    require_positive("bin_length", bin_length, "steps")
    require_axes("decay", decay, "(batch, bins, dim)")
    bins = decay.shape[1]
    require_like("decay", decay, (batch, bins, dim), x, "(batch, bins, dim)")
    require_like("angle", angle, (batch, bins, dim), x, "(batch, bins, dim)")
    require_offset(offset, bin_length, x)
    require_bins("decay", bins, offset, length, bin_length)
    if mix is not None and not isinstance(mix, Tensor):
        raise TypeError(f"mix must be a tensor (dim, 2); got {type(mix).__name__}.")
    if mix is not None and mix.ndim == 2:
        require_like("mix", mix, (dim, 2), x, "(dim, 2)")
    elif mix is not None:
        require_like("mix", mix, (batch, bins, dim, 2), x, "(dim, 2) or (batch, bins, dim, 2)")
    if skip is not None:
        require_like("skip", skip, (dim,), x, "(dim,)")
    state = state_or_rest(state, (batch, dim, 2), x, "(batch, dim, 2)")
    dtype = state.dtype
    decay, angle = decay.to(dtype), angle.to(dtype)
    mix = None if mix is None else mix.to(dtype)
    skip = None if skip is None else skip.to(dtype)

    if length == 1 and lengths is None and backend is None:
        if reset:
            state = cleared_at_bins(state, rows_of_offsets(offset, x), bin_length)
        y, state = _one_step(x.to(dtype), decay, angle, mix, skip, state)
        return y.to(x.dtype), state

    run = _BACKENDS[usable_backend(backend, _BACKENDS, x)]
    if mix is None:
        mix = torch.eye(2, dtype=dtype, device=x.device)[0].expand(dim, 2)
    if mix.ndim == 2:
        mix = mix[None, None]
    if skip is None and run is not _triton:
        skip = torch.zeros(dim, dtype=dtype, device=x.device)
    y, state = run(
        x if run is _triton else x.to(dtype), decay, angle, mix, skip, rows_of_offsets(offset, x),
        real_steps(x, lengths), state, bin_length, bool(reset),
    )  # fmt: skip
    if run is _triton and skip is not None:
        y = y + skip * hide_padding(x, lengths)
    return y.to(x.dtype), state


def _definition(x, decay, angle, mix, skip, offsets, lengths, state, bin_length, reset):
    """The equation, one row, one step at a time, in float64. Slow, and right by inspection."""
    mix = mix.expand(*decay.shape, 2)
    outputs, states = [], []
    for row in range(x.shape[0]):
        real, imag = state[row].double().unbind(-1)
        ys = []
        for t in range(x.shape[1]):
            if t >= lengths[row]:
                ys.append(torch.zeros_like(real))
                continue
            position = int(offsets[row]) + t
            if reset and position % bin_length == 0:
                real, imag = torch.zeros_like(real), torch.zeros_like(imag)
            r = position // bin_length
            rho, phi = decay[row, r].double(), angle[row, r].double()
            real, imag = (
                rho * (phi.cos() * real - phi.sin() * imag) + x[row, t].double(),
                rho * (phi.sin() * real + phi.cos() * imag),
            )
            c0, c1 = mix[row, r].double().unbind(-1)
            ys.append(c0 * real + c1 * imag + skip.double() * x[row, t].double())
        outputs.append(torch.stack(ys) if ys else x[row].double())
        states.append(torch.stack([real, imag], -1))
    if not outputs:
        return x.clone(), state.clone()
    return torch.stack(outputs).to(x.dtype), torch.stack(states).to(state.dtype)


def _one_step(x, decay, angle, mix, skip, state):
    """A single step, as in decoding, is the equation itself: any other form costs more to call."""
    real, imag = state[:, None].unbind(-1)
    cosine, sine = decay * angle.cos(), decay * angle.sin()
    after_real = torch.addcmul(torch.addcmul(x, cosine, real), sine, imag, value=-1)
    after_imag = torch.addcmul(sine * real, cosine, imag)
    after = torch.stack([after_real, after_imag], -1)
    y = after_real if mix is None else (mix * after).sum(-1)
    return y if skip is None else torch.addcmul(y, skip, x), after[:, 0]


def _blockwise(x, decay, angle, mix, skip, offsets, lengths, state, bin_length, reset):
    """The rotation of every step, scanned block by block."""
    length = x.shape[1]
    if not isinstance(length, int):
        return _of_open_length(
            x, decay, angle, mix, skip, offsets, lengths, state, bin_length, reset
        )
    if length == 0:
        return x.clone(), state.clone()
    time = torch.arange(length, device=x.device)
    real_step = time < lengths[:, None]
    cleared = starts_of_bins(offsets, length, bin_length) & real_step & reset
    bins = bin_of_each_step(offsets, length, bin_length, decay.shape[1])
    cosine = spread_over_steps(decay * angle.cos(), bins)
    sine = spread_over_steps(decay * angle.sin(), bins)
    mix = spread_over_steps(mix.expand(*decay.shape, 2), bins)
    mix = torch.where(real_step[..., None, None], mix, 0)  # padding's may be NaN, and so 0 * NaN
    rotation = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)
    identity = torch.eye(2, dtype=x.dtype, device=x.device)
    matrix = torch.where(real_step[..., None, None, None], rotation, identity)
    x = torch.where(real_step[..., None], x, 0)
    drive = torch.stack([x, torch.zeros_like(x)], -1)
    states = affine_scan(matrix, drive, cleared, state)
    y = (states * mix).sum(-1) + skip * x
    return torch.where(real_step[..., None], y, 0), states[:, -1].clone()


def _of_open_length(x, decay, angle, mix, skip, offsets, lengths, state, bin_length, reset):
    """The filter by matrix products: an exported program cannot loop over a length that it does not
    know, and the associative filter needs no such loop. With Phi the sum of angles so far, what was
    read at s counts at t as q[t] . k[s] with

        k = (cos Phi, sin Phi),    q = (c0 cos Phi + c1 sin Phi, c0 sin Phi - c1 cos Phi)
    """
    time = torch.arange(x.shape[1], device=x.device)
    bins = bin_of_each_step(offsets, x.shape[1], bin_length, decay.shape[1])
    mix = spread_over_steps(mix.expand(*decay.shape, 2), bins)
    decay, angle = spread_over_steps(decay, bins), spread_over_steps(angle, bins)
    if reset:
        cleared = starts_of_bins(offsets, x.shape[1], bin_length)
        decay = torch.where(cleared[..., None], 0, decay)
    angle = torch.where((time < lengths[:, None])[..., None], angle, 0)
    phase = angle.to(angle_dtype(x.device)).cumsum(1).remainder(2 * torch.pi).to(x.dtype)
    k = torch.stack([phase.cos(), phase.sin()], -1)
    cosine, sine = k.unbind(-1)
    real, imag = mix.unbind(-1)
    q = torch.stack([real * cosine + imag * sine, real * sine - imag * cosine], -1)
    before = (state * state.new_tensor([1, -1]))[:, :, None, :, None]
    y, after = associative_filter(
        q, k, x[..., None], decay, skip=skip, lengths=lengths, state=before, backend="torch"
    )
    along, across = after[:, :, 0, :, 0].unbind(-1)
    cosine, sine = cosine[:, -1], sine[:, -1]
    last = torch.stack([cosine * along + sine * across, sine * along - cosine * across], -1)
    return y[..., 0], last


def _triton(x, decay, angle, mix, skip, offsets, lengths, state, bin_length, reset):
    from polewise.ops._normal_form_triton import forward  # Triton is not everywhere

    pole = torch.stack([decay * angle.cos(), decay * angle.sin()], -1)
    mix = mix.expand(*decay.shape, 2)
    y, last, _ = forward(x, pole, mix, offsets, lengths, state, bin_length, reset)
    return y, last  # the kernels know no skip: the caller adds it


def _compiled(x, decay, angle, mix, skip, offsets, lengths, state, bin_length, reset):
    y, last, _ = _forward_op(x, decay, angle, mix, skip, offsets, lengths, state, bin_length, reset)
    return y, last


_BACKENDS = {
    "reference": _definition, "torch": _blockwise, "cpu": _compiled, "triton": _triton,
}  # fmt: skip


@torch.library.custom_op(
    "polewise::normal_form_forward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor decay, Tensor angle, Tensor mix, Tensor skip, Tensor offsets, "
    "Tensor lengths, Tensor state, int bin_length, bool reset) "
    "-> (Tensor, Tensor, Tensor)",
)
def _forward_op(
    x: Tensor,
    decay: Tensor,
    angle: Tensor,
    mix: Tensor,
    skip: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    state: Tensor,
    bin_length: int,
    reset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the states at every 128th step, which the gradient restarts from."""
    from polewise.ops._normal_form_cpu import forward  # numba takes half a second to import

    return forward(x, decay, angle, mix, skip, offsets, lengths, state, bin_length, reset)


@_forward_op.register_fake
def _(x, decay, angle, mix, skip, offsets, lengths, state, bin_length, reset):
    batch, length, dim = x.shape
    return (
        x.new_empty(batch, length, dim),
        x.new_empty(batch, dim, 2),
        x.new_empty(batch, -(-length // SEGMENT), dim, 2),
    )


@torch.library.custom_op(
    "polewise::normal_form_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad_y, Tensor grad_last, Tensor x, Tensor decay, Tensor angle, Tensor mix, "
    "Tensor skip, Tensor offsets, Tensor lengths, Tensor starts, int bin_length, bool reset) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad_y: Tensor,
    grad_last: Tensor,
    x: Tensor,
    decay: Tensor,
    angle: Tensor,
    mix: Tensor,
    skip: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    starts: Tensor,
    bin_length: int,
    reset: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from polewise.ops._normal_form_cpu import backward

    return backward(
        grad_y, grad_last, x, decay, angle, mix, skip, offsets, lengths, starts, bin_length, reset
    )


@_backward_op.register_fake
def _(grad_y, grad_last, x, decay, angle, mix, skip, offsets, lengths, starts, bin_length, reset):
    return tuple(like.new_empty(like.shape) for like in (x, decay, angle, mix, skip, grad_last))


_backward_op.register_autograd(refuse_second_derivative)


def _setup_context(ctx, inputs, output):
    *sequences, _, ctx.bin_length, ctx.reset = inputs
    starts = output[2]
    ctx.mark_non_differentiable(starts)
    ctx.save_for_backward(*sequences, starts)


def _backward(ctx, grad_y, grad_last, _):
    *gradients, grad_state = _backward_op(
        grad_y, grad_last, *ctx.saved_tensors, ctx.bin_length, ctx.reset
    )
    return *gradients, None, None, grad_state, None, None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
