"""Facts that several ops share: padding, shapes, precision, and the arguments they refuse."""

from __future__ import annotations

import pytest
import torch
from tests.ops.drawing import Draw

from polewise.ops import (
    associative_filter,
    chunked_attention,
    circular_filter,
    gated_filter,
    long_conv,
)

BATCH, HEADS = 2, 2


@pytest.mark.parametrize("op", ["associative", "gated", "attention"])
def test_nan_in_padding_reaches_no_gradient(op):
    draw, lengths = Draw(), torch.tensor([20, 7])
    q, k, v = (draw.normal(BATCH, 20, HEADS, 4) for _ in range(3))
    decay = draw.uniform(BATCH, 20, HEADS)
    run = {
        "associative": lambda q, k, v: associative_filter(q, k, v, decay, lengths=lengths),
        "gated": lambda q, k, v: gated_filter(
            q, k, v, decay[..., None].expand_as(k), lengths=lengths
        ),
        "attention": lambda q, k, v: chunked_attention(q, k, v, 8, lengths=lengths),
    }[op]
    gradients = []
    for padding in (0.0, float("nan")):
        inputs = [part.clone() for part in (q, k, v)]
        for part in inputs:
            part[1, 7:] = padding
            part.requires_grad_()
        run(*inputs)[0].square().sum().backward()
        gradients.append([part.grad for part in inputs])
    for clean, poisoned in zip(*gradients, strict=True):
        torch.testing.assert_close(poisoned, clean)


def test_shapes_are_told_without_numbers():
    q = torch.ones(1, 40, 2, 4, device="meta")
    y, state = associative_filter(q, q, q, q[..., 0])
    assert (y.shape, state.shape) == (q.shape, (1, 2, 1, 4, 4))
    y, state = gated_filter(q, q, q, q)
    assert (y.shape, state.shape) == (q.shape, (1, 2, 4, 4))
    x, a = q.flatten(2), torch.ones(1, 5, 8, 2, device="meta")
    assert circular_filter(x, a, 8).shape == x.shape
    assert long_conv(x, x[0, :7])[0].shape == x.shape


@pytest.mark.parametrize("op", [associative_filter, gated_filter])
def test_what_is_read_has_the_precision_of_what_was_stored(op):
    q = torch.ones(1, 3, 1, 4, dtype=torch.bfloat16)
    y, _ = op(q, q, q.float(), q[..., 0] if op is associative_filter else q)
    assert y.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q: chunked_attention(q, q[:, :1], q, 4), "k must have shape"),
        (lambda q: chunked_attention(q, q, q, 0), "chunk_length must be at least 1"),
        (
            lambda q: chunked_attention(q, q, q, 4, causal=False, sliding=True),
            "causal must be True",
        ),
        (lambda q: associative_filter(q, q, q, q[..., 0], q), "angle must have shape"),
        (lambda q: associative_filter(q, q, q, q[..., 0], step=q), "step must have shape"),
        (lambda q: associative_filter(q, q, q, q[..., 0], skip=q), "skip must have shape"),
        (
            lambda q: associative_filter(q, q, q[:, :, :1].expand(-1, -1, 3, -1), q[..., 0]),
            "q and k must have the 3 heads of v, or one for all; got 2",
        ),
        (
            lambda q: associative_filter(q, q, q, q[..., 0], key_head=[0, 2]),
            r"key_head must have a number from 0 to 1, .* for each of 2 heads; got \[0, 2\]",
        ),
        (
            lambda q: associative_filter(q, q, q, q[..., 0], key_head=[0.0, 1.0]),
            r"key_head must have a number from 0 to 1, .* got \[0.0, 1.0\]",
        ),
        (lambda q: associative_filter(q, q, q, q[..., 0], state=q), "state must have shape"),
        (lambda q: long_conv(q[0], q[0, :0, 0]), "kernel must have at least 1 tap"),
        (lambda q: circular_filter(q[0], q[0], 8), "a must have shape"),
        (
            lambda q: circular_filter(q[0], torch.zeros(6, 1, 3, 2), 8, fft_length=8.0),
            "fft_length must be an int, in points",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(torch.zeros(2, 6, 2, 3))
