"""The normal-form filter on a GPU, gradient included; see `_segments_triton` for the scheme.

With the complex state s and pole p, s[t] = p s[t-1] + x[t] and y[t] = Re(conj(c) s[t]), a
segment's transition is one complex number, the product of its poles.

Gradient. Against time, l[t] = c gy[t] + conj(p) l[t+1] gives grad x = Re l. The pole's gradient
is the sum of l[t] conj(s[t-1]), which would want every state again at the moment when time runs
backwards. Inside a run, where p is constant, the same number comes out *along* time: with
d[t] = p d[t-1] + s[t-1], the derivative of s[t] by p, it is

    c conj(sum of gy[t] d[t]) + m conj(d[end]),

m being what the future says about the state at the end of the run. So the states are run once
more from the segments' first ones, forwards, in the pass that also summarises the segments of l,
and none is stored.
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
    "polewise::normal_form_forward_triton",
    mutates_args=(),
    schema="(Tensor x, Tensor pole, Tensor mix, Tensor offsets, "
    "Tensor lengths, Tensor state, int bin_length, bool reset) "
    "-> (Tensor, Tensor, Tensor)",
)
@on_its_device
def forward(
    x: Tensor,
    pole: Tensor,
    mix: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    state: Tensor,
    bin_length: int,
    reset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y in `x`'s dtype, the last state, and the state before every segment."""
    x, pole, state = channels_adjacent(x), pole.contiguous(), state.contiguous()
    y, last, starts = _forward_like(x, pole, mix, offsets, lengths, state, bin_length, reset)
    if x.numel() == 0:
        return y, last.copy_(state), starts
    batch, length, dim = x.shape
    segments, steps = starts.shape[1], segment_steps(bin_length)
    sizes = (length, dim, pole.shape[1], bin_length, steps, segments)
    if segments == 1:
        starts.copy_(state[:, None])
    else:
        summary = state.new_empty(batch, segments, 4, dim)
        _summaries[programs(dim, batch * segments)](
            x, pole, offsets, lengths, summary, *sizes, x.stride(0), x.stride(1), RESET=reset
        )
        _starts[programs(dim, batch)](summary, state, offsets, lengths, starts, *sizes, RESET=reset)
    _outputs[programs(dim, batch * segments)](
        x, pole, mix, offsets, lengths, starts, y, last, *sizes, x.stride(0), x.stride(1),
        *mix.stride(), RESET=reset,
    )  # fmt: skip
    return y, last, starts


@forward.register_fake
def _forward_like(x, pole, mix, offsets, lengths, state, bin_length, reset):
    batch, length, dim = x.shape
    return (
        x.new_empty(batch, length, dim),
        state.new_empty(batch, dim, 2),
        state.new_empty(batch, num_segments(length, bin_length), dim, 2),
    )


@torch.library.custom_op(
    "polewise::normal_form_backward_triton",
    mutates_args=(),
    schema="(Tensor grad_y, Tensor grad_last, Tensor x, Tensor pole, Tensor mix, Tensor offsets, "
    "Tensor lengths, Tensor starts, int bin_length, bool reset) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
@on_its_device
def backward(
    grad_y: Tensor,
    grad_last: Tensor,
    x: Tensor,
    pole: Tensor,
    mix: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    starts: Tensor,
    bin_length: int,
    reset: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, pole, mix and the first state."""
    batch, length, dim = x.shape
    bins, segments, steps = pole.shape[1], starts.shape[1], segment_steps(bin_length)
    grad_x, grad_state = x.new_empty(x.shape), grad_last.new_empty(grad_last.shape)
    if x.numel() == 0:
        nothing = pole.new_zeros(pole.shape)
        return grad_x, nothing, nothing.clone(), grad_state.copy_(grad_last)
    x, pole, grad_y = channels_adjacent(x), pole.contiguous(), channels_adjacent(grad_y)
    grad_last = grad_last.contiguous()
    sizes = (length, dim, bins, bin_length, steps, segments)
    strides = (grad_y.stride(0), grad_y.stride(1))
    summary = starts.new_empty(batch, segments, 4, dim)
    sums = starts.new_empty(batch, segments + bins - 1, 6, dim)
    _sensitivities[programs(dim, batch * segments)](
        x, grad_y, pole, mix, offsets, lengths, starts, summary, sums, *sizes, x.stride(0),
        x.stride(1), *strides, *mix.stride(), RESET=reset,
    )  # fmt: skip
    if segments == 1:
        futures = grad_last
    else:
        futures = torch.empty_like(starts)
        _futures[programs(dim, batch)](
            summary, grad_last, offsets, lengths, futures, *sizes, RESET=reset
        )
    pole_parts = starts.new_empty(batch, segments + bins - 1, 2, dim)
    _input_gradients[programs(dim, batch * segments)](
        grad_y, pole, mix, offsets, lengths, futures, sums, grad_x, pole_parts, grad_state, *sizes,
        *strides, *mix.stride(), RESET=reset,
    )  # fmt: skip
    rows = (offsets, lengths, pole, bin_length, segments)
    return grad_x, sum_runs(pole_parts, *rows), sum_runs(sums, *rows), grad_state


@backward.register_fake
def _(grad_y, grad_last, x, pole, mix, offsets, lengths, starts, bin_length, reset):
    return tuple(like.new_empty(like.shape) for like in (x, pole, mix, grad_last))


backward.register_autograd(refuse_second_derivative)


def _setup_context(ctx, inputs, output):
    x, pole, mix, offsets, lengths, _, ctx.bin_length, ctx.reset = inputs
    starts = output[2]
    ctx.mark_non_differentiable(starts)
    ctx.save_for_backward(x, pole, mix, offsets, lengths, starts)


def _backward(ctx, grad_y, grad_last, _):
    x, pole, mix, offsets, lengths, starts = ctx.saved_tensors
    grad_x, grad_pole, grad_mix, grad_state = backward(
        grad_y, grad_last, x, pole, mix, offsets, lengths, starts, ctx.bin_length, ctx.reset
    )
    return grad_x, grad_pole, grad_mix, None, None, grad_state, None, None


forward.register_autograd(_backward, setup_context=_setup_context)


@triton.jit
def _times(left_real, left_imag, right_real, right_imag):
    return (
        left_real * right_real - left_imag * right_imag,
        left_real * right_imag + left_imag * right_real,
    )


@triton.jit
def _power(real, imag, exponent):
    """By squaring."""
    power_real, power_imag = tl.full(real.shape, 1, real.dtype), tl.zeros(real.shape, real.dtype)
    while exponent > 0:
        next_real, next_imag = _times(power_real, power_imag, real, imag)
        odd = exponent % 2 == 1
        power_real = tl.where(odd, next_real, power_real)
        power_imag = tl.where(odd, next_imag, power_imag)
        real, imag = _times(real, imag, real, imag)
        exponent = exponent // 2
    return power_real, power_imag


@triton.jit
def _advance(real, imag, pole_real, pole_imag, x):
    """One step: turn, shrink, add."""
    turned_real, turned_imag = _times(pole_real, pole_imag, real, imag)
    return turned_real + x.to(real.dtype), turned_imag


@triton.autotune(configs=CONFIGURATIONS, key=["dim"])
@triton.jit(do_not_specialize=DYNAMIC)
def _summaries(
    x, pole, offsets, lengths, summary, length, dim: tl.constexpr, bins, bin_length, steps,
    segments, x_row, x_time: tl.constexpr, RESET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of every segment: where it ends from rest, and the product of its poles."""
    row, segment, channels, inside = locate(dim, segments, BLOCK)
    offset, row_end = extent(offsets, lengths, row, bins, bin_length)
    real = tl.zeros([BLOCK], summary.dtype.element_ty)
    imag = tl.zeros([BLOCK], summary.dtype.element_ty)
    product_real, product_imag = real + 1, imag
    time = segment * steps
    stop = tl.minimum(time + steps, row_end)
    while time < stop:
        index = (offset + time) // bin_length
        begin = index * bin_length - offset
        count = tl.minimum(stop, begin + bin_length) - time
        pole_real, pole_imag = read_pair(pole + ((row * bins + index) * dim + channels) * 2, inside)
        if RESET:
            real = tl.where(begin == time, 0, real)
            imag = tl.where(begin == time, 0, imag)
        x_here = x + row * x_row + time * x_time + channels
        for _ in range(count // AHEAD):
            xs = read_ahead(x_here, x_time, inside, AHEAD)
            for i in tl.static_range(AHEAD):
                real, imag = _advance(real, imag, pole_real, pole_imag, xs[i])
            x_here += AHEAD * x_time
        for _ in range(count % AHEAD):
            x_now = tl.load(x_here, mask=inside, other=0)
            real, imag = _advance(real, imag, pole_real, pole_imag, x_now)
            x_here += x_time
        power_real, power_imag = _power(pole_real, pole_imag, count)
        product_real, product_imag = _times(product_real, product_imag, power_real, power_imag)
        time += count
    place = summary + (row * segments + segment) * 4 * dim + channels
    tl.store(place, real, mask=inside)
    tl.store(place + dim, imag, mask=inside)
    tl.store(place + 2 * dim, product_real, mask=inside)
    tl.store(place + 3 * dim, product_imag, mask=inside)


@triton.autotune(configs=CONFIGURATIONS, key=["dim"])
@triton.jit(do_not_specialize=DYNAMIC)
def _starts(
    summary, state, offsets, lengths, starts, length, dim: tl.constexpr, bins, bin_length, steps,
    segments, RESET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The state before every segment."""
    row, _, channels, inside = locate(dim, 1, BLOCK)
    offset, row_end = extent(offsets, lengths, row, bins, bin_length)
    real, imag = read_pair(state + (row * dim + channels) * 2, inside)
    place = summary + row * segments * 4 * dim + channels
    out = starts + (row * segments * dim + channels) * 2
    for segment in tl.range(segments, num_stages=4):
        write_pair(out, real, imag, inside)
        end_real = tl.load(place, mask=inside, other=0)
        end_imag = tl.load(place + dim, mask=inside, other=0)
        product_real = tl.load(place + 2 * dim, mask=inside, other=0)
        product_imag = tl.load(place + 3 * dim, mask=inside, other=0)
        real, imag = _times(product_real, product_imag, real, imag)
        if RESET:
            first = tl.cast(segment, tl.int64) * steps
            cleared = clears(first, tl.minimum(first + steps, row_end), offset, bin_length)
            real = tl.where(cleared, 0, real)
            imag = tl.where(cleared, 0, imag)
        real += end_real
        imag += end_imag
        place += 4 * dim
        out += 2 * dim


@triton.autotune(configs=CONFIGURATIONS, key=["dim"])
@triton.jit(do_not_specialize=DYNAMIC)
def _outputs(
    x, pole, mix, offsets, lengths, starts, y, last, length, dim: tl.constexpr, bins, bin_length,
    steps, segments, x_row, x_time: tl.constexpr, mix_row, mix_bin, mix_channel, mix_part,
    RESET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, segment, channels, inside = locate(dim, segments, BLOCK)
    offset, row_end = extent(offsets, lengths, row, bins, bin_length)
    real, imag = read_pair(starts + ((row * segments + segment) * dim + channels) * 2, inside)
    y_row = y + row * length * dim + channels
    time = segment * steps
    stop = tl.minimum(time + steps, row_end)
    write_zeros(y_row, tl.maximum(time, row_end), tl.minimum(time + steps, length), dim, inside)
    while time < stop:
        index = (offset + time) // bin_length
        begin = index * bin_length - offset
        count = tl.minimum(stop, begin + bin_length) - time
        pole_real, pole_imag = read_pair(pole + ((row * bins + index) * dim + channels) * 2, inside)
        mix_here = mix + row * mix_row + index * mix_bin + channels * mix_channel
        mix_real = tl.load(mix_here, mask=inside, other=0)
        mix_imag = tl.load(mix_here + mix_part, mask=inside, other=0)
        if RESET:
            real = tl.where(begin == time, 0, real)
            imag = tl.where(begin == time, 0, imag)
        x_here = x + row * x_row + time * x_time + channels
        y_here = y_row + time * dim
        for _ in range(count // AHEAD):
            xs = read_ahead(x_here, x_time, inside, AHEAD)
            for i in tl.static_range(AHEAD):
                real, imag = _advance(real, imag, pole_real, pole_imag, xs[i])
                tl.store(y_here + i * dim, mix_real * real + mix_imag * imag, mask=inside)
            x_here += AHEAD * x_time
            y_here += AHEAD * dim
        for _ in range(count % AHEAD):
            x_now = tl.load(x_here, mask=inside, other=0)
            real, imag = _advance(real, imag, pole_real, pole_imag, x_now)
            tl.store(y_here, mix_real * real + mix_imag * imag, mask=inside)
            x_here += x_time
            y_here += dim
        time += count
    if segment == segments - 1:
        write_pair(last + (row * dim + channels) * 2, real, imag, inside)


@triton.jit
def _sense(
    x, grad, real, imag, pole_real, pole_imag, d_real, d_imag, turn_real, turn_imag,
    along_real, along_imag, by_state_real, by_state_imag, by_pole_real, by_pole_imag,
):  # fmt: skip
    """One step of the state and of its derivative, and of the three sums weighted by `grad`."""
    grad = grad.to(real.dtype)
    d_real, d_imag = _times(pole_real, pole_imag, d_real, d_imag)
    d_real += real
    d_imag += imag
    real, imag = _advance(real, imag, pole_real, pole_imag, x)
    along_real += grad * turn_real
    along_imag += grad * turn_imag
    by_state_real += grad * real
    by_state_imag += grad * imag
    by_pole_real += grad * d_real
    by_pole_imag += grad * d_imag
    turn_real, turn_imag = _times(turn_real, turn_imag, pole_real, -pole_imag)
    return (
        real, imag, d_real, d_imag, turn_real, turn_imag, along_real, along_imag,
        by_state_real, by_state_imag, by_pole_real, by_pole_imag,
    )  # fmt: skip


@triton.autotune(configs=CONFIGURATIONS, key=["dim"])
@triton.jit(do_not_specialize=DYNAMIC)
def _sensitivities(
    x, grad_y, pole, mix, offsets, lengths, starts, summary, sums, length, dim: tl.constexpr, bins,
    bin_length, steps, segments, x_row, x_time: tl.constexpr, grad_row, grad_time: tl.constexpr,
    mix_row, mix_bin, mix_channel, mix_part, RESET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of every run: the mix's gradient, the pole's so far, and d at the run's end. Of every
    segment: what its outputs say about the state before it, and what its end passes on."""
    row, segment, channels, inside = locate(dim, segments, BLOCK)
    offset, row_end = extent(offsets, lengths, row, bins, bin_length)
    real, imag = read_pair(starts + ((row * segments + segment) * dim + channels) * 2, inside)
    zero = tl.zeros([BLOCK], sums.dtype.element_ty)
    before_real, before_imag = zero, zero
    product_real, product_imag = zero + 1, zero
    time = segment * steps
    first, stop = time, tl.minimum(time + steps, row_end)
    while time < stop:
        index = (offset + time) // bin_length
        begin = index * bin_length - offset
        count = tl.minimum(stop, begin + bin_length) - time
        pole_real, pole_imag = read_pair(pole + ((row * bins + index) * dim + channels) * 2, inside)
        mix_here = mix + row * mix_row + index * mix_bin + channels * mix_channel
        mix_real = tl.load(mix_here, mask=inside, other=0)
        mix_imag = tl.load(mix_here + mix_part, mask=inside, other=0)
        if RESET:
            real = tl.where(begin == time, 0, real)
            imag = tl.where(begin == time, 0, imag)
        d_real, d_imag, turn_real, turn_imag = zero, zero, zero + 1, zero
        along_real, along_imag = zero, zero
        by_state_real, by_state_imag, by_pole_real, by_pole_imag = zero, zero, zero, zero
        x_here = x + row * x_row + time * x_time + channels
        grad_here = grad_y + row * grad_row + time * grad_time + channels
        for _ in range(count // AHEAD):
            xs = read_ahead(x_here, x_time, inside, AHEAD)
            grads = read_ahead(grad_here, grad_time, inside, AHEAD)
            for i in tl.static_range(AHEAD):
                (
                    real, imag, d_real, d_imag, turn_real, turn_imag, along_real, along_imag,
                    by_state_real, by_state_imag, by_pole_real, by_pole_imag,
                ) = _sense(
                    xs[i], grads[i], real, imag, pole_real, pole_imag, d_real, d_imag, turn_real,
                    turn_imag, along_real, along_imag, by_state_real, by_state_imag, by_pole_real,
                    by_pole_imag,
                )  # fmt: skip
            x_here += AHEAD * x_time
            grad_here += AHEAD * grad_time
        for _ in range(count % AHEAD):
            (
                real, imag, d_real, d_imag, turn_real, turn_imag, along_real, along_imag,
                by_state_real, by_state_imag, by_pole_real, by_pole_imag,
            ) = _sense(
                tl.load(x_here, mask=inside, other=0), tl.load(grad_here, mask=inside, other=0),
                real, imag, pole_real, pole_imag, d_real, d_imag, turn_real, turn_imag, along_real,
                along_imag, by_state_real, by_state_imag, by_pole_real, by_pole_imag,
            )  # fmt: skip
            x_here += x_time
            grad_here += grad_time

        # What this run says about the state before the segment, unless a reset lies between.
        along_real, along_imag = _times(along_real, along_imag, mix_real, mix_imag)
        along_real, along_imag = _times(along_real, along_imag, pole_real, -pole_imag)
        along_real, along_imag = _times(along_real, along_imag, product_real, product_imag)
        connected = True
        if RESET:
            connected = not clears(first, time + 1, offset, bin_length)
        before_real += tl.where(connected, along_real, 0)
        before_imag += tl.where(connected, along_imag, 0)
        product_real, product_imag = _times(product_real, product_imag, turn_real, turn_imag)

        by_pole_real, by_pole_imag = _times(mix_real, mix_imag, by_pole_real, -by_pole_imag)
        place = sums + (row * (segments + bins - 1) + segment + index) * 6 * dim + channels
        tl.store(place, by_state_real, mask=inside)
        tl.store(place + dim, by_state_imag, mask=inside)
        tl.store(place + 2 * dim, by_pole_real, mask=inside)
        tl.store(place + 3 * dim, by_pole_imag, mask=inside)
        tl.store(place + 4 * dim, d_real, mask=inside)
        tl.store(place + 5 * dim, d_imag, mask=inside)
        time += count
    place = summary + (row * segments + segment) * 4 * dim + channels
    tl.store(place, before_real, mask=inside)
    tl.store(place + dim, before_imag, mask=inside)
    tl.store(place + 2 * dim, product_real, mask=inside)
    tl.store(place + 3 * dim, product_imag, mask=inside)


@triton.autotune(configs=CONFIGURATIONS, key=["dim"])
@triton.jit(do_not_specialize=DYNAMIC)
def _futures(
    summary, grad_last, offsets, lengths, futures, length, dim: tl.constexpr, bins, bin_length,
    steps, segments, RESET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What all later segments say about the state at the end of every segment."""
    row, _, channels, inside = locate(dim, 1, BLOCK)
    offset, row_end = extent(offsets, lengths, row, bins, bin_length)
    real, imag = read_pair(grad_last + (row * dim + channels) * 2, inside)
    place = summary + (row * segments + segments - 1) * 4 * dim + channels
    out = futures + ((row * segments + segments - 1) * dim + channels) * 2
    first = tl.cast(segments - 1, tl.int64) * steps
    for _ in tl.range(segments, num_stages=4):
        write_pair(out, real, imag, inside)
        before_real = tl.load(place, mask=inside, other=0)
        before_imag = tl.load(place + dim, mask=inside, other=0)
        product_real = tl.load(place + 2 * dim, mask=inside, other=0)
        product_imag = tl.load(place + 3 * dim, mask=inside, other=0)
        real, imag = _times(product_real, product_imag, real, imag)
        if RESET:
            cleared = clears(first, tl.minimum(first + steps, row_end), offset, bin_length)
            real = tl.where(cleared, 0, real)
            imag = tl.where(cleared, 0, imag)
        real += before_real
        imag += before_imag
        first -= steps
        place -= 4 * dim
        out -= 2 * dim


@triton.jit
def _retreat(real, imag, pole_real, pole_imag, mix_real, mix_imag, grad):
    """One step of l against time: its value, whose real part is grad x, and what it passes on."""
    grad = grad.to(real.dtype)
    real += mix_real * grad
    imag += mix_imag * grad
    before_real, before_imag = _times(real, imag, pole_real, -pole_imag)
    return real, before_real, before_imag


@triton.autotune(configs=CONFIGURATIONS, key=["dim"])
@triton.jit(do_not_specialize=DYNAMIC)
def _input_gradients(
    grad_y, pole, mix, offsets, lengths, futures, sums, grad_x, pole_parts, grad_state, length,
    dim: tl.constexpr, bins, bin_length, steps, segments, grad_row, grad_time: tl.constexpr,
    mix_row, mix_bin, mix_channel, mix_part, RESET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, segment, channels, inside = locate(dim, segments, BLOCK)
    offset, row_end = extent(offsets, lengths, row, bins, bin_length)
    real, imag = read_pair(futures + ((row * segments + segment) * dim + channels) * 2, inside)
    x_row = grad_x + row * length * dim + channels
    first = segment * steps
    time = tl.minimum(first + steps, row_end)
    write_zeros(x_row, tl.maximum(first, row_end), tl.minimum(first + steps, length), dim, inside)
    while time > first:
        index = (offset + time - 1) // bin_length
        begin = index * bin_length - offset
        count = time - tl.maximum(first, begin)
        pole_real, pole_imag = read_pair(pole + ((row * bins + index) * dim + channels) * 2, inside)
        mix_here = mix + row * mix_row + index * mix_bin + channels * mix_channel
        mix_real = tl.load(mix_here, mask=inside, other=0)
        mix_imag = tl.load(mix_here + mix_part, mask=inside, other=0)
        run = row * (segments + bins - 1) + segment + index
        place = sums + run * 6 * dim + channels
        by_pole_real = tl.load(place + 2 * dim, mask=inside, other=0)
        by_pole_imag = tl.load(place + 3 * dim, mask=inside, other=0)
        d_real = tl.load(place + 4 * dim, mask=inside, other=0)
        d_imag = tl.load(place + 5 * dim, mask=inside, other=0)
        late_real, late_imag = _times(real, imag, d_real, -d_imag)
        place = pole_parts + run * 2 * dim + channels
        tl.store(place, by_pole_real + late_real, mask=inside)
        tl.store(place + dim, by_pole_imag + late_imag, mask=inside)

        grad_here = grad_y + row * grad_row + (time - 1) * grad_time + channels
        x_here = x_row + (time - 1) * dim
        for _ in range(count // AHEAD):
            grads = read_ahead(grad_here, -grad_time, inside, AHEAD)
            for i in tl.static_range(AHEAD):
                now, real, imag = _retreat(
                    real, imag, pole_real, pole_imag, mix_real, mix_imag, grads[i]
                )
                tl.store(x_here - i * dim, now, mask=inside)
            grad_here -= AHEAD * grad_time
            x_here -= AHEAD * dim
        for _ in range(count % AHEAD):
            grad = tl.load(grad_here, mask=inside, other=0)
            now, real, imag = _retreat(real, imag, pole_real, pole_imag, mix_real, mix_imag, grad)
            tl.store(x_here, now, mask=inside)
            grad_here -= grad_time
            x_here -= dim
        time -= count
        if RESET:
            real = tl.where(begin == time, 0, real)
            imag = tl.where(begin == time, 0, imag)
    if segment == 0:
        write_pair(grad_state + (row * dim + channels) * 2, real, imag, inside)
