"""Facts about the filters under torch's machinery: second derivatives, torch.func, autocast,
activation checkpointing."""

from __future__ import annotations

import pytest
import torch
from tests.ops.drawing import Draw
from tests.ops.test_filter_ops import BATCH, DIM, FORMS, Case
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.utils.checkpoint import checkpoint

from polewise.ops import (
    associative_filter,
    chunked_attention,
    gated_filter,
    long_conv,
    short_conv,
)


def small_case(form):
    return Case(form, Draw(), 6, 4, torch.tensor([0, 3]), torch.tensor([6, 5]))


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_are_exact_by_tensor_operations(form):
    case = small_case(form)
    assert torch.autograd.gradgradcheck(lambda *t: case.run(t, backend="torch"), case.inputs)


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_of_compiled_loops_are_refused_with_the_way_out(form):
    case = small_case(form)
    y, _ = case.run(backend="cpu")
    (first,) = torch.autograd.grad((y**2).sum(), case.inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"backend must be 'torch' for second derivatives"):
        first.sum().backward()


def products(op, length):
    """Queries, keys, values and decays for an op that filters products."""
    draw = Draw()
    q, k, v, decay = (draw.uniform(2, length, 2, 3) for _ in range(4))
    decay = decay[..., 0] if op is associative_filter else decay
    return [t.requires_grad_() for t in (q, k, v, decay)]


@pytest.mark.parametrize("op", [associative_filter, gated_filter])
def test_second_derivatives_of_filtered_products(op):
    inputs = products(op, 5)
    assert torch.autograd.gradgradcheck(lambda *t: op(*t, backend="torch")[0], inputs)
    (first,) = torch.autograd.grad(op(*inputs)[0].square().sum(), inputs[1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"backend must be 'torch' for second derivatives"):
        first.sum().backward()


@pytest.mark.parametrize("form", FORMS)
def test_vmap_gives_what_a_loop_gives(form):
    case = small_case(form)
    several = [torch.stack([t.detach() * scale for scale in (1, 0.5, -1)]) for t in case.inputs]
    together = vmap(lambda *t: case.run(t))(*several)
    apart = [case.run([t[i] for t in several]) for i in range(3)]
    for ours, wanted in zip(together, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(wanted))


class Filter(nn.Module):
    """A filter whose poles, or coefficients, are its parameters."""

    def __init__(self, case):
        super().__init__()
        self.case = case
        self.coefficients = nn.ParameterList(t.detach() for t in case.inputs[2:])

    def forward(self, x, state):
        return self.case.run([x, state, *self.coefficients])[0]


@pytest.mark.parametrize("form", FORMS)
def test_functional_gradients_equal_those_of_backward(form):
    case = small_case(form)
    module = Filter(case)
    x, state = (t.detach() for t in case.inputs[:2])

    def loss(parameters, x, state):
        return functional_call(module, parameters, (x, state)).square().sum()

    parameters = dict(module.named_parameters())
    ours = grad(loss)(parameters, x, state)
    module(x, state).square().sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(ours[name], parameter.grad)
    several = torch.stack([x, 2 * x])
    by_row = vmap(grad(loss), in_dims=(None, 0, None))(parameters, several, state)
    for name, wanted in grad(loss)(parameters, 2 * x, state).items():
        torch.testing.assert_close(by_row[name][1], wanted)


@pytest.mark.parametrize("form", FORMS)
def test_forward_mode_and_backward_mode_give_the_same_derivative(form):
    case = small_case(form)
    x, *others = (t.detach() for t in case.inputs)

    def total(x):
        return case.run([x, *others])[0].square().sum()

    direction = Draw(1).normal(*x.shape)
    _, ahead = jvp(total, (x,), (direction,))
    torch.testing.assert_close(ahead, (grad(total)(x) * direction).sum())
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(total(forward_ad.make_dual(x, direction))).tangent
    torch.testing.assert_close(tangent, ahead)
    curvature = hessian(total)(x).flatten(0, 2).flatten(1)
    torch.testing.assert_close(curvature, curvature.T)


@pytest.mark.parametrize("form", FORMS)
def test_a_compiled_function_that_was_called_before_has_its_forward_derivative(form):
    case = small_case(form)
    x, *others = (t.detach() for t in case.inputs)

    def filtered(x):
        return x + case.run([x, *others])[0]

    torch.compiler.reset()
    compiled = torch.compile(filtered, backend="aot_eager", fullgraph=True)
    compiled(x)
    direction = Draw(1).normal(*x.shape)
    with forward_ad.dual_level():
        ours, wanted = (
            forward_ad.unpack_dual(each(forward_ad.make_dual(x, direction))).tangent
            for each in (compiled, filtered)
        )
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("form", FORMS)
def test_a_transform_inside_a_compiled_function_is_no_other_than_outside(form):
    case = small_case(form)
    x, *others = (t.detach() for t in case.inputs)
    direction = Draw(1).normal(*x.shape)
    torch.compiler.reset()

    def ahead(x):
        return jvp(lambda x: case.run([x, *others])[0], (x,), (direction,))[1]

    compiled = torch.compile(ahead, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), ahead(x))


@pytest.mark.parametrize("form", FORMS)
def test_a_transform_of_compiled_loops_is_refused(form):
    case = small_case(form)
    x, *others = (t.detach() for t in case.inputs)
    with pytest.raises(ValueError, match=r"backend 'cpu' cannot run inside torch\.func"):
        grad(lambda x: case.run([x, *others], backend="cpu")[0].sum())(x)


@pytest.mark.parametrize("length", [1, 40])
@pytest.mark.parametrize("op", ["associative", "gated", "convolution", "attention"])
def test_the_other_ops_go_through_every_transform(op, length):
    draw = Draw()
    q, k, v = (draw.normal(BATCH, length, 2, 4) for _ in range(3))
    decay, taps = draw.uniform(BATCH, length, 2, 4), draw.normal(5, 2, 4).flatten(1)
    run = {
        "associative": lambda v: associative_filter(q, k, v, decay[..., 0], k[..., 0])[0],
        "gated": lambda v: gated_filter(q, k, v, decay)[0],
        "convolution": lambda v: long_conv(v.flatten(2), taps)[0],
        "attention": lambda v: chunked_attention(q, k, v, 8)[0],
    }[op]

    def total(v):
        return run(v).square().sum()

    leaf = v.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(grad(total)(v), wanted)
    torch.testing.assert_close(vmap(grad(total))(torch.stack([v, v]))[1], wanted)
    direction = draw.normal(*v.shape)
    torch.testing.assert_close(jvp(total, (v,), (direction,))[1], (wanted * direction).sum())


@pytest.mark.parametrize("length", [1, 12])
@pytest.mark.parametrize("form", FORMS)
def test_autocast_casts_nothing_in_a_filter(form, length):
    case = Case(form, Draw(), length, 5)
    for dtype in (torch.float32, torch.bfloat16):
        x, *others = (t.detach().float() for t in case.inputs)
        inputs = [x.to(dtype), *others]  # as after a linear layer: float32 poles of a bfloat16 x
        expected = case.run(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            got = case.run(inputs)
        assert (got[0].dtype, got[1].dtype) == (dtype, torch.float32)
        for ours, wanted in zip(got, expected, strict=True):
            assert torch.equal(ours, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 12])
def test_a_convolution_in_one_half_precision_is_the_same_under_autocast_to_the_other(dtype, length):
    x, kernel = Draw().normal(BATCH, length, DIM).to(dtype), Draw(1).normal(4, DIM).to(dtype)
    other = torch.bfloat16 if dtype == torch.float16 else torch.float16
    for convolution in (short_conv, long_conv):
        wanted = convolution(x, kernel)
        with torch.autocast("cpu", other):
            got = convolution(x, kernel)
        assert all(map(torch.equal, got, wanted))


def test_autocast_casts_the_products_of_attention_and_of_nothing_else():
    draw = Draw()
    q, k, v = (draw.normal(BATCH, 40, 2, 4).float() for _ in range(3))
    decay, kernel = draw.uniform(BATCH, 40, 2).float(), draw.normal(5, DIM).float()
    x, decays = draw.normal(BATCH, 40, DIM).float(), draw.uniform(BATCH, 40, 2, 4).float()
    calls = {
        "associative": lambda: associative_filter(q, k, v, decay)[0],
        "gated": lambda: gated_filter(q, k, v, decays)[0],
        "convolution": lambda: long_conv(x, kernel)[0],
        "attention": lambda: chunked_attention(q, k, v, 8)[0],
    }
    for name, call in calls.items():
        expected = call()
        with torch.autocast("cpu", torch.bfloat16):
            got = call()
        assert torch.equal(got, expected) == (name != "attention")


@pytest.mark.parametrize("form", FORMS)
def test_activation_checkpointing_changes_no_gradient(form):
    case = Case(form, Draw(), 300, 128)
    plain = torch.autograd.grad(case.run()[0].square().sum(), case.inputs)
    y = checkpoint(lambda *t: case.run(t)[0].square().sum(), *case.inputs, use_reentrant=False)
    for ours, wanted in zip(torch.autograd.grad(y, case.inputs), plain, strict=True):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("op", [associative_filter, gated_filter])
def test_activation_checkpointing_changes_no_gradient_of_filtered_products(op):
    inputs = products(op, 40)
    plain = torch.autograd.grad(op(*inputs)[0].square().sum(), inputs)
    y = checkpoint(lambda *t: op(*t)[0].square().sum(), *inputs, use_reentrant=False)
    for ours, wanted in zip(torch.autograd.grad(y, inputs), plain, strict=True):
        assert torch.equal(ours, wanted)
