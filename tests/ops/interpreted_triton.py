"""Facts about the Triton kernels, found by Triton's interpreter on a CPU.

Run by `test_triton.py` in a process of its own, because the interpreter must be asked for
before Triton is imported: `TRITON_INTERPRET=1 python -m pytest tests/ops/interpreted_triton.py`.
Segments are 8 steps here, so that short sequences have many.
"""

from __future__ import annotations

import pytest
import torch
from tests.ops.drawing import Draw, all_gradients
from tests.ops.test_filter_ops import BATCH, FORMS, Case, skipped

from polewise.ops import (
    _direct_form_triton,
    _normal_form_triton,
    _segments_triton,
    normal_form_filter,
)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(_segments_triton, "SEGMENT", 8)


def same(got, expected, tolerance):
    for ours, definition in zip(got, expected, strict=True):
        torch.testing.assert_close(
            ours.double(), definition.double(), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize(
    ("length", "bin_length", "offset", "lengths", "reset"),
    [
        (0, 5, 2, None, False),
        (1, 5, 4, None, True),
        (7, 10, 0, None, False),  # one segment
        (40, 2**31 - 1, 0, None, False),  # a bin that no sequence outlasts
        (33, 8, 0, None, False),  # segments are bins
        (37, 3, [0, 2], [37, 14], False),  # segments of three bins
        (37, 3, [0, 2], [37, 14], True),
        (37, 20, [3, 19], [37, 0], False),  # bins of several segments, some crossing
        (37, 20, [3, 19], [37, 20], True),
        (37, 1000, [999, 0], None, False),
        (17, 1, 0, [17, 9], True),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_kernels_agree_with_the_definition_gradients_included(
    form, length, bin_length, offset, lengths, reset
):
    offset = torch.tensor(offset) if isinstance(offset, list) else offset
    lengths = torch.tensor(lengths) if lengths else None
    case = Case(form, Draw(), length, bin_length, offset, lengths, reset)
    expected = case.run(backend="reference")
    got = case.run(backend="triton")
    expected = (*expected, *all_gradients(*expected, case.inputs))
    got = (*got, *all_gradients(*got, case.inputs))
    same(got, expected, 1e-9)


def test_what_a_normal_form_lets_pass_is_added():
    case = Case("normal", Draw(), 11, 4, 3, torch.tensor([11, 5]))
    same(*skipped(case, "triton"), 1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_channels_fill_several_programs(form, monkeypatch):
    monkeypatch.setattr("tests.ops.test_filter_ops.DIM", 70)
    case = Case(form, Draw(), 11, 4)
    expected, got = case.run(backend="cpu"), case.run(backend="triton")
    expected = (*expected, *all_gradients(*expected, case.inputs))
    same((*got, *all_gradients(*got, case.inputs)), expected, 1e-9)


def test_memory_layout_does_not_matter():
    for form in FORMS:
        case = Case(form, Draw(), 20, 6)
        expected, _ = case.run(backend="triton")
        turns = (
            lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),  # rows and time
            lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),  # time and channels
            lambda t: torch.stack([t, t], 1)[:, 0],
        )
        for turn in turns:
            turned = [turn(t.detach()).requires_grad_() for t in case.inputs]
            y, _ = case.run(turned, backend="triton")
            torch.testing.assert_close(y, expected, rtol=0, atol=0)
            # The gradient of a sum is one number in memory, whatever its shape.
            for ours, plain in zip(
                torch.autograd.grad(y.sum(), turned),
                torch.autograd.grad((expected * 1).sum(), case.inputs, retain_graph=True),
                strict=True,
            ):
                torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_has_the_same_bits_in_any_company(form):
    case = Case(form, Draw(), 30, 7)
    together, _ = case.run(backend="triton")
    for row in range(BATCH):
        alone, _ = case.run([t[row : row + 1] for t in case.inputs], backend="triton")
        assert torch.equal(alone, together[row : row + 1])


@pytest.mark.parametrize("form", FORMS)
def test_any_split_gives_the_outputs_of_one_pass(form):
    case = Case(form, Draw(), 40, 7)
    x, state, *coefficients = (t.detach() for t in case.inputs)
    whole = case.run([x, state, *coefficients], backend="triton")
    first, state = case.run([x[:, :17], state, *(c[:, :3] for c in coefficients)], backend="triton")
    second, state = case.run(
        [x[:, 17:], state, *(c[:, 2:] for c in coefficients)], backend="triton", offset=17 % 7
    )
    same((torch.cat([first, second], 1), state), whole, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_long_memory_costs_no_accuracy_in_low_precision(dtype):
    x = Draw().normal(1, 200, 3).to(dtype).requires_grad_()
    decay = torch.full((1, 1, 3), 1 - 2**-8)
    angle = torch.tensor([[[0.0, 0.1, 3.0]]])
    exact_x = x.detach().double().requires_grad_()
    exact, _ = normal_form_filter(exact_x, decay.double(), angle.double(), 200, backend="cpu")
    y, state = normal_form_filter(x, decay, angle, 200, backend="triton")
    assert (y.dtype, state.dtype) == (dtype, torch.float32)
    weights = Draw(1).normal(*x.shape).to(dtype)
    (grad,) = torch.autograd.grad((y * weights).sum(), x)
    (exact_grad,) = torch.autograd.grad((exact * weights.double()).sum(), exact_x)
    for ours, wanted in ((y, exact), (grad, exact_grad)):
        rounding = (wanted.to(dtype).double() - wanted).abs().max()
        # The interpreter cuts bfloat16 off where a GPU rounds to the nearest.
        times = 2.2 if dtype == torch.bfloat16 else 1.5
        allowed = 1e-5 * wanted.abs().max() if dtype == torch.float32 else times * rounding
        assert (ours.double() - wanted).abs().max() <= allowed


@pytest.mark.parametrize("form", FORMS)
def test_poles_at_the_edge_of_stability_keep_float32_accuracy(form, monkeypatch):
    # Over shorter segments a companion matrix squared in float32 would pass.
    monkeypatch.setattr(_segments_triton, "SEGMENT", 96)
    decay = torch.full((2, 1, 3), 0.99999)
    angle = torch.tensor([0.03, 0.3, 2.0]).expand(2, 1, 3)
    case = Case(form, Draw(), 240, 240)
    x, state = (t.detach().float() for t in case.inputs[:2])
    if form == "direct":
        coefficients = [torch.stack([-2 * decay * angle.cos(), decay**2], -1)]
    else:
        coefficients = [decay, angle, torch.ones(2, 1, 3, 2)]
    results = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "cpu")):
        inputs = [t.to(dtype).requires_grad_() for t in (x, state, *coefficients)]
        y, last = case.run(inputs, backend=backend)
        results.append((y, last, *all_gradients(y, last, inputs)))
    for ours, wanted in zip(*results, strict=True):
        assert (ours - wanted).norm() <= 1e-3 * wanted.norm()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_stays_behind_a_reset_and_ahead_of_its_step(form):
    case = Case(form, Draw(), 24, 8, reset=True)
    x, *others = (t.detach() for t in case.inputs)
    x = x.clone()
    x[:, 9] = float("nan")
    inputs = [t.requires_grad_() for t in (x, *others)]
    y, _ = case.run(inputs, backend="triton")
    assert torch.isfinite(y[:, :9]).all()
    assert y[:, 9:16].isnan().all()
    assert torch.isfinite(y[:, 16:]).all()
    weights = torch.ones_like(y)
    weights[:, 20] = float("nan")
    (grad,) = torch.autograd.grad(y, inputs[:1], weights)
    assert torch.isfinite(grad[:, :16]).all()
    assert grad[:, 16:21].isnan().all()
    assert torch.isfinite(grad[:, 21:]).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_registered_ops_pass_opcheck(form):
    draw = Draw()
    x, state = draw.normal(2, 9, 3).requires_grad_(), draw.normal(2, 3, 2).requires_grad_()
    offsets, lengths = torch.tensor([0, 3]), torch.tensor([9, 5])
    if form == "direct":
        a = draw.stable(2, 3, 3).requires_grad_()
        arguments = (x, a, offsets, lengths, state, 4, False)
        torch.library.opcheck(_direct_form_triton.forward, arguments)
    else:
        pole = (0.5 * draw.normal(2, 3, 3, 2)).requires_grad_()
        mix = draw.normal(2, 3, 3, 2).requires_grad_()
        arguments = (x, pole, mix, offsets, lengths, state, 4, True)
        torch.library.opcheck(_normal_form_triton.forward, arguments)


@pytest.mark.parametrize("form", FORMS)
def test_compiles_whole(form):
    case = Case(form, Draw(), 20, 8)
    inputs = [t.detach() for t in case.inputs]
    expected = case.run(inputs, backend="triton")
    compiled = torch.compile(
        lambda *t: case.run(t, backend="triton"), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(*inputs), expected)
