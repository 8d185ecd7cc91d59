"""The normal-form filter as compiled loops, gradient included.

Forward keeps the state at every 128th step (1.6 % of the input); backward restarts from
there, 128 steps at a time from the last to the first, and never inverts a pole.

Gradient. Against time, l[t] = c gy[t] + conj(p) l[t+1] gives grad x = Re l + skip gy. The pole's
gradient is the sum of l[t] conj(s[t-1]), which would want the states again when time runs
backwards. Where p is constant the same number comes out along time: with d[t] = p d[t-1] + s[t-1],
the derivative of s[t] by p, it is c conj(sum of gy[t] d[t]) + m conj(d[end]), m being what the
future says about the state at the end. So no state is stored, and both directions keep their
numbers in registers for several steps at a time.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polewise.ops._compiled import array, compiled, copied, fresh, require_covered, run_units
from polewise.ops.normal_form import SEGMENT

TOGETHER = 4
"""Steps whose numbers stay in registers; with 8 the compiler no longer vectorises."""


def forward(
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
    """y, the last state, and the states at every 128th step. `mix` has one row and bin, or all."""
    batch, length, dim = x.shape
    require_covered(offsets, lengths, bin_length, decay.shape[1])
    y = fresh(x)
    last = torch.empty(state.shape, dtype=state.dtype)
    starts = torch.empty(batch, -(-length // SEGMENT), dim, 2, dtype=x.dtype)
    run_units(
        _forward, *x.shape,
        array(x), array(_poles(decay, angle)), array(mix), copied(skip), offsets.numpy(),
        lengths.numpy(), array(state), y.numpy(), last.numpy(), starts.numpy(), SEGMENT, bin_length,
        reset,
    )  # fmt: skip
    return y, last, starts


def backward(
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
    """Gradients of x, decay, angle, mix, skip and the first state.

    Poles are made again from radius and angle: keeping them, and the cosines and sines of their
    derivative, would take half again as much memory as the states kept.
    """
    batch, _, dim = x.shape
    grad_x = fresh(x)
    # First the gradients of the pole's real and imaginary part.
    grad_decay, grad_angle = (torch.zeros(decay.shape, dtype=decay.dtype) for _ in range(2))
    # One row for each of x: units of different rows run at once.
    by_mix = torch.zeros(batch, mix.shape[1], dim, 2, dtype=mix.dtype)
    by_skip = torch.zeros(batch, dim, dtype=skip.dtype)
    grad_state = torch.empty(grad_last.shape, dtype=grad_last.dtype)
    run_units(
        _backward, *x.shape,
        array(grad_y), array(grad_last), array(x), array(_poles(decay, angle)), array(mix),
        copied(skip), offsets.numpy(), lengths.numpy(), array(starts), grad_x.numpy(),
        grad_decay.numpy(), grad_angle.numpy(), by_mix.numpy(), by_skip.numpy(), grad_state.numpy(),
        SEGMENT, bin_length, reset,
    )  # fmt: skip
    # A few bins at a time: three whole tensors more would be the peak of the memory taken.
    polar = (each.chunk(8, 1) for each in (grad_decay, grad_angle, decay, angle))
    for parts in zip(*polar, strict=True):
        _to_polar(*parts)
    grad_mix = by_mix if mix.shape[0] == batch else by_mix.sum(0, keepdim=True)
    return grad_x, grad_decay, grad_angle, grad_mix, by_skip.sum(0), grad_state


def _poles(decay: Tensor, angle: Tensor) -> Tensor:
    """Real and imaginary parts, (batch, bins, dim, 2)."""
    poles = torch.empty(*decay.shape, 2, dtype=decay.dtype)
    torch.cos(angle, out=poles[..., 0])
    torch.sin(angle, out=poles[..., 1])
    return poles.mul_(decay[..., None])


def _to_polar(grad_real: Tensor, grad_imag: Tensor, decay: Tensor, angle: Tensor) -> None:
    """Turn gradients of real and imaginary part, in place, into those of radius and angle."""
    cosine, sine = angle.cos(), angle.sin()
    across = grad_real * sine
    grad_real.mul_(cosine).addcmul_(grad_imag, sine)
    grad_imag.mul_(cosine).sub_(across).mul_(decay)


@compiled
def _forward(
    x, pole, mix, skip, offsets, lengths, state, y, last, starts, segment_length, bin_length,
    reset, block, first, stop,
):  # fmt: skip
    dim = x.shape[2]
    blocks = -(-dim // block)
    scratch = np.empty((6, block), x.dtype)
    for unit in range(first, stop):
        row, low = unit // blocks, unit % blocks * block
        high = min(low + block, dim)
        width = high - low
        # Slices of the block's own width: their loops vectorise.
        real, imag, pole_real = scratch[0, :width], scratch[1, :width], scratch[2, :width]
        pole_imag, mix_real, mix_imag = scratch[3, :width], scratch[4, :width], scratch[5, :width]
        past = skip[low:high]
        real[:], imag[:] = state[row, low:high, 0], state[row, low:high, 1]
        end, time, bin_index = lengths[row], 0, 0
        while time < end:
            begin = bin_index * bin_length - offsets[row]
            bin_end = min(end, begin + bin_length)
            pole_real[:] = pole[row, bin_index, low:high, 0]
            pole_imag[:] = pole[row, bin_index, low:high, 1]
            mixed = mix[row % mix.shape[0], bin_index % mix.shape[1]]
            mix_real[:], mix_imag[:] = mixed[low:high, 0], mixed[low:high, 1]
            if reset and begin >= 0:
                real[:], imag[:] = 0, 0
            for t in range(time, bin_end):
                if t % segment_length == 0:
                    starts[row, t // segment_length, low:high, 0] = real
                    starts[row, t // segment_length, low:high, 1] = imag
                x_t, y_t = x[row, t, low:high], y[row, t, low:high]
                for c in range(width):
                    before = real[c]
                    after = pole_real[c] * before - pole_imag[c] * imag[c] + x_t[c]
                    imag[c] = pole_imag[c] * before + pole_real[c] * imag[c]
                    real[c] = after
                    y_t[c] = mix_real[c] * after + mix_imag[c] * imag[c] + past[c] * x_t[c]
            time = max(time, bin_end)
            bin_index += 1
        y[row, end:, low:high] = 0
        last[row, low:high, 0], last[row, low:high, 1] = real, imag


@compiled
def _backward(
    grad_y, grad_last, x, pole, mix, skip, offsets, lengths, starts, grad_x, grad_real, grad_imag,
    grad_mix, grad_skip, grad_state, segment_length, bin_length, reset, block, first, stop,
):  # fmt: skip
    """Segment by segment, the last one first: along time what its steps say about their pole and
    mix, then against time the gradient (g, h) of the state.

    A *run* is what a bin and a segment have in common. The derivative d of the state by the pole
    starts from 0 in each run; what later steps say about the state at its end comes when time
    runs backwards.
    """
    dim = x.shape[2]
    blocks = -(-dim // block)
    sums = np.empty((segment_length // bin_length + 2, 6, block), x.dtype)
    scratch = np.empty((8, block), x.dtype)
    read = np.zeros(1, np.int32)
    for unit in range(first, stop):
        row, low = unit // blocks, unit % blocks * block
        high = min(low + block, dim)
        width = high - low
        g, h = scratch[0, :width], scratch[1, :width]
        pole_real, pole_imag = scratch[2, :width], scratch[3, :width]
        mix_real, mix_imag = scratch[4, :width], scratch[5, :width]
        real, imag = scratch[6, :width], scratch[7, :width]
        past, by_skip = skip[low:high], grad_skip[row, low:high]
        end, offset = lengths[row], offsets[row]
        g[:], h[:] = grad_last[row, low:high, 0], grad_last[row, low:high, 1]
        grad_x[row, end:, low:high] = 0
        for segment in range(-(-end // segment_length) - 1, -1, -1):
            start, close = segment * segment_length, min(end, (segment + 1) * segment_length)
            real[:] = starts[row, segment, low:high, 0]
            imag[:] = starts[row, segment, low:high, 1]
            for t in range(start, close):
                _fetch(x[row, t, low:high].view(np.int32), read)
            for t in range(start, close):
                _fetch(grad_y[row, t, low:high].view(np.int32), read)
            time, run = start, 0
            while time < close:
                bin_index = (offset + time) // bin_length
                begin = bin_index * bin_length - offset
                bin_end = min(close, begin + bin_length)
                pole_real[:] = pole[row, bin_index, low:high, 0]
                pole_imag[:] = pole[row, bin_index, low:high, 1]
                if reset and begin == time:
                    real[:], imag[:] = 0, 0
                sums[run] = 0
                d_real, d_imag, along_real, along_imag, by_mix_real, by_mix_imag = sums[run]
                while time + TOGETHER <= bin_end:
                    _sense(
                        x[row, time : time + TOGETHER], grad_y[row, time : time + TOGETHER], low,
                        pole_real, pole_imag, real, imag, d_real, d_imag, along_real, along_imag,
                        by_mix_real, by_mix_imag, by_skip,
                    )  # fmt: skip
                    time += TOGETHER
                while time < bin_end:
                    _sense_one(
                        x[row, time : time + 1], grad_y[row, time : time + 1], low, pole_real,
                        pole_imag, real, imag, d_real, d_imag, along_real, along_imag,
                        by_mix_real, by_mix_imag, by_skip,
                    )  # fmt: skip
                    time += 1
                run += 1
            while time > start:
                bin_index = (offset + time - 1) // bin_length
                begin = bin_index * bin_length - offset
                run_start = max(start, begin)
                run -= 1
                pole_real[:] = pole[row, bin_index, low:high, 0]
                pole_imag[:] = pole[row, bin_index, low:high, 1]
                mixed = mix[row % mix.shape[0], bin_index % mix.shape[1]]
                mix_real[:], mix_imag[:] = mixed[low:high, 0], mixed[low:high, 1]
                d_real, d_imag, along_real, along_imag, by_mix_real, by_mix_imag = sums[run]
                to_real = grad_real[row, bin_index, low:high]
                to_imag = grad_imag[row, bin_index, low:high]
                to_mix = grad_mix[row, bin_index % mix.shape[1], low:high]
                for c in range(width):
                    # c conj(along) + (g + jh) conj(d)
                    to_real[c] += (
                        mix_real[c] * along_real[c] + mix_imag[c] * along_imag[c]
                        + g[c] * d_real[c] + h[c] * d_imag[c]
                    )  # fmt: skip
                    to_imag[c] += (
                        mix_imag[c] * along_real[c] - mix_real[c] * along_imag[c]
                        + h[c] * d_real[c] - g[c] * d_imag[c]
                    )  # fmt: skip
                    to_mix[c, 0] += by_mix_real[c]
                    to_mix[c, 1] += by_mix_imag[c]
                while time - TOGETHER >= run_start:
                    time -= TOGETHER
                    _retreat(
                        grad_y[row, time : time + TOGETHER], grad_x[row, time : time + TOGETHER],
                        low, pole_real, pole_imag, mix_real, mix_imag, past, g, h,
                    )  # fmt: skip
                while time > run_start:
                    time -= 1
                    _retreat_one(
                        grad_y[row, time : time + 1], grad_x[row, time : time + 1], low,
                        pole_real, pole_imag, mix_real, mix_imag, past, g, h,
                    )  # fmt: skip
                if reset and begin == run_start:
                    g[:], h[:] = 0, 0
        grad_state[row, low:high, 0], grad_state[row, low:high, 1] = g, h


@compiled
def _fetch(values, read):
    """Bring a row of numbers, seen as integers, into the caches: memory is faster read in a
    straight line than four rows at once. The sum keeps the compiler from dropping the reading."""
    total = np.int32(0)
    for value in values:
        total ^= value
    read[0] ^= total


def _sense_steps(count):
    @compiled
    def sense(
        x, grad_y, low, pole_real, pole_imag, real, imag, d_real, d_imag, along_real, along_imag,
        by_mix_real, by_mix_imag, by_skip,
    ):  # fmt: skip
        """`count` steps of the state, of its derivative by the pole, and of the sums weighted by
        `grad_y`."""
        low = np.uintp(low)
        for c in range(np.uintp(len(real))):
            re, im, dr, di = real[c], imag[c], d_real[c], d_imag[c]
            ar, ai, mr, mi = along_real[c], along_imag[c], by_mix_real[c], by_mix_imag[c]
            pr, pi, by_past = pole_real[c], pole_imag[c], by_skip[c]
            for i in range(count):
                grad, now = grad_y[i, low + c], x[i, low + c]
                dr, di = pr * dr - pi * di + re, pi * dr + pr * di + im
                re, im = pr * re - pi * im + now, pi * re + pr * im
                by_past += grad * now
                ar, ai, mr, mi = ar + grad * dr, ai + grad * di, mr + grad * re, mi + grad * im
            real[c], imag[c], d_real[c], d_imag[c] = re, im, dr, di
            along_real[c], along_imag[c], by_mix_real[c], by_mix_imag[c] = ar, ai, mr, mi
            by_skip[c] = by_past

    return sense


def _retreat_steps(count):
    @compiled
    def retreat(grad_y, grad_x, low, pole_real, pole_imag, mix_real, mix_imag, past, g, h):
        """`count` steps of the state's gradient against time, each of which is a grad x."""
        low = np.uintp(low)
        for c in range(np.uintp(len(g))):
            re, im, pr, pi = g[c], h[c], pole_real[c], pole_imag[c]
            mr, mi, d = mix_real[c], mix_imag[c], past[c]
            for i in range(count):
                t = np.uintp(count - 1 - i)
                grad = grad_y[t, low + c]
                re, im = re + grad * mr, im + grad * mi
                grad_x[t, low + c] = re + d * grad
                re, im = pr * re + pi * im, pr * im - pi * re
            g[c], h[c] = re, im

    return retreat


_sense, _sense_one = _sense_steps(TOGETHER), _sense_steps(1)
_retreat, _retreat_one = _retreat_steps(TOGETHER), _retreat_steps(1)
