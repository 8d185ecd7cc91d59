"""Facts about root-mean-square normalisation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.drawing import Draw, with_gradients

from polewise.ops import rms_norm
from polewise.ops._rms_norm_cpu import SEGMENT


def drawn(length, heads=3, value_dim=5, batch=2, *, whole=False, dtype=torch.float32):
    draw = Draw()
    x = draw.normal(batch, length, heads * value_dim)
    weight = draw.normal(heads * value_dim if whole else value_dim)
    return [t.to(dtype).requires_grad_() for t in (x, weight)]


@settings(deadline=None, max_examples=20)
@given(
    length=st.sampled_from([0, 1, 3, 5, SEGMENT // 2 + 1, SEGMENT + 3]),
    heads=st.integers(1, 3),
    value_dim=st.sampled_from([1, 5, 33]),
    whole=st.booleans(),
)
def test_compiled_loops_are_the_equation_gradients_included(length, heads, value_dim, whole):
    # A mean over one number divides it by its own size: eps keeps gradients of both tame.
    inputs = drawn(length, heads, value_dim, whole=whole)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    exact = with_gradients(rms_norm, doubles, eps=0.1, backend="reference")
    compiled = with_gradients(rms_norm, inputs, eps=0.1, backend="cpu")
    for ours, wanted in zip(compiled, exact, strict=True):
        scale = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
        torch.testing.assert_close(ours, wanted.float(), rtol=1e-4, atol=1e-5 * max(scale, 1))


@pytest.mark.parametrize("whole", [False, True])
def test_tensor_operations_are_the_equation(whole):
    inputs = drawn(9, whole=whole, dtype=torch.float64)
    exact = with_gradients(rms_norm, inputs, backend="reference")
    by_tensors = with_gradients(rms_norm, inputs, backend="torch")
    for ours, wanted in zip(by_tensors, exact, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-10)


def test_slices_of_wider_rows_are_read_as_they_lie():
    x, weight = (t.detach() for t in drawn(20))
    wide = torch.cat([x, x, x], -1)
    ours = rms_norm(wide[..., 15:30], weight, backend="cpu")
    assert torch.equal(ours, rms_norm(x, weight, backend="cpu"))


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_no_bit(threads):
    inputs, before = drawn(3000, batch=1), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = with_gradients(rms_norm, inputs)
        torch.set_num_threads(threads)
        together = with_gradients(rms_norm, inputs)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_mean_of_half_precision_is_taken_in_float32(dtype):
    x, weight = (t.detach() for t in drawn(9))
    x = x.to(dtype)
    y = rms_norm(x, weight)
    assert y.dtype == torch.float32  # the wider of x and weight
    torch.testing.assert_close(y, rms_norm(x.float(), weight), rtol=1e-5, atol=1e-6)
    assert rms_norm(x, weight.to(dtype)).dtype == dtype


def test_nan_stays_in_its_step():
    x, weight = (t.detach() for t in drawn(20))
    clean = rms_norm(x, weight, backend="cpu")
    x[:, 7, 3] = float("nan")
    y = rms_norm(x, weight, backend="cpu")
    rest = [t for t in range(20) if t != 7]
    assert torch.equal(y[:, rest], clean[:, rest])
    assert y[:, 7].isnan().any(-1).all()


def test_shapes_are_told_without_numbers():
    assert rms_norm(*(t.detach().to("meta") for t in drawn(9))).shape == (2, 9, 15)


def test_the_operation_is_registered_completely():
    from polewise.ops.rms_norm import _forward_op

    torch.library.opcheck(_forward_op, (*drawn(9), 1e-5))


def test_second_derivatives_by_tensor_operations_alone():
    inputs = drawn(3, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda *t: rms_norm(*t, backend="torch"), inputs)
    inputs = drawn(3)
    (first,) = torch.autograd.grad(rms_norm(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"backend must be 'torch' for second derivatives"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(2, 15)}, "x must have shape"),
        ({"weight": [1.0]}, "weight must be a floating tensor"),
        ({"weight": torch.ones(5, dtype=torch.int64)}, "weight must be a floating tensor"),
        (
            {"weight": torch.ones(4)},
            r"weight must have shape \(group,\), of a size that divides 15",
        ),
        ({"weight": torch.ones(0)}, "weight must have shape"),
        ({"weight": torch.ones(3, 5)}, "weight must have shape"),
        ({"backend": "gpu"}, "backend must be one of"),
    ],
)
def test_wrong_arguments_are_explained(change, message):
    arguments = dict(zip(("x", "weight"), drawn(9), strict=True)) | change
    with pytest.raises((ValueError, TypeError), match=message):
        rms_norm(**arguments)


def test_compiled_loops_want_float32():
    with pytest.raises(ValueError, match="backend 'cpu' takes float32 tensors"):
        rms_norm(*drawn(9, dtype=torch.float64), backend="cpu")
