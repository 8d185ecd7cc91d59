"""Facts about the gated filter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.drawing import Draw, all_gradients

from polewise.ops import associative_filter, gated_filter

BATCH, HEADS = 2, 2
FAST = ("torch", "cpu")


def products(length, seed=0):
    draw = Draw(seed)
    q, k = draw.normal(BATCH, length, HEADS, 4), draw.normal(BATCH, length, HEADS, 4)
    v, decay = draw.normal(BATCH, length, HEADS, 3), draw.uniform(BATCH, length, HEADS, 4)
    state = draw.normal(BATCH, HEADS, 4, 3)
    return [t.requires_grad_() for t in (q, k, v, decay)], state.requires_grad_()


@settings(deadline=None, max_examples=20)
@given(length=st.sampled_from([0, 1, 7, 8, 9, 50]), ragged=st.booleans())
def test_every_backend_is_the_recursion_gradients_included(length, ragged):
    inputs, state = products(length)
    lengths = torch.tensor([length, length // 2]) if ragged else None
    results = []
    for backend in ("reference", *FAST):
        y, end = gated_filter(*inputs, lengths=lengths, state=state, backend=backend)
        results.append((y, end, *all_gradients(y, end, [*inputs, state])))
    expected, *others = results
    for each in others:
        for ours, definition in zip(each, expected, strict=True):
            torch.testing.assert_close(ours, definition, rtol=1e-9, atol=1e-9)


def test_wide_values_in_blocks_of_columns():
    draw = Draw()
    q, k, decay = (draw.uniform(2, 40, 1, 6) for _ in range(3))
    inputs = [t.requires_grad_() for t in (q, k, draw.normal(2, 40, 1, 150), decay)]
    state = draw.normal(2, 1, 6, 150).requires_grad_()
    results = []
    for backend in ("reference", "cpu"):
        y, end = gated_filter(*inputs, state=state, backend=backend)
        results.append((y, end, *all_gradients(y, end, [*inputs, state])))
    for definition, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, definition, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", FAST)
@settings(deadline=None, max_examples=15)
@given(cut=st.integers(0, 40))
def test_any_split_gives_the_outputs_of_one_pass(backend, cut):
    inputs, state = products(40)
    whole, end = gated_filter(*inputs, state=state, backend=backend)
    left, middle = gated_filter(*(t[:, :cut] for t in inputs), state=state, backend=backend)
    right, last = gated_filter(*(t[:, cut:] for t in inputs), state=middle, backend=backend)
    torch.testing.assert_close(torch.cat([left, right], 1), whole)
    torch.testing.assert_close(last, end)


def test_padding_takes_no_time():
    inputs, state = products(20)
    y, end = gated_filter(*inputs, lengths=torch.tensor([20, 7]), state=state)
    alone, last = gated_filter(*(t[1:, :7] for t in inputs), state=state[1:])
    torch.testing.assert_close(y[1:, :7], alone)
    assert y[1, 7:].eq(0).all()
    torch.testing.assert_close(end[1:], last)


def test_channels_that_forget_alike_are_the_associative_filter():
    (q, k, v, decay), state = products(50)
    y, end = gated_filter(q, k, v, decay[..., :1].expand_as(decay), state=state)
    wanted, last = associative_filter(q, k, v, decay[..., 0], state=state[:, :, None])
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(end, last[:, :, 0])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-8])
def test_forgetting_at_once_neither_overflows_nor_loses_what_stays(value, backend):
    """In float32 a chunk's decays multiply to far below the smallest number."""
    inputs, state = products(40)
    q, k, v, decay = (t.detach().float() for t in inputs)
    decay = torch.where(torch.arange(4) < 2, value, 0.5 + 0.5 * decay).requires_grad_()
    results = []
    for name in ("reference", backend):
        y, end = gated_filter(q, k, v, decay, state=state.detach().float(), backend=name)
        results.append((y, end, *all_gradients(y, end, [decay])))
    for definition, ours in zip(*results, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, definition, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("argument", [1, 2, 3])
@pytest.mark.parametrize("step", [3, 20])
def test_nan_reaches_no_earlier_output_and_every_later_one(argument, step, backend):
    inputs, _ = products(40)
    inputs = [t.detach() for t in inputs]
    clean, _ = gated_filter(*inputs, backend=backend)
    inputs[argument] = inputs[argument].clone()
    inputs[argument][:, step] = float("nan")
    y, end = gated_filter(*inputs, backend=backend)
    torch.testing.assert_close(y[:, :step], clean[:, :step])
    assert y[:, step:].isnan().all()
    assert end.isnan().all()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_long_memories_cost_no_accuracy_in_low_precision(dtype, backend):
    draw = Draw()
    q = k = torch.ones(1, 600, 1, 1, dtype=dtype)
    v = draw.normal(1, 600, 1, 1).to(dtype)
    decay = torch.full((1, 600, 1, 1), 1 - 2**-10)
    exact, _ = gated_filter(*(t.double() for t in (q, k, v, decay)), backend="reference")
    rounding = (exact.to(dtype).double() - exact).abs().max()
    y, state = gated_filter(q, k, v, decay, backend=backend)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    assert (y.double() - exact).abs().max() <= 1.5 * rounding


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q: gated_filter(q, q, q, q[..., :1]), r"decay must have shape \(batch"),
        (lambda q: gated_filter(q, q[:, :1], q, q), "k must have shape"),
        (lambda q: gated_filter(q, q, q, q, state=q), "state must have shape"),
        (lambda q: gated_filter(q, q, q, q, backend="cuda"), "backend must be one of"),
    ],
)
def test_wrong_arguments_are_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(1, 5, 2, 3))
