"""Facts about gate, norm and map at the end of a layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.drawing import Draw, with_gradients
from torch.nn import functional

from polewise.ops import gated_projection, rms_norm
from polewise.ops._gated_projection_cpu import BLOCK
from polewise.ops._rms_norm_cpu import SEGMENT

NAMES = ("x", "gate", "weight", "projection")


def drawn(length, heads=3, value_dim=5, batch=2, *, whole=False, dtype=torch.float32):
    draw = Draw()
    x, gate = (draw.normal(batch, length, heads * value_dim) for _ in range(2))
    weight = draw.normal(heads * value_dim if whole else value_dim)
    projection = Draw(2).normal(7, heads * value_dim)
    return [t.to(dtype).requires_grad_() for t in (x, gate, weight, projection)]


@settings(deadline=None, max_examples=30)
@given(
    length=st.sampled_from([0, 1, 3, 5, SEGMENT // 2 + 1, SEGMENT + 3, BLOCK + 1]),
    heads=st.integers(1, 3),
    value_dim=st.sampled_from([1, 5, 33]),
    whole=st.booleans(),
)
def test_compiled_loops_are_the_equation_gradients_included(length, heads, value_dim, whole):
    # A mean over one number divides it by its own size: eps keeps gradients of both tame.
    inputs = drawn(length, heads, value_dim, whole=whole)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    exact = with_gradients(gated_projection, doubles, eps=0.1, backend="reference")
    compiled = with_gradients(gated_projection, inputs, eps=0.1, backend="cpu")
    for ours, wanted in zip(compiled, exact, strict=True):
        scale = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
        torch.testing.assert_close(ours, wanted.float(), rtol=1e-4, atol=1e-5 * max(scale, 1))


@pytest.mark.parametrize("whole", [False, True])
def test_tensor_operations_are_the_equation(whole):
    inputs = drawn(9, whole=whole, dtype=torch.float64)
    exact = with_gradients(gated_projection, inputs, backend="reference")
    by_tensors = with_gradients(gated_projection, inputs, backend="torch")
    for ours, wanted in zip(by_tensors, exact, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-10)


def test_slices_of_wider_rows_are_read_as_they_lie():
    x, gate, *parameters = (t.detach() for t in drawn(20))
    wide = torch.cat([gate, x, gate], -1)
    ours = gated_projection(wide[..., 15:30], wide[..., :15], *parameters)
    assert torch.equal(ours, gated_projection(x, gate, *parameters))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_steps(threads):
    inputs, before = drawn(3000, batch=1), torch.get_num_threads()
    exact = with_gradients(gated_projection, [t.detach().double().requires_grad_() for t in inputs])
    try:
        torch.set_num_threads(threads)
        ours = with_gradients(gated_projection, inputs, backend="cpu")
    finally:
        torch.set_num_threads(before)
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-3, atol=1e-3)


def test_what_lies_before_the_map_is_not_kept():
    inputs, kept = drawn(9), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.data_ptr()) or t, lambda t: t
    ):
        gated_projection(*inputs)
    assert sorted(kept) == sorted(t.data_ptr() for t in inputs)


def test_autocast_narrows_the_map_and_nothing_before_it():
    inputs = [t.detach() for t in drawn(9)]
    with torch.autocast("cpu", torch.bfloat16):
        y = gated_projection(*inputs)
        assert rms_norm(inputs[0], inputs[2]).dtype == torch.float32
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), gated_projection(*inputs), rtol=0.05, atol=0.1)


def test_neither_the_default_dtype_nor_autocast_on_the_way_back_changes_a_bit():
    inputs = drawn(9)
    wanted = with_gradients(gated_projection, inputs, backend="cpu")
    torch.set_default_dtype(torch.float64)
    try:
        ours = with_gradients(gated_projection, inputs, backend="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(ours, wanted, strict=True):
        assert torch.equal(one, other)

    y = gated_projection(*inputs, backend="cpu")
    plain = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        narrowed = torch.autograd.grad(y.sum(), inputs)
    for one, other in zip(narrowed, plain, strict=True):
        assert torch.equal(one, other)


def test_a_product_beyond_the_range_of_half_precision_is_no_infinity():
    large = torch.full((1, 2, 4), 300.0, dtype=torch.float16)
    y = gated_projection(large, large, torch.ones(4).half(), torch.eye(4).half())
    torch.testing.assert_close(y, torch.ones(1, 2, 4).half())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_comes_in_one_precision_goes_out_in_it(dtype):
    assert gated_projection(*(t.detach() for t in drawn(9, dtype=dtype))).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norm_of_half_precision_is_taken_in_float32(dtype):
    x, gate, weight, projection = (t.detach() for t in drawn(9))
    x, gate = x.to(dtype), gate.to(dtype)
    y = gated_projection(x, gate, weight, projection)
    assert y.dtype == torch.float32  # the wider of x and weight
    wide = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32  # of the product before it
    u = x.to(wide) * functional.silu(gate.to(wide))
    wanted = rms_norm(u.float(), weight) @ projection.T
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)


def test_shapes_are_told_without_numbers():
    assert gated_projection(*(t.detach().to("meta") for t in drawn(9))).shape == (2, 9, 7)


def test_nan_stays_in_its_step():
    inputs = [t.detach() for t in drawn(20)]
    clean = gated_projection(*inputs, backend="cpu")
    inputs[1][:, 7, 3] = float("nan")
    y = gated_projection(*inputs, backend="cpu")
    rest = [t for t in range(20) if t != 7]
    assert torch.equal(y[:, rest], clean[:, rest])
    assert y[:, 7].isnan().any(-1).all()


def test_the_operation_is_registered_completely():
    from polewise.ops.gated_projection import _forward_op

    *inputs, projection = drawn(9)
    of_columns = projection.detach().T.contiguous().T.requires_grad_()
    for each in (projection, of_columns):
        torch.library.opcheck(_forward_op, (*inputs, each, 1e-5))


def test_second_derivatives_by_tensor_operations_alone():
    inputs = drawn(3, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda *t: gated_projection(*t, backend="torch"), inputs)
    inputs = drawn(3)
    (first,) = torch.autograd.grad(
        gated_projection(*inputs).square().sum(), inputs[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"backend must be 'torch' for second derivatives"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": torch.ones(2, 9, 14)}, "gate must have shape"),
        ({"gate": torch.ones(2, 9, 15).double()}, "gate must be float32"),
        ({"weight": torch.ones(4)}, r"weight must have shape \(group,\), of a size that divides"),
        ({"projection": torch.ones(7, 14)}, r"projection must have shape \(dim, channels\)"),
        ({"projection": torch.ones(15)}, "projection must have shape"),
        ({"projection": torch.ones(7, 15).double()}, "projection must be float32"),
        ({"backend": "gpu"}, "backend must be one of"),
    ],
)
def test_wrong_arguments_are_explained(change, message):
    arguments = dict(zip(NAMES, drawn(9), strict=True)) | change
    with pytest.raises((ValueError, TypeError), match=message):
        gated_projection(**arguments)


def test_compiled_loops_want_float32():
    with pytest.raises(ValueError, match="backend 'cpu' takes float32 tensors"):
        gated_projection(*drawn(9, dtype=torch.float64), backend="cpu")
