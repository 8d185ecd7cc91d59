"""Facts about the short convolution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.drawing import Draw, all_gradients

from polewise.ops import short_conv
from polewise.ops._short_conv_cpu import SEGMENT, TOGETHER

LENGTHS = (0, 1, 2, TOGETHER - 1, TOGETHER + 1, SEGMENT - 1, SEGMENT + TOGETHER + 3)


def drawn(length, width, dim=5, batch=2, dtype=torch.float32):
    draw = Draw()
    x, state = draw.normal(batch, length, dim), draw.normal(batch, width - 1, dim)
    kernel, bias = draw.normal(width, dim), draw.normal(dim)
    return [t.to(dtype).requires_grad_() for t in (x, kernel, bias, state)]


@settings(deadline=None, max_examples=40)
@given(
    length=st.sampled_from(LENGTHS),
    width=st.integers(1, 9),
    dim=st.sampled_from([1, 5, 33]),
    silu=st.booleans(),
    ragged=st.booleans(),
)
def test_compiled_loops_are_the_sum_gradients_included(length, width, dim, silu, ragged):
    x, kernel, bias, state = drawn(length, width, dim)
    lengths = torch.tensor([length, length // 2]) if ragged else None
    results = []
    for backend, dtype in (("reference", torch.float64), ("cpu", torch.float32)):
        inputs = [t.detach().to(dtype).requires_grad_() for t in (x, kernel, bias, state)]
        y, end = short_conv(
            *inputs[:3], silu=silu, lengths=lengths, state=inputs[3], backend=backend
        )
        results.append((y, end, *all_gradients(y, end, inputs)))
    for exact, ours in zip(*results, strict=True):
        torch.testing.assert_close(
            ours, exact.float(), rtol=2e-5, atol=1e-5 * max(length, 1) ** 0.5
        )


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_sum_of_shifts_is_the_definition(length, silu):
    inputs = drawn(length, 4, dtype=torch.float64)
    results = []
    for backend in ("reference", "torch"):
        y, end = short_conv(*inputs[:3], silu=silu, state=inputs[3], backend=backend)
        results.append((y, end, *all_gradients(y, end, inputs)))
    for exact, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=20)
@given(cut=st.integers(0, 40), silu=st.booleans())
def test_any_split_gives_the_outputs_of_one_pass(cut, silu):
    x, kernel, bias, _ = (t.detach() for t in drawn(40, 4))
    whole, end = short_conv(x, kernel, bias, silu=silu)
    left, middle = short_conv(x[:, :cut], kernel, bias, silu=silu)
    right, last = short_conv(x[:, cut:], kernel, bias, silu=silu, state=middle)
    torch.testing.assert_close(torch.cat([left, right], 1), whole)
    assert torch.equal(last, end)


def test_padding_takes_no_time():
    x, kernel, bias, state = (t.detach() for t in drawn(20, 4))
    x[1, 7:] = float("nan")
    y, end = short_conv(x, kernel, bias, lengths=torch.tensor([20, 7]), state=state)
    alone, last = short_conv(x[1:, :7], kernel, bias, state=state[1:])
    torch.testing.assert_close(y[1:, :7], alone)
    assert y[1, 7:].eq(0).all()
    torch.testing.assert_close(end[1:], last)


@pytest.mark.parametrize("silu", [False, True])
def test_nan_reaches_as_many_outputs_as_there_are_taps(silu):
    x, kernel, bias, _ = (t.detach() for t in drawn(40, 3))
    clean, _ = short_conv(x, kernel, bias, silu=silu)
    x[:, 20] = float("nan")
    y, _ = short_conv(x, kernel, bias, silu=silu)
    assert y[:, 20:23].isnan().all()
    rest = [t for t in range(40) if not 20 <= t < 23]
    assert torch.equal(y[:, rest], clean[:, rest])


def test_a_slice_of_wider_rows_is_read_as_it_lies():
    wide = Draw().normal(2, 300, 12).float()
    _, kernel, bias, _ = (t.detach() for t in drawn(1, 4))
    part = wide[..., 3:8]
    ours, _ = short_conv(part, kernel, bias, backend="cpu")
    wanted, _ = short_conv(part.contiguous(), kernel, bias, backend="cpu")
    assert torch.equal(ours, wanted)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(threads, restored_threads):
    inputs = drawn(3000, 4, dim=40, batch=1)
    torch.set_num_threads(1)
    y, end = short_conv(*inputs[:3], silu=True, state=inputs[3])
    alone = (y, *all_gradients(y, end, inputs))
    torch.set_num_threads(threads)
    y, end = short_conv(*inputs[:3], silu=True, state=inputs[3])
    for one, other in zip(alone, (y, *all_gradients(y, end, inputs)), strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_silu_is_exact_to_rounding_from_end_to_end():
    """Far out too: a relative error, where the result is a number that float32 can hold."""
    z = torch.cat(
        [torch.linspace(-80, 80, 40_001), torch.tensor([0.0, 1e-30, -1e-30, 1e30, -1e30])]
    )
    kernel = torch.ones(1, 1)
    y, _ = short_conv(z[None, :, None], kernel, silu=True, backend="cpu")
    exact = z.double() * torch.sigmoid(z.double())
    error = (y[0, :, 0].double() - exact).abs() / exact.abs().clamp(min=1e-30)
    assert error.max() < 5e-7
    assert y[0, -2, 0] == 1e30
    nan, _ = short_conv(torch.full((1, 2, 1), torch.nan), kernel, silu=True, backend="cpu")
    assert nan.isnan().all()


def test_the_operation_is_registered_completely():
    from polewise.ops.short_conv import _forward_op

    x, kernel, bias, state = drawn(20, 4)
    for silu in (False, True):
        torch.library.opcheck(_forward_op, (x, state, kernel, bias, silu))


def test_second_derivatives_by_tensor_operations_alone():
    inputs = drawn(6, 3, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda *t: short_conv(*t[:3], silu=True, state=t[3], backend="torch")[0], inputs
    )
    inputs = drawn(6, 3)
    y, _ = short_conv(*inputs[:3], silu=True)
    (first,) = torch.autograd.grad(y.square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"backend must be 'torch' for second derivatives"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, k: short_conv(x, k[:0]), ValueError, "kernel must have at least 1 tap"),
        (
            lambda x, k: short_conv(x, k[:, :2]),
            ValueError,
            r"kernel must have shape \(width, dim\)",
        ),
        (lambda x, k: short_conv(x, k, k), ValueError, r"bias must have shape \(dim,\)"),
        (lambda x, k: short_conv(x, k, state=x), ValueError, "state must have shape"),
        (lambda x, k: short_conv(x[0], k), ValueError, "x must have shape"),
        (lambda x, k: short_conv(x, k, backend="gpu"), ValueError, "backend must be one of"),
        (
            lambda x, k: short_conv(x.double(), k.double(), backend="cpu"),
            ValueError,
            "backend 'cpu' takes float32 tensors throughout; got float64",
        ),
    ],
)
def test_wrong_arguments_are_explained(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(2, 9, 5), torch.ones(3, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sequence_in_half_precision_is_rounded_once(dtype):
    x = torch.ones(1, 9, 1, dtype=dtype)
    small = torch.finfo(dtype).eps / 4  # lost, each by itself
    kernel = torch.tensor([1, small, small, small])[:, None]
    for backend in ("torch", "reference"):
        y, state = short_conv(x, kernel, backend=backend)
        assert (y[:, 3:] == 1 + torch.finfo(dtype).eps).all()
        assert y.dtype == state.dtype == dtype
