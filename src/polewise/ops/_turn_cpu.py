"""Turned pairs of channels as compiled loops: one pass over the sequence, one back.

Gradient. grad x is grad y turned back, and grad angle[i] = gy[n + i] y[i] - gy[i] y[n + i]: turning
further moves y at a right angle to itself. So nothing is kept but y, which what follows keeps too.
"""

from __future__ import annotations

from torch import Tensor

from polewise.ops._compiled import array, compiled, fresh, rows, run_blocks, vectorised

SEGMENT = 256
"""Steps of a unit."""


def forward(x: Tensor, angle: Tensor) -> Tensor:
    y = fresh(x)
    run_blocks(
        _forward, *_size(x), SEGMENT, *rows(x.flatten(2)), array(angle.cos()), array(angle.sin()),
        y.numpy(),
    )  # fmt: skip
    return y


def backward(grad_y: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and angle."""
    grad_x = fresh(y)
    grad_angle = angle.new_zeros(len(y), *angle.shape[1:])
    run_blocks(
        _backward, *_size(y), SEGMENT, *rows(grad_y.flatten(2)), array(y), array(angle.cos()),
        array(-angle.sin()), grad_x.numpy(), grad_angle.numpy(),
    )  # fmt: skip
    return grad_x, grad_angle if len(angle) == len(y) else grad_angle.sum(0, keepdim=True)


def _size(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


@vectorised
def _copy_line(line, start, target):
    """Fill `target` from a line, beginning at `start`."""
    source = line[start : start + len(target)]
    for c in range(len(target)):
        target[c] = source[c]


@compiled
def _forward(x, stride, cosine, sine, y, first, stop):
    length, heads, channels = y.shape[1:]
    segments, pairs = -(-length // SEGMENT), cosine.shape[3]
    for unit in range(first, stop):
        row, begin = unit // segments, unit % segments * SEGMENT
        table = min(row, len(cosine) - 1)
        for t in range(begin, min(begin + SEGMENT, length)):
            for head in range(heads):
                out = y[row, t, head]
                _copy_line(x, (row * length + t) * stride + head * channels, out)
                at = table, t, min(head, cosine.shape[2] - 1)
                _turn(cosine[at], sine[at], out[:pairs], out[pairs:])


@compiled
def _backward(grad_y, stride, y, cosine, sine, grad_x, grad_angle, first, stop):
    length, heads, channels = y.shape[1:]
    segments, pairs = -(-length // SEGMENT), cosine.shape[3]
    for unit in range(first, stop):
        row, begin = unit // segments, unit % segments * SEGMENT
        table = min(row, len(cosine) - 1)
        for t in range(begin, min(begin + SEGMENT, length)):
            for head in range(heads):
                out, turned = grad_x[row, t, head], y[row, t, head]
                _copy_line(grad_y, (row * length + t) * stride + head * channels, out)
                at = table, t, min(head, cosine.shape[2] - 1)
                _further(
                    turned[:pairs], turned[pairs:], out[:pairs], out[pairs:],
                    grad_angle[row, t, at[2]],
                )  # fmt: skip
                _turn(cosine[at], sine[at], out[:pairs], out[pairs:])


@vectorised
def _turn(cosine, sine, real, imag):
    for i in range(len(cosine)):
        along, across = real[i], imag[i]
        real[i] = along * cosine[i] - across * sine[i]
        imag[i] = across * cosine[i] + along * sine[i]


@vectorised
def _further(real, imag, grad_real, grad_imag, grad_angle):
    for i in range(len(grad_angle)):
        grad_angle[i] += grad_imag[i] * real[i] - grad_real[i] * imag[i]
