"""The direct-form filter on a GPU, gradient included; see `_segments_triton` for the scheme.

A segment's transition is a 2 x 2 matrix, the product of powers of its bins' companion matrices.
They are formed in float64, a few operations a bin: squared in float32 the matrix of poles near
1 loses half its digits (radius 0.99999, angle 0.03, 512 steps: 1 % wrong). The states are the
outputs, so the gradient reads them from `y` (in `y`'s precision) and nothing else is kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from polewise.ops._backends import refuse_second_derivative
from polewise.ops._segments_triton import (
    AHEAD,
    CONFIGURATIONS,
    DYNAMIC,
    channels_adjacent,
    clears,
    extent,
    locate,
    num_segments,
    on_its_device,
    programs,
    read_ahead,
    read_pair,
    segment_steps,
    sum_runs,
    write_pair,
    write_zeros,
)


@torch.library.custom_op(
    "polewise::direct_form_forward_triton",
    mutates_args=(),
    schema="(Tensor x, Tensor a, Tensor offsets, "
    "Tensor lengths, Tensor state, int bin_length, bool reset) "
    "-> (Tensor, Tensor)",
)
@on_its_device
def forward(
    x: Tensor,
    a: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    state: Tensor,
    bin_length: int,
    reset: bool,
) -> tuple[Tensor, Tensor]:
    """y in `x`'s dtype, and the last state."""
    x, a, state = channels_adjacent(x), a.contiguous(), state.contiguous()
    y, last = _forward_like(x, a, offsets, lengths, state, bin_length, reset)
    if x.numel() == 0:
        return y, last.copy_(state)
    batch, length, dim = x.shape
    segments, steps = num_segments(length, bin_length), segment_steps(bin_length)
    sizes = (length, dim, a.shape[1], bin_length, steps, segments)
    if segments == 1:
        starts = state
    else:
        summary = state.new_empty(batch, segments, 6, dim)
        _summaries[programs(dim, batch * segments)](
            x, a, offsets, lengths, summary, *sizes, x.stride(0), x.stride(1), RESET=reset
        )
        starts = state.new_empty(batch, segments, dim, 2)
        _starts[programs(dim, batch)](summary, state, offsets, lengths, starts, *sizes, RESET=reset)
    _outputs[programs(dim, batch * segments)](
        x, a, offsets, lengths, starts, y, last, *sizes, x.stride(0), x.stride(1), RESET=reset
    )
    return y, last


@forward.register_fake
def _forward_like(x, a, offsets, lengths, state, bin_length, reset):
    return x.new_empty(x.shape), state.new_empty(state.shape)


@torch.library.custom_op(
    "polewise::direct_form_backward_triton",
    mutates_args=(),
    schema="(Tensor grad_y, Tensor grad_last, Tensor y, Tensor a, Tensor offsets, "
    "Tensor lengths, Tensor state, int bin_length, bool reset) "
    "-> (Tensor, Tensor, Tensor)",
)
@on_its_device
def backward(
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
    """Gradients of x, a and the first state."""
    batch, length, dim = y.shape
    bins, steps = a.shape[1], segment_steps(bin_length)
    segments = num_segments(length, bin_length)
    grad_x, grad_state = y.new_empty(y.shape), state.new_empty(state.shape)
    if y.numel() == 0:
        return grad_x, a.new_zeros(a.shape), grad_state.copy_(grad_last)
    y, a, grad_y = y.contiguous(), a.contiguous(), channels_adjacent(grad_y)
    state, grad_last = state.contiguous(), grad_last.contiguous()
    sizes = (length, dim, bins, bin_length, steps, segments)
    strides = (grad_y.stride(0), grad_y.stride(1))
    if segments == 1:
        futures = grad_last
    else:
        summary = state.new_empty(batch, segments, 6, dim)
        _gradient_summaries[programs(dim, batch * segments)](
            grad_y, a, offsets, lengths, summary, *sizes, *strides, RESET=reset
        )
        futures = state.new_empty(batch, segments, dim, 2)
        _futures[programs(dim, batch)](
            summary, grad_last, offsets, lengths, futures, *sizes, RESET=reset
        )
    parts = state.new_empty(batch, segments + bins - 1, 2, dim)
    _input_gradients[programs(dim, batch * segments)](
        grad_y, y, a, offsets, lengths, state, futures, grad_x, parts, grad_state, *sizes,
        *strides, RESET=reset,
    )  # fmt: skip
    return grad_x, sum_runs(parts, offsets, lengths, a, bin_length, segments), grad_state


@backward.register_fake
def _(grad_y, grad_last, y, a, offsets, lengths, state, bin_length, reset):
    return tuple(like.new_empty(like.shape) for like in (y, a, state))


backward.register_autograd(refuse_second_derivative)


def _setup_context(ctx, inputs, output):
    _, a, offsets, lengths, state, ctx.bin_length, ctx.reset = inputs
    ctx.save_for_backward(output[0], a, offsets, lengths, state)


def _backward(ctx, grad_y, grad_last):
    y, a, offsets, lengths, state = ctx.saved_tensors
    grad_x, grad_a, grad_state = backward(
        grad_y, grad_last, y, a, offsets, lengths, state, ctx.bin_length, ctx.reset
    )
    return grad_x, grad_a, None, None, grad_state, None, None


forward.register_autograd(_backward, setup_context=_setup_context)


@triton.jit
def _times(l11, l12, l21, l22, r11, r12, r21, r22):
    """The product of two 2 x 2 matrices, left times right."""
    return (
        l11 * r11 + l12 * r21, l11 * r12 + l12 * r22,
        l21 * r11 + l22 * r21, l21 * r12 + l22 * r22,
    )  # fmt: skip


@triton.jit
def _power(a1, a2, exponent):
    """The companion matrix of (a1, a2) to a power, in float64."""
    m11, m12 = -a1.to(tl.float64), -a2.to(tl.float64)
    m21, m22 = tl.full(a1.shape, 1, tl.float64), tl.zeros(a1.shape, tl.float64)
    p11, p12, p21, p22 = m21, m22, m22, m21
    while exponent > 0:
        n11, n12, n21, n22 = _times(m11, m12, m21, m22, p11, p12, p21, p22)
        odd = exponent % 2 == 1
        p11, p12 = tl.where(odd, n11, p11), tl.where(odd, n12, p12)
        p21, p22 = tl.where(odd, n21, p21), tl.where(odd, n22, p22)
        m11, m12, m21, m22 = _times(m11, m12, m21, m22, m11, m12, m21, m22)
        exponent = exponent // 2
    return p11, p12, p21, p22


@triton.jit
def _read_matrix(place, dim, inside):
    return (
        tl.load(place, mask=inside, other=0), tl.load(place + dim, mask=inside, other=0),
        tl.load(place + 2 * dim, mask=inside, other=0),
        tl.load(place + 3 * dim, mask=inside, other=0),
    )  # fmt: skip


@triton.jit
def _write_summary(place, dim, p11, p12, p21, p22, first, second, inside):
    tl.store(place, p11, mask=inside)
    tl.store(place + dim, p12, mask=inside)
    tl.store(place + 2 * dim, p21, mask=inside)
    tl.store(place + 3 * dim, p22, mask=inside)
    tl.store(place + 4 * dim, first, mask=inside)
    tl.store(place + 5 * dim, second, mask=inside)


@triton.autotune(configs=CONFIGURATIONS, key=["dim"])
@triton.jit(do_not_specialize=DYNAMIC)
def _summaries(
    x, a, offsets, lengths, summary, length, dim: tl.constexpr, bins, bin_length, steps, segments,
    x_row, x_time: tl.constexpr, RESET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of every segment: the product of its companion matrices, and where it ends from rest."""
    row, segment, channels, inside = locate(dim, segments, BLOCK)
    offset, row_end = extent(offsets, lengths, row, bins, bin_length)
    zero = tl.zeros([BLOCK], summary.dtype.element_ty)
    y1, y2 = zero, zero
    p12 = tl.zeros([BLOCK], tl.float64)
    p11, p21, p22 = p12 + 1, p12, p12 + 1
    time = segment * steps
    stop = tl.minimum(time + steps, row_end)
    while time < stop:
        index = (offset + time) // bin_length
        begin = index * bin_length - offset
        count = tl.minimum(stop, begin + bin_length) - time
        a1, a2 = read_pair(a + ((row * bins + index) * dim + channels) * 2, inside)
        if RESET:
            y1 = tl.where(begin == time, 0, y1)
            y2 = tl.where(begin == time, 0, y2)
        x_here = x + row * x_row + time * x_time + channels
        for _ in range(count // AHEAD):
            xs = read_ahead(x_here, x_time, inside, AHEAD)
            for i in tl.static_range(AHEAD):
                y1, y2 = xs[i].to(y1.dtype) - a1 * y1 - a2 * y2, y1
            x_here += AHEAD * x_time
        for _ in range(count % AHEAD):
            x_now = tl.load(x_here, mask=inside, other=0).to(y1.dtype)
            y1, y2 = x_now - a1 * y1 - a2 * y2, y1
            x_here += x_time
        m11, m12, m21, m22 = _power(a1, a2, count)
        p11, p12, p21, p22 = _times(m11, m12, m21, m22, p11, p12, p21, p22)
        time += count
    place = summary + (row * segments + segment) * 6 * dim + channels
    _write_summary(place, dim, p11, p12, p21, p22, y1, y2, inside)


@triton.autotune(configs=CONFIGURATIONS, key=["dim"])
@triton.jit(do_not_specialize=DYNAMIC)
def _starts(
    summary, state, offsets, lengths, starts, length, dim: tl.constexpr, bins, bin_length, steps,
    segments, RESET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The state before every segment."""
    row, _, channels, inside = locate(dim, 1, BLOCK)
    offset, row_end = extent(offsets, lengths, row, bins, bin_length)
    y1, y2 = read_pair(state + (row * dim + channels) * 2, inside)
    place = summary + row * segments * 6 * dim + channels
    out = starts + (row * segments * dim + channels) * 2
    for segment in tl.range(segments, num_stages=4):
        write_pair(out, y1, y2, inside)
        p11, p12, p21, p22 = _read_matrix(place, dim, inside)
        y1, y2 = p11 * y1 + p12 * y2, p21 * y1 + p22 * y2
        if RESET:
            first = tl.cast(segment, tl.int64) * steps
            cleared = clears(first, tl.minimum(first + steps, row_end), offset, bin_length)
            y1 = tl.where(cleared, 0, y1)
            y2 = tl.where(cleared, 0, y2)
        y1 += tl.load(place + 4 * dim, mask=inside, other=0)
        y2 += tl.load(place + 5 * dim, mask=inside, other=0)
        place += 6 * dim
        out += 2 * dim


@triton.autotune(configs=CONFIGURATIONS, key=["dim"])
@triton.jit(do_not_specialize=DYNAMIC)
def _outputs(
    x, a, offsets, lengths, starts, y, last, length, dim: tl.constexpr, bins, bin_length, steps,
    segments, x_row, x_time: tl.constexpr, RESET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, segment, channels, inside = locate(dim, segments, BLOCK)
    offset, row_end = extent(offsets, lengths, row, bins, bin_length)
    y1, y2 = read_pair(starts + ((row * segments + segment) * dim + channels) * 2, inside)
    y_row = y + row * length * dim + channels
    time = segment * steps
    stop = tl.minimum(time + steps, row_end)
    write_zeros(y_row, tl.maximum(time, row_end), tl.minimum(time + steps, length), dim, inside)
    while time < stop:
        index = (offset + time) // bin_length
        begin = index * bin_length - offset
        count = tl.minimum(stop, begin + bin_length) - time
        a1, a2 = read_pair(a + ((row * bins + index) * dim + channels) * 2, inside)
        if RESET:
            y1 = tl.where(begin == time, 0, y1)
            y2 = tl.where(begin == time, 0, y2)
        x_here = x + row * x_row + time * x_time + channels
        y_here = y_row + time * dim
        for _ in range(count // AHEAD):
            xs = read_ahead(x_here, x_time, inside, AHEAD)
            for i in tl.static_range(AHEAD):
                y1, y2 = xs[i].to(y1.dtype) - a1 * y1 - a2 * y2, y1
                tl.store(y_here + i * dim, y1, mask=inside)
            x_here += AHEAD * x_time
            y_here += AHEAD * dim
        for _ in range(count % AHEAD):
            x_now = tl.load(x_here, mask=inside, other=0).to(y1.dtype)
            y1, y2 = x_now - a1 * y1 - a2 * y2, y1
            tl.store(y_here, y1, mask=inside)
            x_here += x_time
            y_here += dim
        time += count
    if segment == segments - 1:
        write_pair(last + (row * dim + channels) * 2, y1, y2, inside)


@triton.jit
def _retreat(g1, g2, a1, a2, grad):
    """One step against time: grad x, and the gradient of the state before the step."""
    now = grad.to(g1.dtype) + g1
    return now, g2 - a1 * now, -a2 * now


@triton.autotune(configs=CONFIGURATIONS, key=["dim"])
@triton.jit(do_not_specialize=DYNAMIC)
def _gradient_summaries(
    grad_y, a, offsets, lengths, summary, length, dim: tl.constexpr, bins, bin_length, steps,
    segments, grad_row, grad_time: tl.constexpr, RESET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of every segment: the product of its companion matrices, and what its own outputs say
    about the state before it."""
    row, segment, channels, inside = locate(dim, segments, BLOCK)
    offset, row_end = extent(offsets, lengths, row, bins, bin_length)
    zero = tl.zeros([BLOCK], summary.dtype.element_ty)
    g1, g2 = zero, zero
    # The steps met so far are later ones: their product stays on the left.
    p12 = tl.zeros([BLOCK], tl.float64)
    p11, p21, p22 = p12 + 1, p12, p12 + 1
    first = segment * steps
    time = tl.minimum(first + steps, row_end)
    while time > first:
        index = (offset + time - 1) // bin_length
        begin = index * bin_length - offset
        count = time - tl.maximum(first, begin)
        a1, a2 = read_pair(a + ((row * bins + index) * dim + channels) * 2, inside)
        grad_here = grad_y + row * grad_row + (time - 1) * grad_time + channels
        for _ in range(count // AHEAD):
            grads = read_ahead(grad_here, -grad_time, inside, AHEAD)
            for i in tl.static_range(AHEAD):
                _, g1, g2 = _retreat(g1, g2, a1, a2, grads[i])
            grad_here -= AHEAD * grad_time
        for _ in range(count % AHEAD):
            grad = tl.load(grad_here, mask=inside, other=0)
            _, g1, g2 = _retreat(g1, g2, a1, a2, grad)
            grad_here -= grad_time
        m11, m12, m21, m22 = _power(a1, a2, count)
        p11, p12, p21, p22 = _times(p11, p12, p21, p22, m11, m12, m21, m22)
        time -= count
        if RESET:
            g1 = tl.where(begin == time, 0, g1)
            g2 = tl.where(begin == time, 0, g2)
    place = summary + (row * segments + segment) * 6 * dim + channels
    _write_summary(place, dim, p11, p12, p21, p22, g1, g2, inside)


@triton.autotune(configs=CONFIGURATIONS, key=["dim"])
@triton.jit(do_not_specialize=DYNAMIC)
def _futures(
    summary, grad_last, offsets, lengths, futures, length, dim: tl.constexpr, bins, bin_length,
    steps, segments, RESET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What all later segments say about the state at the end of every segment."""
    row, _, channels, inside = locate(dim, 1, BLOCK)
    offset, row_end = extent(offsets, lengths, row, bins, bin_length)
    g1, g2 = read_pair(grad_last + (row * dim + channels) * 2, inside)
    place = summary + (row * segments + segments - 1) * 6 * dim + channels
    out = futures + ((row * segments + segments - 1) * dim + channels) * 2
    first = tl.cast(segments - 1, tl.int64) * steps
    for _ in tl.range(segments, num_stages=4):
        write_pair(out, g1, g2, inside)
        p11, p12, p21, p22 = _read_matrix(place, dim, inside)
        g1, g2 = p11 * g1 + p21 * g2, p12 * g1 + p22 * g2
        if RESET:
            cleared = clears(first, tl.minimum(first + steps, row_end), offset, bin_length)
            g1 = tl.where(cleared, 0, g1)
            g2 = tl.where(cleared, 0, g2)
        g1 += tl.load(place + 4 * dim, mask=inside, other=0)
        g2 += tl.load(place + 5 * dim, mask=inside, other=0)
        first -= steps
        place -= 6 * dim
        out -= 2 * dim


@triton.jit
def _past(y_row, time, dim, floor, state1, state2, inside):
    """y at `time`: an output, the state before the first one, or rest before `floor`."""
    value = tl.load(y_row + tl.maximum(time, 0) * dim, mask=inside, other=0).to(state1.dtype)
    value = tl.where(time >= 0, value, tl.where(time == -1, state1, state2))
    return tl.where(time < floor, 0, value)


@triton.autotune(configs=CONFIGURATIONS, key=["dim"])
@triton.jit(do_not_specialize=DYNAMIC)
def _input_gradients(
    grad_y, y, a, offsets, lengths, state, futures, grad_x, parts, grad_state, length,
    dim: tl.constexpr, bins, bin_length, steps, segments, grad_row, grad_time: tl.constexpr,
    RESET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, segment, channels, inside = locate(dim, segments, BLOCK)
    offset, row_end = extent(offsets, lengths, row, bins, bin_length)
    g1, g2 = read_pair(futures + ((row * segments + segment) * dim + channels) * 2, inside)
    state1, state2 = read_pair(state + (row * dim + channels) * 2, inside)
    y_row = y + row * length * dim + channels
    x_row = grad_x + row * length * dim + channels
    first = segment * steps
    time = tl.minimum(first + steps, row_end)
    write_zeros(x_row, tl.maximum(first, row_end), tl.minimum(first + steps, length), dim, inside)
    while time > first:
        index = (offset + time - 1) // bin_length
        begin = index * bin_length - offset
        count = time - tl.maximum(first, begin)
        # Steps whose two past outputs lie in memory and in this bin's reach: all but two.
        floor = tl.cast(-2, tl.int64)
        if RESET:
            floor = tl.where(begin >= 0, begin, floor)
        plain = tl.maximum(tl.minimum(time - tl.maximum(floor, 0) - 2, count), 0)
        a1, a2 = read_pair(a + ((row * bins + index) * dim + channels) * 2, inside)
        by_a1 = tl.zeros([BLOCK], parts.dtype.element_ty)
        by_a2 = tl.zeros([BLOCK], parts.dtype.element_ty)
        y1 = _past(y_row, time - 2, dim, floor, state1, state2, inside)
        grad_here = grad_y + row * grad_row + (time - 1) * grad_time + channels
        for _ in range(plain // AHEAD):
            grads = read_ahead(grad_here, -grad_time, inside, AHEAD)
            ys = read_ahead(y_row + (time - 3) * dim, -dim, inside, AHEAD)
            for i in tl.static_range(AHEAD):
                now, g1, g2 = _retreat(g1, g2, a1, a2, grads[i])
                tl.store(x_row + (time - 1 - i) * dim, now, mask=inside)
                y2 = ys[i].to(y1.dtype)
                by_a1 -= now * y1
                by_a2 -= now * y2
                y1 = y2
            grad_here -= AHEAD * grad_time
            time -= AHEAD
        for _ in range(plain % AHEAD + count - plain):
            grad = tl.load(grad_here, mask=inside, other=0)
            now, g1, g2 = _retreat(g1, g2, a1, a2, grad)
            tl.store(x_row + (time - 1) * dim, now, mask=inside)
            y2 = _past(y_row, time - 3, dim, floor, state1, state2, inside)
            by_a1 -= now * y1
            by_a2 -= now * y2
            y1 = y2
            grad_here -= grad_time
            time -= 1
        place = parts + (row * (segments + bins - 1) + segment + index) * 2 * dim + channels
        tl.store(place, by_a1, mask=inside)
        tl.store(place + dim, by_a2, mask=inside)
        if RESET:
            g1 = tl.where(begin == time, 0, g1)
            g2 = tl.where(begin == time, 0, g2)
    if segment == 0:
        write_pair(grad_state + (row * dim + channels) * 2, g1, g2, inside)
