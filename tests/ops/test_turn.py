"""Facts about turned pairs of channels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.drawing import Draw, with_gradients

from polewise.ops import turn
from polewise.ops._turn_cpu import SEGMENT


def drawn(length, pairs=3, rest=1, heads=2, batch=2, *, alike=(True, True), dtype=torch.float32):
    """Rows, and heads, may have one angle for all or one each."""
    draw = Draw()
    x = draw.normal(batch, length, heads, 2 * pairs + rest)
    rows, columns = (1 if same else size for same, size in zip(alike, (batch, heads), strict=True))
    angle = 3 * draw.normal(rows, length, columns, pairs)
    return [t.to(dtype).requires_grad_() for t in (x, angle)]


def test_pairs_are_complex_numbers_and_the_rest_stays():
    x, angle = (t.detach() for t in drawn(9, dtype=torch.float64))
    y = turn(x, angle)
    wanted = torch.complex(x[..., :3], x[..., 3:6]) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(torch.complex(y[..., :3], y[..., 3:6]), wanted)
    assert torch.equal(y[..., 6:], x[..., 6:])


@settings(deadline=None, max_examples=40)
@given(
    length=st.sampled_from([0, 1, 7, SEGMENT, SEGMENT + 3]),
    pairs=st.sampled_from([0, 1, 5, 16]),
    rest=st.integers(0, 2),
    heads=st.integers(1, 3),
    alike=st.tuples(st.booleans(), st.booleans()),
)
def test_compiled_loops_are_the_equation_gradients_included(length, pairs, rest, heads, alike):
    inputs = drawn(length, pairs, rest, heads, alike=alike)
    exact = with_gradients(
        turn, [t.detach().double().requires_grad_() for t in inputs], backend="torch"
    )
    for ours, wanted in zip(with_gradients(turn, inputs, backend="cpu"), exact, strict=True):
        torch.testing.assert_close(ours, wanted.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2])
def test_slices_of_wider_rows_are_read_as_they_lie(heads):
    x, angle = (t.detach() for t in drawn(20, heads=heads))
    wide = torch.cat([angle.expand(2, -1, -1, -1).flatten(2), x.flatten(2)], -1)
    slice_of_it = wide[..., angle.shape[-1] :].unflatten(-1, (heads, -1))
    assert torch.equal(turn(slice_of_it, angle, backend="cpu"), turn(x, angle, backend="cpu"))


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_no_bit(threads):
    inputs, before = drawn(3000, pairs=16), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = with_gradients(turn, inputs, backend="cpu")
        torch.set_num_threads(threads)
        together = with_gradients(turn, inputs, backend="cpu")
    finally:
        torch.set_num_threads(before)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_the_operation_is_registered_completely():
    from polewise.ops.turn import _forward_op

    torch.library.opcheck(_forward_op, tuple(drawn(9)))


def test_second_derivatives_by_tensor_operations_alone():
    inputs = drawn(3, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda *t: turn(*t, backend="torch"), inputs)
    inputs = drawn(3)
    (first,) = torch.autograd.grad(turn(*inputs).square().sum(), inputs[1:], create_graph=True)
    with pytest.raises(RuntimeError, match=r"backend must be 'torch' for second derivatives"):
        first.sum().backward()


def test_wrong_arguments_are_explained():
    x, angle = drawn(9)
    with pytest.raises(ValueError, match="at least 2 \\* pairs = 6 channels; got 5"):
        turn(x[..., :5], angle)
    for wrong in (angle[:, :8], angle[None]):
        with pytest.raises(ValueError, match=r"angle must have the axes of x before the last"):
            turn(x, wrong)
    with pytest.raises(ValueError, match="angle must be on cpu like x; got meta"):
        turn(x, angle.to("meta"))
    with pytest.raises(ValueError, match="backend must be one of"):
        turn(x, angle, backend="gpu")
    with pytest.raises(ValueError, match="backend 'cpu' takes float32 x"):
        turn(x.double(), angle, backend="cpu")


def test_the_default_dtype_changes_no_bit():
    inputs = drawn(9)
    wanted = with_gradients(turn, inputs, backend="cpu")
    torch.set_default_dtype(torch.float64)
    try:
        ours = with_gradients(turn, inputs, backend="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(ours, wanted, strict=True):
        assert torch.equal(one, other)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="x must be a floating tensor"):
        turn(torch.ones(1, 2, 1, 2, dtype=torch.int64), torch.ones(1, 2, 1, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sequence_in_half_precision_is_rounded_once(dtype):
    x, angle = (t.detach() for t in drawn(9))
    x = x.to(dtype)
    assert torch.equal(turn(x, angle), turn(x.float(), angle, backend="torch").to(dtype))
