"""The associative filter on a GPU, gradient included: chunks of time as matrix products.

With the pole p[t] = exp(l[t] + j f[t]), what is left of step j at step i is w[i, j], the
exponential of the sum over j < t <= i. Inside a chunk

    y[i] = sum_j Re w[i, j] (q[i] . k[j]) v[j] + Re(w[i, start] q[i]^T S[start]),

and the state goes from chunk to chunk. Two kernels: `_states` carries the state over the chunks,
one program for every tile of it; `_outputs` takes every chunk by itself. Backward likewise:
`_futures` carries the state's gradient G against time, `_value_gradients` and `_gradients` take
every chunk.

Gradient of the poles. l[t] and f[t] are in every w that spans t: a pair of steps j < t <= i, the
chunk's first state seen from i >= t, what j < t left in the chunk's last state, and the first
state in the last one. Their shares are summed as they are. The shorter way, a difference of two
running sums, would drown in rounding where poles are small, as a gradient of l must be
divided by them.

Sums of l and f are taken directly over j < t <= i too, not as differences; everything is computed
in float32, products of two matrices by three passes of TF32 for float32 and one for less.
"""

from __future__ import annotations

from functools import reduce

import torch
import triton
import triton.language as tl
from torch import Tensor

from polewise.ops._backends import refuse_second_derivative
from polewise.ops._segments_triton import on_its_device

CHUNK = 32
"""Steps whose products are taken at once."""

TILE = 32
"""Rows and columns of the state in one program."""

SMALLEST = tl.constexpr(1e-30)
"""`SMALLEST_DECAY` of the op."""


@torch.library.custom_op(
    "polewise::associative_forward_triton",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor decay, Tensor? angle, Tensor state) "
    "-> (Tensor, Tensor, Tensor)",
)
@on_its_device
def forward(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, angle: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """y in `v`'s dtype, the last state, and the state before every chunk."""
    q, k, v, decay, state = (t.contiguous() for t in (q, k, v, decay, state))
    y, last, starts = _forward_like(q, k, v, decay, angle, state)
    if y.numel() == 0 or q.shape[3] == 0:
        return y.zero_(), last.copy_(state), starts
    angle = decay if angle is None else angle.contiguous()  # not read where poles are real
    sizes, options = _sizes(q, k, v, state)
    batch, _, heads = decay.shape
    tiles = triton.cdiv(q.shape[3], TILE) * triton.cdiv(v.shape[3], TILE)
    _states[batch * heads * tiles,](
        k, v, decay, angle, state, starts, last, *sizes, TILE=TILE, **options
    )
    columns, keys = triton.cdiv(v.shape[3], TILE), _whole_keys(q)
    _outputs[batch * heads * starts.shape[2] * columns,](
        q, k, v, decay, angle, starts, y, *sizes, TILE=TILE, **options, KEYS=keys,
        num_warps=4 if keys <= 64 else 8,
    )  # fmt: skip
    return y, last, starts


@forward.register_fake
def _forward_like(q, k, v, decay, angle, state):
    batch, heads, parts, key_dim, value_dim = state.shape
    chunks = -(-q.shape[1] // CHUNK)
    return (
        v.new_empty(v.shape),
        state.new_empty(state.shape),
        state.new_empty(batch, heads, chunks, parts, key_dim, value_dim),
    )


@torch.library.custom_op(
    "polewise::associative_backward_triton",
    mutates_args=(),
    schema="(Tensor grad_y, Tensor grad_last, Tensor q, Tensor k, Tensor v, Tensor decay, "
    "Tensor? angle, Tensor starts) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
@on_its_device
def backward(
    grad_y: Tensor,
    grad_last: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    angle: Tensor | None,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, decay, angle (unset where poles are real) and the first state."""
    grad_y, grad_last, q, k, v, decay = (
        t.contiguous() for t in (grad_y, grad_last, q, k, v, decay)
    )
    gradients = _backward_like(grad_y, grad_last, q, k, v, decay, angle, starts)
    grad_q, grad_k, grad_v, grad_decay, grad_angle, grad_state = gradients
    if v.numel() == 0 or q.numel() == 0:
        for gradient in gradients[:5]:
            gradient.zero_()
        grad_state.copy_(grad_last)
        return gradients
    angle = decay if angle is None else angle.contiguous()
    sizes, options = _sizes(q, k, v, grad_last)
    batch, _, heads = decay.shape
    tiles = triton.cdiv(q.shape[3], TILE) * triton.cdiv(v.shape[3], TILE)
    futures = torch.empty_like(starts)
    _futures[batch * heads * tiles,](
        q, grad_y, decay, angle, grad_last, futures, grad_state, *sizes, TILE=TILE, **options
    )
    columns, keys = triton.cdiv(v.shape[3], TILE), _whole_keys(q)
    _value_gradients[batch * heads * starts.shape[2] * columns,](
        q, k, grad_y, decay, angle, futures, grad_v, *sizes, TILE=TILE, **options, KEYS=keys,
        num_warps=4 if keys <= 64 else 8,
    )  # fmt: skip
    _gradients[batch * heads * starts.shape[2],](
        q, k, v, grad_y, decay, angle, starts, futures, grad_q, grad_k, grad_decay, grad_angle,
        *sizes, TILE=TILE, **options, KEYS=keys, num_warps=8,
    )  # fmt: skip
    return gradients


@backward.register_fake
def _backward_like(grad_y, grad_last, q, k, v, decay, angle, starts):
    likes = (q, k, v, decay, decay, grad_last)
    return tuple(like.new_empty(like.shape) for like in likes)


backward.register_autograd(refuse_second_derivative)


def _setup_context(ctx, inputs, output):
    starts = output[2]
    ctx.mark_non_differentiable(starts)
    ctx.set_materialize_grads(False)  # or zeros are made for the kept states at every call
    ctx.save_for_backward(*inputs[:5], starts)


def _backward(ctx, grad_y, grad_last, _):
    saved = ctx.saved_tensors
    v, angle, starts = saved[2], saved[4], saved[5]
    if grad_y is None:
        grad_y = torch.zeros_like(v)
    if grad_last is None:
        grad_last = starts.new_zeros(*starts.shape[:2], *starts.shape[3:])
    *gradients, grad_angle, grad_state = backward(grad_y, grad_last, *saved)
    turning = angle is not None
    return *gradients, grad_angle if turning else None, grad_state


forward.register_autograd(_backward, setup_context=_setup_context)


def _sizes(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor
) -> tuple[tuple[int, int], dict[str, int | str]]:
    """Arguments of every kernel: run-time sizes, and what it is compiled for."""
    _, length, heads, key_dim = q.shape
    options: dict[str, int | str] = {
        "key_dim": key_dim,
        "value_dim": v.shape[3],
        "TURNING": state.shape[2] == 2,
        "PRECISION": _precision(reduce(torch.promote_types, (q.dtype, k.dtype, v.dtype))),
        "CHUNK": CHUNK,
    }
    return (length, heads), options


def _precision(dtype: torch.dtype) -> str:
    """How products of float32 are taken: by tensor cores of CUDA, in three passes where float32
    is what was given. ROCm's compiler has these for some cards only, the plain one for all."""
    if torch.version.hip:
        return "ieee"
    return "tf32x3" if dtype == torch.float32 else "tf32"


def _whole_keys(q: Tensor) -> int:
    """Columns of a tile that holds whole keys."""
    return max(triton.next_power_of_2(q.shape[3]), 16)


@triton.jit
def _rows(base, row, head, time, heads, width: tl.constexpr, columns):
    """Places of (time, columns) in memory (batch, length, heads, width); `row` is its first
    step."""
    return base + ((row + time[:, None]) * heads + head) * width + columns[None, :]


@triton.jit
def _tile(base, number, rows, columns, key_dim: tl.constexpr, value_dim: tl.constexpr):
    """Places of (rows, columns) in the `number`th matrix of a state."""
    return base + number * key_dim * value_dim + rows[:, None] * value_dim + columns[None, :]


@triton.jit
def _logarithm(decay, angle, row, head, time, heads, inside, TURNING: tl.constexpr):
    """The poles of a chunk as logarithms; 0, no change, where `inside` ends."""
    place = (row + time) * heads + head
    log = tl.log(tl.maximum(tl.load(decay + place, mask=inside, other=1.0), SMALLEST))
    turn = tl.zeros_like(log)
    if TURNING:
        turn = tl.load(angle + place, mask=inside, other=0.0)
    return log, turn


@triton.jit
def _sum_after(values, CHUNK: tl.constexpr):
    """The sum of all later steps, for every step."""
    step = tl.arange(0, CHUNK)
    later = tl.where(step[:, None] > step[None, :], values[:, None], 0.0)
    return tl.sum(later, 0)


@triton.jit
def _sum_between(values, CHUNK: tl.constexpr):
    """The sum over j < t <= i, for every i and j."""
    step = tl.arange(0, CHUNK)
    return tl.cumsum(tl.where(step[:, None] > step[None, :], values[:, None], 0.0), 0)


@triton.jit
def _over_pairs(pairs, CHUNK: tl.constexpr):
    """For every t the sum of all pairs with j < t <= i."""
    step = tl.arange(0, CHUNK)
    since = tl.cumsum(pairs, 0, reverse=True)
    return tl.sum(tl.where(step[None, :] < step[:, None], since, 0.0), 1)


@triton.jit
def _until(values, CHUNK: tl.constexpr):
    """For every t the sum over j < t."""
    step = tl.arange(0, CHUNK)
    return tl.sum(tl.where(step[None, :] < step[:, None], values[None, :], 0.0), 1)


@triton.jit
def _since(values, CHUNK: tl.constexpr):
    """For every t the sum over i >= t."""
    step = tl.arange(0, CHUNK)
    return tl.sum(tl.where(step[None, :] >= step[:, None], values[None, :], 0.0), 1)


@triton.jit
def _locate_tile(heads, key_dim: tl.constexpr, value_dim: tl.constexpr, TILE: tl.constexpr):
    """Row, head, and the tile's rows and columns of the state."""
    program = tl.program_id(0).to(tl.int64)
    down: tl.constexpr = (key_dim + TILE - 1) // TILE
    across: tl.constexpr = (value_dim + TILE - 1) // TILE
    keys = (program % down) * TILE + tl.arange(0, TILE)
    values = (program // down % across) * TILE + tl.arange(0, TILE)
    unit = program // (down * across)
    return unit // heads, unit % heads, keys, values


@triton.jit(do_not_specialize=["length", "heads"])
def _states(
    k, v, decay, angle, state, starts, last, length, heads, key_dim: tl.constexpr,
    value_dim: tl.constexpr, TURNING: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """The state before every chunk, and after the last."""
    batch_row, head, keys, values = _locate_tile(heads, key_dim, value_dim, TILE)
    unit, row = batch_row * heads + head, batch_row * length
    PARTS: tl.constexpr = 2 if TURNING else 1
    inside = (keys[:, None] < key_dim) & (values[None, :] < value_dim)
    at_state = _tile(state, unit * PARTS, keys, values, key_dim, value_dim)
    size: tl.constexpr = key_dim * value_dim
    real = tl.load(at_state, mask=inside, other=0.0)
    imag = tl.zeros_like(real)
    if TURNING:
        imag = tl.load(at_state + size, mask=inside, other=0.0)
    chunks = tl.cdiv(length, CHUNK)
    for chunk in range(chunks):
        out = _tile(starts, (unit * chunks + chunk) * PARTS, keys, values, key_dim, value_dim)
        tl.store(out, real, mask=inside)
        if TURNING:
            tl.store(out + size, imag, mask=inside)
        time = chunk * CHUNK + tl.arange(0, CHUNK)
        log, turn = _logarithm(decay, angle, row, head, time, heads, time < length, TURNING)
        k_mask = (time[:, None] < length) & (keys[None, :] < key_dim)
        v_mask = (time[:, None] < length) & (values[None, :] < value_dim)
        k_now = tl.load(_rows(k, row, head, time, heads, key_dim, keys), mask=k_mask, other=0.0)
        v_now = tl.load(_rows(v, row, head, time, heads, value_dim, values), mask=v_mask, other=0.0)
        v_now = v_now.to(tl.float32)
        k_now = k_now.to(tl.float32) * tl.exp(_sum_after(log, CHUNK))[:, None]
        kept = tl.exp(tl.sum(log, 0))
        if TURNING:
            turned = _sum_after(turn, CHUNK)[:, None]
            whole = tl.sum(turn, 0)
            cosine, sine = kept * tl.cos(whole), kept * tl.sin(whole)
            before = real
            real = cosine * before - sine * imag
            imag = sine * before + cosine * imag
            imag += tl.dot(tl.trans(k_now * tl.sin(turned)), v_now, input_precision=PRECISION)
            k_now = k_now * tl.cos(turned)
        else:
            real = kept * real
        real += tl.dot(tl.trans(k_now), v_now, input_precision=PRECISION)
    out = _tile(last, unit * PARTS, keys, values, key_dim, value_dim)
    tl.store(out, real, mask=inside)
    if TURNING:
        tl.store(out + size, imag, mask=inside)


@triton.jit(do_not_specialize=["length", "heads"])
def _outputs(
    q, k, v, decay, angle, starts, y, length, heads, key_dim: tl.constexpr,
    value_dim: tl.constexpr, TURNING: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
    TILE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    across: tl.constexpr = (value_dim + TILE - 1) // TILE
    values = (program % across) * TILE + tl.arange(0, TILE)
    chunks = tl.cdiv(length, CHUNK)
    chunk, unit = program // across % chunks, program // across // chunks
    head, row = unit % heads, unit // heads * length
    keys, step = tl.arange(0, KEYS), tl.arange(0, CHUNK)
    PARTS: tl.constexpr = 2 if TURNING else 1

    time = chunk * CHUNK + step
    k_mask = (time[:, None] < length) & (keys[None, :] < key_dim)
    v_mask = (time[:, None] < length) & (values[None, :] < value_dim)
    q_now = tl.load(_rows(q, row, head, time, heads, key_dim, keys), mask=k_mask, other=0.0)
    k_now = tl.load(_rows(k, row, head, time, heads, key_dim, keys), mask=k_mask, other=0.0)
    v_now = tl.load(_rows(v, row, head, time, heads, value_dim, values), mask=v_mask, other=0.0)
    q_now, k_now, v_now = q_now.to(tl.float32), k_now.to(tl.float32), v_now.to(tl.float32)
    log, turn = _logarithm(decay, angle, row, head, time, heads, time < length, TURNING)

    weights = tl.dot(q_now, tl.trans(k_now), input_precision=PRECISION)
    weights *= tl.exp(_sum_between(log, CHUNK))
    if TURNING:
        weights *= tl.cos(_sum_between(turn, CHUNK))
    weights = tl.where(step[:, None] >= step[None, :], weights, 0.0)
    out = tl.dot(weights, v_now, input_precision=PRECISION)

    at_start = _tile(starts, (unit * chunks + chunk) * PARTS, keys, values, key_dim, value_dim)
    inside = (keys[:, None] < key_dim) & (values[None, :] < value_dim)
    real = tl.load(at_start, mask=inside, other=0.0)
    q_now *= tl.exp(tl.cumsum(log, 0))[:, None]
    if TURNING:
        imag = tl.load(at_start + key_dim * value_dim, mask=inside, other=0.0)
        turned = tl.cumsum(turn, 0)[:, None]
        out -= tl.dot(q_now * tl.sin(turned), imag, input_precision=PRECISION)
        q_now *= tl.cos(turned)
    out += tl.dot(q_now, real, input_precision=PRECISION)
    tl.store(_rows(y, row, head, time, heads, value_dim, values), out, mask=v_mask)


@triton.jit(do_not_specialize=["length", "heads"])
def _futures(
    q, grad_y, decay, angle, grad_last, futures, grad_state, length, heads,
    key_dim: tl.constexpr, value_dim: tl.constexpr, TURNING: tl.constexpr,
    PRECISION: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """What all later chunks say about the state at the end of every chunk, and before the first."""
    batch_row, head, keys, values = _locate_tile(heads, key_dim, value_dim, TILE)
    unit, row = batch_row * heads + head, batch_row * length
    PARTS: tl.constexpr = 2 if TURNING else 1
    inside = (keys[:, None] < key_dim) & (values[None, :] < value_dim)
    at_last = _tile(grad_last, unit * PARTS, keys, values, key_dim, value_dim)
    size: tl.constexpr = key_dim * value_dim
    real = tl.load(at_last, mask=inside, other=0.0)
    imag = tl.zeros_like(real)
    if TURNING:
        imag = tl.load(at_last + size, mask=inside, other=0.0)
    chunks = tl.cdiv(length, CHUNK)
    for turn_back in range(chunks):
        chunk = chunks - 1 - turn_back
        out = _tile(futures, (unit * chunks + chunk) * PARTS, keys, values, key_dim, value_dim)
        tl.store(out, real, mask=inside)
        if TURNING:
            tl.store(out + size, imag, mask=inside)
        time = chunk * CHUNK + tl.arange(0, CHUNK)
        log, turn = _logarithm(decay, angle, row, head, time, heads, time < length, TURNING)
        q_mask = (time[:, None] < length) & (keys[None, :] < key_dim)
        y_mask = (time[:, None] < length) & (values[None, :] < value_dim)
        q_now = tl.load(_rows(q, row, head, time, heads, key_dim, keys), mask=q_mask, other=0.0)
        at_grad = _rows(grad_y, row, head, time, heads, value_dim, values)
        grad = tl.load(at_grad, mask=y_mask, other=0.0).to(tl.float32)
        q_now = q_now.to(tl.float32) * tl.exp(tl.cumsum(log, 0))[:, None]
        kept = tl.exp(tl.sum(log, 0))
        if TURNING:
            turned = tl.cumsum(turn, 0)[:, None]
            whole = tl.sum(turn, 0)
            cosine, sine = kept * tl.cos(whole), kept * tl.sin(whole)
            before = real
            real = cosine * before + sine * imag
            imag = cosine * imag - sine * before
            imag -= tl.dot(tl.trans(q_now * tl.sin(turned)), grad, input_precision=PRECISION)
            q_now = q_now * tl.cos(turned)
        else:
            real = kept * real
        real += tl.dot(tl.trans(q_now), grad, input_precision=PRECISION)
    out = _tile(grad_state, unit * PARTS, keys, values, key_dim, value_dim)
    tl.store(out, real, mask=inside)
    if TURNING:
        tl.store(out + size, imag, mask=inside)


@triton.jit(do_not_specialize=["length", "heads"])
def _value_gradients(
    q, k, grad_y, decay, angle, futures, grad_v, length, heads, key_dim: tl.constexpr,
    value_dim: tl.constexpr, TURNING: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
    TILE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    across: tl.constexpr = (value_dim + TILE - 1) // TILE
    values = (program % across) * TILE + tl.arange(0, TILE)
    chunks = tl.cdiv(length, CHUNK)
    chunk, unit = program // across % chunks, program // across // chunks
    head, row = unit % heads, unit // heads * length
    keys, step = tl.arange(0, KEYS), tl.arange(0, CHUNK)
    PARTS: tl.constexpr = 2 if TURNING else 1

    time = chunk * CHUNK + step
    k_mask = (time[:, None] < length) & (keys[None, :] < key_dim)
    v_mask = (time[:, None] < length) & (values[None, :] < value_dim)
    q_now = tl.load(_rows(q, row, head, time, heads, key_dim, keys), mask=k_mask, other=0.0)
    k_now = tl.load(_rows(k, row, head, time, heads, key_dim, keys), mask=k_mask, other=0.0)
    at_grad = _rows(grad_y, row, head, time, heads, value_dim, values)
    grad = tl.load(at_grad, mask=v_mask, other=0.0).to(tl.float32)
    q_now, k_now = q_now.to(tl.float32), k_now.to(tl.float32)
    log, turn = _logarithm(decay, angle, row, head, time, heads, time < length, TURNING)

    weights = tl.dot(q_now, tl.trans(k_now), input_precision=PRECISION)
    weights *= tl.exp(_sum_between(log, CHUNK))
    if TURNING:
        weights *= tl.cos(_sum_between(turn, CHUNK))
    weights = tl.where(step[:, None] >= step[None, :], weights, 0.0)
    to_v = tl.dot(tl.trans(weights), grad, input_precision=PRECISION)

    at_end = _tile(futures, (unit * chunks + chunk) * PARTS, keys, values, key_dim, value_dim)
    inside = (keys[:, None] < key_dim) & (values[None, :] < value_dim)
    real = tl.load(at_end, mask=inside, other=0.0)
    k_now *= tl.exp(_sum_after(log, CHUNK))[:, None]
    if TURNING:
        imag = tl.load(at_end + key_dim * value_dim, mask=inside, other=0.0)
        turned = _sum_after(turn, CHUNK)[:, None]
        to_v += tl.dot(k_now * tl.sin(turned), imag, input_precision=PRECISION)
        k_now *= tl.cos(turned)
    to_v += tl.dot(k_now, real, input_precision=PRECISION)
    tl.store(_rows(grad_v, row, head, time, heads, value_dim, values), to_v, mask=v_mask)


@triton.jit(do_not_specialize=["length", "heads"])
def _gradients(
    q, k, v, grad_y, decay, angle, starts, futures, grad_q, grad_k, grad_decay, grad_angle,
    length, heads, key_dim: tl.constexpr, value_dim: tl.constexpr,
    TURNING: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    chunks = tl.cdiv(length, CHUNK)
    chunk, unit = program % chunks, program // chunks
    head, row = unit % heads, unit // heads * length
    keys, step = tl.arange(0, KEYS), tl.arange(0, CHUNK)
    PARTS: tl.constexpr = 2 if TURNING else 1
    size: tl.constexpr = key_dim * value_dim
    visible = step[:, None] >= step[None, :]

    time = chunk * CHUNK + step
    k_mask = (time[:, None] < length) & (keys[None, :] < key_dim)
    q_now = tl.load(_rows(q, row, head, time, heads, key_dim, keys), mask=k_mask, other=0.0)
    k_now = tl.load(_rows(k, row, head, time, heads, key_dim, keys), mask=k_mask, other=0.0)
    q_now, k_now = q_now.to(tl.float32), k_now.to(tl.float32)
    log, turn = _logarithm(decay, angle, row, head, time, heads, time < length, TURNING)
    products = tl.dot(q_now, tl.trans(k_now), input_precision=PRECISION)
    left = tl.where(visible, tl.exp(_sum_between(log, CHUNK)), 0.0)
    carried, kept = tl.exp(tl.cumsum(log, 0)), tl.exp(_sum_after(log, CHUNK))
    turned_between = tl.zeros_like(left)
    before_cos, before_sin = carried, tl.zeros_like(carried)
    after_cos, after_sin = kept, tl.zeros_like(kept)
    whole_cos, whole_sin = tl.exp(tl.sum(log, 0)), 0.0
    if TURNING:
        turned_between = _sum_between(turn, CHUNK)
        turned, to_turn, whole = tl.cumsum(turn, 0), _sum_after(turn, CHUNK), tl.sum(turn, 0)
        before_cos, before_sin = carried * tl.cos(turned), carried * tl.sin(turned)
        after_cos, after_sin = kept * tl.cos(to_turn), kept * tl.sin(to_turn)
        whole_cos, whole_sin = whole_cos * tl.cos(whole), whole_cos * tl.sin(whole)
    left_cos = left * tl.cos(turned_between) if TURNING else left

    # Sums over the columns of v: grad y . v of every pair, the first state seen by grad y, the
    # last state's gradient seen by v, and the first state in the last.
    pairs = tl.zeros([CHUNK, CHUNK], tl.float32)
    seen_real = tl.zeros([CHUNK, KEYS], tl.float32)
    seen_imag = tl.zeros([CHUNK, KEYS], tl.float32)
    asked_real = tl.zeros([CHUNK, KEYS], tl.float32)
    asked_imag = tl.zeros([CHUNK, KEYS], tl.float32)
    through, through_turn = 0.0, 0.0
    for first in range(0, value_dim, TILE):
        values = first + tl.arange(0, TILE)
        v_mask = (time[:, None] < length) & (values[None, :] < value_dim)
        at_v = _rows(v, row, head, time, heads, value_dim, values)
        v_now = tl.load(at_v, mask=v_mask, other=0.0).to(tl.float32)
        at_grad = _rows(grad_y, row, head, time, heads, value_dim, values)
        grad = tl.load(at_grad, mask=v_mask, other=0.0).to(tl.float32)
        inside = (keys[:, None] < key_dim) & (values[None, :] < value_dim)
        number = (unit * chunks + chunk) * PARTS
        at_start = _tile(starts, number, keys, values, key_dim, value_dim)
        at_end = _tile(futures, number, keys, values, key_dim, value_dim)
        start = tl.load(at_start, mask=inside, other=0.0)
        end = tl.load(at_end, mask=inside, other=0.0)

        pairs += tl.dot(grad, tl.trans(v_now), input_precision=PRECISION)
        seen_real += tl.dot(grad, tl.trans(start), input_precision=PRECISION)
        asked_real += tl.dot(v_now, tl.trans(end), input_precision=PRECISION)
        through += tl.sum(tl.sum(whole_cos * start * end, 1), 0)
        if TURNING:
            start_imag = tl.load(at_start + size, mask=inside, other=0.0)
            end_imag = tl.load(at_end + size, mask=inside, other=0.0)
            seen_imag += tl.dot(grad, tl.trans(start_imag), input_precision=PRECISION)
            asked_imag += tl.dot(v_now, tl.trans(end_imag), input_precision=PRECISION)
            real = whole_cos * start - whole_sin * start_imag
            imag = whole_sin * start + whole_cos * start_imag
            through += tl.sum(tl.sum(imag * end_imag - whole_sin * start_imag * end, 1), 0)
            through_turn += tl.sum(tl.sum(real * end_imag - imag * end, 1), 0)

    from_pairs = tl.where(visible, pairs * left_cos, 0.0)
    from_start = seen_real * before_cos[:, None] - seen_imag * before_sin[:, None]
    from_end = asked_real * after_cos[:, None] + asked_imag * after_sin[:, None]
    to_q = tl.dot(from_pairs, k_now, input_precision=PRECISION) + from_start
    to_k = tl.dot(tl.trans(from_pairs), q_now, input_precision=PRECISION) + from_end
    tl.store(_rows(grad_q, row, head, time, heads, key_dim, keys), to_q, mask=k_mask)
    tl.store(_rows(grad_k, row, head, time, heads, key_dim, keys), to_k, mask=k_mask)

    place = (row + time) * heads + head
    to_log = _over_pairs(products * from_pairs, CHUNK) + through
    to_log += _since(tl.sum(q_now * from_start, 1), CHUNK)
    to_log += _until(tl.sum(k_now * from_end, 1), CHUNK)
    rho = tl.load(decay + place, mask=time < length, other=1.0)
    to_decay = tl.where(rho < SMALLEST, 0.0, to_log / tl.maximum(rho, SMALLEST))
    tl.store(grad_decay + place, to_decay, mask=time < length)
    if TURNING:
        across_pairs = tl.where(visible, -pairs * left * tl.sin(turned_between), 0.0)
        from_start = seen_real * before_sin[:, None] + seen_imag * before_cos[:, None]
        from_end = asked_imag * after_cos[:, None] - asked_real * after_sin[:, None]
        to_turn = _over_pairs(products * across_pairs, CHUNK) + through_turn
        to_turn -= _since(tl.sum(q_now * from_start, 1), CHUNK)
        to_turn += _until(tl.sum(k_now * from_end, 1), CHUNK)
        tl.store(grad_angle + place, to_turn, mask=time < length)
