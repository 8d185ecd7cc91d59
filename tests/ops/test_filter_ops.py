"""Facts that hold for both filter ops, direct and normal form."""

from __future__ import annotations

import itertools
import sys

import pytest
import scipy.signal
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.ops.drawing import Draw, all_gradients
from torch import nn

from polewise import filters
from polewise.ops import direct_form_filter, normal_form_filter

FORMS = ("direct", "normal")
BATCH, DIM = 2, 3


class Case:
    """One op with inputs for it."""

    def __init__(self, form, draw, length, bin_length, offset=0, lengths=None, reset=False):
        late = offset if isinstance(offset, int) else int(offset.max())
        bins = -(-(late + length) // bin_length)
        self.form, self.bin_length = form, bin_length
        self.options = {"offset": offset, "lengths": lengths, "reset": reset}
        x, state = draw.normal(BATCH, length, DIM), draw.normal(BATCH, DIM, 2)
        if form == "direct":
            coefficients = [draw.stable(BATCH, bins, DIM)]
        else:
            coefficients = [
                0.99 * draw.uniform(BATCH, bins, DIM),
                3 * draw.uniform(BATCH, bins, DIM),
                draw.normal(BATCH, bins, DIM, 2),
            ]
        self.inputs = [t.requires_grad_() for t in (x, state, *coefficients)]

    def run(self, inputs=None, **options):
        x, state, *coefficients = self.inputs if inputs is None else inputs
        options = {**self.options, "state": state, **options}
        if self.form == "direct":
            return direct_form_filter(x, coefficients[0], self.bin_length, **options)
        decay, angle, mix = coefficients
        return normal_form_filter(x, decay, angle, self.bin_length, mix=mix, **options)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=40)
@given(
    length=st.sampled_from([0, 1, 2, 7, 40, 150, 300]),
    bin_length=st.sampled_from([1, 5, 16, 130, 1000]),
    per_row=st.booleans(),
    ragged=st.booleans(),
    reset=st.booleans(),
    seed=st.integers(0, 3),
)
def test_backends_agree_with_the_definition_gradients_included(
    form, backend, length, bin_length, per_row, ragged, reset, seed
):
    offset = torch.tensor([0, bin_length - 1]) if per_row else (bin_length - 1) // 2
    lengths = torch.tensor([length, length // 2]) if ragged else None
    case = Case(form, Draw(seed), length, bin_length, offset, lengths, reset)
    expected = case.run(backend="reference")
    got = case.run(backend=backend)
    expected = (*expected, *all_gradients(*expected, case.inputs))
    got = (*got, *all_gradients(*got, case.inputs))
    for ours, definition in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, definition, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["reference", "torch", "cpu", None])
@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=10)
@example(cuts=list(range(61)), ragged=True, reset=True)
@given(cuts=st.lists(st.integers(0, 60), max_size=5), ragged=st.booleans(), reset=st.booleans())
def test_any_split_gives_the_outputs_of_one_pass(form, backend, dtype, cuts, ragged, reset):
    length, bin_length = 60, 7
    lengths = torch.tensor([length, 25]) if ragged else None
    case = Case(form, Draw(), length, bin_length, 0, lengths, reset)
    x, state, *coefficients = (t.detach().to(dtype) for t in case.inputs)
    whole, end = case.run([x, state, *coefficients], backend=backend)
    outputs = []
    edges = sorted([0, *cuts, length])
    for begin, stop in itertools.pairwise(edges):
        bins = slice(begin // bin_length, -(-stop // bin_length))
        if begin == stop:
            bins = slice(begin // bin_length, begin // bin_length + (begin % bin_length > 0))
        y, state = case.run(
            [x[:, begin:stop], state, *(c[:, bins] for c in coefficients)],
            backend=backend,
            offset=begin % bin_length,
            lengths=None if lengths is None else (lengths - begin).clamp(0, stop - begin),
        )
        outputs.append(y)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state, end, rtol=tolerance, atol=tolerance)


def skipped(case, backend):
    """What a normal form and its skip give, with all gradients; and the same, one by one."""
    skip = Draw(5).normal(DIM).requires_grad_()
    inputs = [*case.inputs, skip]
    x, lengths = case.inputs[0], case.options["lengths"]
    real = True if lengths is None else torch.arange(x.shape[1]) < lengths[:, None]
    together = case.run(backend=backend, skip=skip)
    y, last = case.run(backend="reference")
    apart = y + torch.where(torch.as_tensor(real)[..., None], skip * x, 0), last
    return [(*outputs, *all_gradients(*outputs, inputs)) for outputs in (together, apart)]


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu", None])
@pytest.mark.parametrize("length", [0, 1, 5, 150])
@pytest.mark.parametrize("ragged", [False, True])
def test_what_a_normal_form_lets_pass_is_added(backend, length, ragged):
    lengths = torch.tensor([length, length // 2]) if ragged else None
    together, apart = skipped(Case("normal", Draw(), length, 7, 3, lengths), backend)
    for ours, wanted in zip(together, apart, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_rows_wider_than_a_unit_of_the_compiled_loops_are_exact_gradients_included(
    form, monkeypatch
):
    monkeypatch.setattr(sys.modules[__name__], "DIM", 1030)
    case = Case(form, Draw(), 300, 37, torch.tensor([5, 0]), torch.tensor([300, 261]))
    expected, got = case.run(backend="torch"), case.run(backend="cpu")
    assert got[0].nbytes > 1 << 22  # large enough to ask for large pages
    expected = (*expected, *all_gradients(*expected, case.inputs))
    got = (*got, *all_gradients(*got, case.inputs))
    for ours, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_fixed_coefficients_equal_scipy_lfilter(backend):
    draw = Draw()
    x, a = draw.normal(1, 200, 2), draw.stable(1, 1, 2)
    y, _ = direct_form_filter(x, a, 200, backend=backend)
    for c in range(2):
        wanted = scipy.signal.lfilter([1], [1, *a[0, 0, c].tolist()], x[0, :, c].numpy())
        torch.testing.assert_close(y[0, :, c], torch.as_tensor(wanted), rtol=1e-12, atol=1e-12)

    decay, angle, mix = 0.99 * draw.uniform(1, 1, 2), 3 * draw.uniform(1, 1, 2), draw.normal(2, 2)
    y, _ = normal_form_filter(x, decay, angle, 200, mix=mix, backend=backend)
    for c in range(2):
        sos = filters.normal_form_to_sos(decay[0, 0, c], angle[0, 0, c], mix=mix[c])
        wanted = scipy.signal.sosfilt(sos.reshape(1, 6).numpy(), x[0, :, c].numpy())
        torch.testing.assert_close(y[0, :, c], torch.as_tensor(wanted), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_time_varying_coefficients_equal_a_double_loop(backend):
    draw = Draw()
    x, a = draw.normal(1, 50, 1), draw.stable(1, 10, 1)
    y1 = y2 = 0.0
    wanted = []
    for t in range(50):
        a1, a2 = a[0, t // 5, 0].tolist()
        y1, y2 = x[0, t, 0].item() - a1 * y1 - a2 * y2, y1
        wanted.append(y1)
    y, _ = direct_form_filter(x, a, 5, backend=backend)
    wanted = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(y[0, :, 0], wanted, rtol=1e-12, atol=1e-12)

    decay, angle = draw.uniform(1, 10, 1), 3 * draw.uniform(1, 10, 1)
    s, wanted = 0j, []
    for t in range(50):
        pole = torch.polar(decay[0, t // 5, 0], angle[0, t // 5, 0]).item()
        s = pole * s + x[0, t, 0].item()
        wanted.append(0.5 * s.real - 2 * s.imag)
    mix = torch.tensor([[0.5, -2.0]], dtype=torch.float64)
    y, _ = normal_form_filter(x, decay, angle, 5, mix=mix, backend=backend)
    wanted = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(y[0, :, 0], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_exact_for_every_argument(form, backend):
    case = Case(form, Draw(), 9, 4, 2, torch.tensor([9, 6]))
    assert torch.autograd.gradcheck(lambda *t: case.run(t, backend=backend), case.inputs)


@pytest.mark.parametrize("form", FORMS)
def test_the_registered_ops_pass_opcheck(form):
    from polewise.ops import direct_form, normal_form

    draw = Draw()
    x, state = draw.normal(2, 9, 3).requires_grad_(), draw.normal(2, 3, 2).requires_grad_()
    offsets, lengths = torch.tensor([0, 3]), torch.tensor([9, 5])
    if form == "direct":
        a = draw.stable(2, 3, 3).requires_grad_()
        arguments = (x, a, offsets, lengths, state, 4, False)
        torch.library.opcheck(direct_form._forward_op, arguments)
    else:
        decay, angle = (draw.uniform(2, 3, 3).requires_grad_() for _ in range(2))
        for rows in ((2, 3), (1, 1)):
            mix = draw.normal(*rows, 3, 2).requires_grad_()
            skip = draw.normal(3).requires_grad_()
            arguments = (x, decay, angle, mix, skip, offsets, lengths, state, 4, True)
            torch.library.opcheck(normal_form._forward_op, arguments)


@pytest.mark.parametrize("form", FORMS)
def test_compiles_whole_and_exports(form):
    case = Case(form, Draw(), 40, 8)
    inputs = [t.detach() for t in case.inputs]
    expected = case.run(inputs)
    torch.compiler.reset()
    compiled = torch.compile(lambda *t: case.run(t), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), expected)

    class Module(torch.nn.Module):
        def forward(self, *t):
            return case.run(t, backend="torch")

    program = torch.export.export(Module(), tuple(inputs))
    torch.testing.assert_close(program.module()(*inputs), expected)
    assert not any("polewise" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("reset", [False, True])
def test_a_normal_form_of_open_length_is_exported(reset):
    class Filter(nn.Module):
        def forward(self, x, decay, angle, mix, skip, state):
            return normal_form_filter(
                x, decay, angle, 10_000, mix=mix, skip=skip, state=state, reset=reset
            )

    def inputs(batch, length):
        draw = Draw()
        decay, angle = draw.uniform(batch, 1, DIM), 3 * draw.uniform(batch, 1, DIM)
        return (
            draw.normal(batch, length, DIM), decay, angle,
            draw.normal(batch, 1, DIM, 2), draw.normal(DIM), draw.normal(batch, DIM, 2),
        )  # fmt: skip

    free = torch.export.Dim.DYNAMIC
    rows = {0: free}
    program = torch.export.export(
        Filter(), inputs(2, 100), dynamic_shapes=({0: free, 1: free}, rows, rows, rows, None, rows)
    )
    for batch, length in ((1, 40), (3, 333)):
        given = inputs(batch, length)
        expected = normal_form_filter(
            *given[:3], 10_000, mix=given[3], skip=given[4], state=given[5], reset=reset,
            backend="reference",
        )  # fmt: skip
        torch.testing.assert_close(program.module()(*given), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_long_memory_costs_no_accuracy_in_low_precision(dtype, backend):
    x = Draw().normal(1, 512, 4).to(dtype)
    decay = torch.full((1, 1, 4), 1 - 2**-8, dtype=dtype)  # bfloat16's last number before 1
    angle = torch.zeros_like(decay)
    exact, _ = normal_form_filter(x.double(), decay.double(), angle.double(), 512)
    rounding = (exact.to(dtype).double() - exact).abs().max()
    y, state = normal_form_filter(x, decay, angle, 512, backend=backend)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    assert (y.double() - exact).abs().max() <= 1.5 * rounding


@pytest.mark.parametrize("form", FORMS)
def test_memory_layout_does_not_matter(form):
    case = Case(form, Draw(), 30, 8)
    turned = [t.detach().transpose(0, 1).contiguous().transpose(0, 1) for t in case.inputs]
    results = []
    for inputs in (case.inputs, [t.requires_grad_() for t in turned]):
        y = case.run(inputs)
        results.append((*y, *all_gradients(*y, inputs)))
    for ours, wanted in zip(*results, strict=True):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("form", FORMS)
def test_the_way_back_keeps_inputs_output_and_a_state_now_and_then(form):
    """The normal form one for every 128 steps, the direct form none: it reads them from y."""
    case = Case(form, Draw(), 128 * 50, 128)
    inputs = [t.detach().float().requires_grad_() for t in case.inputs]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y, _ = case.run(inputs)
    known = {t.data_ptr() for t in (*inputs, y)}
    others = {t.data_ptr(): t.numel() for t in kept if t.data_ptr() not in known}
    allowed = 0 if form == "direct" else 2 * BATCH * 50 * DIM
    allowed += 2 * BATCH + DIM  # offsets and lengths of rows, a skip
    assert sum(others.values()) <= allowed


@pytest.mark.parametrize("form", FORMS)
def test_the_number_of_threads_changes_no_bit(form):
    draw = Draw()
    x, state = draw.normal(3, 200, 300), draw.normal(3, 300, 2)
    if form == "direct":
        run, poles = direct_form_filter, [draw.stable(3, 4, 300)]
    else:
        run, poles = normal_form_filter, [draw.uniform(3, 4, 300), draw.uniform(3, 4, 300)]
    inputs = [t.requires_grad_() for t in (x, state, *poles)]
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            y = run(x, *poles, 50, state=state)
            results.append((*y, *all_gradients(*y, inputs)))
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*results, strict=True):
        assert torch.equal(one, many)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_nan_in_padding_reaches_no_gradient_of_what_is_let_past(backend):
    x, skip = torch.ones(1, 6, 2), torch.ones(2, requires_grad=True)
    x[0, 2:] = torch.nan
    poles = torch.full((1, 2, 2), 0.5)
    y, _ = normal_form_filter(
        x, poles, poles, 4, skip=skip, lengths=torch.tensor([2]), backend=backend
    )
    y.sum().backward()
    assert skip.grad.tolist() == [2, 2]


def test_switching_stable_direct_forms_diverges_and_the_normal_form_does_not():
    # Bins of 16, theta1 = 0.999, theta0 alternating: every frozen filter is stable.
    theta0 = torch.tensor([0.15369, 0.97338], dtype=torch.float64).repeat(128)
    a = torch.stack([theta0, torch.full_like(theta0, 0.999)], -1)[None, :, None]
    assert filters.is_stable(a).all()
    x = torch.zeros(1, 4096, 1, dtype=torch.float64)
    x[0, 0] = 1
    assert direct_form_filter(x, a, 16)[0].abs().max() > 1e20
    assert direct_form_filter(x, a, 16, reset=True)[0].abs().max() < 2

    decay = filters.coefficients_to_poles(a).abs()[..., 0]
    angle = torch.pi * (torch.arange(256) % 2).double()[None, :, None]
    noise = Draw().uniform(1, 4096, 1) * 2 - 1
    y, _ = normal_form_filter(noise, decay, angle, 16)
    assert y.abs().max() <= noise.abs().max() / (1 - decay.max())
    y, _ = normal_form_filter(x, decay, angle, 16)
    assert y.abs().max() <= 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_comes_out_from_its_step_on_and_not_before(form, backend, bad):
    case = Case(form, Draw(), 40, 8)
    x, *others = (t.detach() for t in case.inputs)
    clean, _ = case.run([x, *others], backend=backend)
    x = x.clone()
    x[:, 20] = bad
    y, _ = case.run([x, *others], backend=backend)
    torch.testing.assert_close(y[:, :20], clean[:, :20], rtol=1e-12, atol=1e-12)
    assert not torch.isfinite(y[:, 20:]).any()


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("form", FORMS)
def test_a_reset_ends_what_is_not_finite(form, backend):
    case = Case(form, Draw(), 24, 8, reset=True)
    x, *others = (t.detach() for t in case.inputs)
    x = x.clone()
    x[:, 9] = float("nan")
    y, _ = case.run([x, *others], backend=backend)
    assert y[:, 9:16].isnan().all()
    assert torch.isfinite(y[:, 16:]).all()


X = torch.zeros(2, 10, 3)
A = torch.zeros(2, 2, 3, 2)
D = torch.zeros(2, 2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: direct_form_filter(X[0], A, 5), ValueError, r"x must have shape .*got \(10, 3\)"),
        (lambda: direct_form_filter(X.long(), A, 5), TypeError, r"x must be float.*got int64"),
        (
            lambda: direct_form_filter(X, A[:1], 5),
            ValueError,
            r"a must have shape .*\(1, 2, 3, 2\)",
        ),
        (lambda: direct_form_filter(X, A[:, :1], 5), ValueError, r"a must have .* = 2 bins.*got 1"),
        (
            lambda: direct_form_filter(X, A.double(), 5),
            TypeError,
            r"a must be float32.*got float64",
        ),
        (lambda: direct_form_filter(X, A, 0), ValueError, r"bin_length must be at least 1"),
        (lambda: direct_form_filter(X, A, 5, offset=5), ValueError, r"offset must lie in"),
        (
            lambda: direct_form_filter(X, A, 5, offset=torch.tensor([0, 9])),
            ValueError,
            r"offset must",
        ),
        (lambda: direct_form_filter(X, A, 5, state=A[0, :1]), ValueError, r"state must have shape"),
        (lambda: direct_form_filter(X, A, 5, lengths=torch.ones(3).long()), ValueError, r"lengths"),
        (lambda: direct_form_filter(X, A.to("meta"), 5), ValueError, r"a must be on cpu.*got meta"),
        (lambda: direct_form_filter(X, A, 5, backend="gpu"), ValueError, r"backend must be one of"),
        (lambda: normal_form_filter(X, D, D[:, :1], 5), ValueError, r"angle must have shape"),
        (lambda: normal_form_filter(X, D, D, 5, mix=X), ValueError, r"mix must have shape"),
        (lambda: normal_form_filter(X, D, D, 5, skip=X), ValueError, r"skip must have shape"),
        (lambda: normal_form_filter(X, D, D, 5.0), TypeError, r"bin_length must be an int"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_products_over_many_clearings_do_not_reach_the_gradient():
    """Each bin's filter is stable and starts anew; the product of their matrices leaves float32."""
    a = torch.tensor([[-1.9, 0.95], [1.9, 0.95]]).repeat(38, 1)[:75]
    results = []
    for backend in ("torch", "cpu"):
        inputs = [torch.ones(1, 300, 1), a[None, :, None].clone(), torch.ones(1, 1, 2)]
        x, coefficients, state = (each.requires_grad_() for each in inputs)
        y, end = direct_form_filter(x, coefficients, 4, state=state, reset=True, backend=backend)
        results.append((y, *all_gradients(y, end, inputs)))
    for ours, wanted in zip(*results, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_nan_before_a_clearing_reaches_no_gradient_after_it(form):
    results = []
    for backend in ("torch", "cpu"):
        case = Case(form, Draw(), 24, 8, reset=True)
        with torch.no_grad():
            case.inputs[0][:, 9] = float("nan")
        y, _ = case.run(backend=backend)
        gradient = torch.autograd.grad(y[:, 16:].sum(), case.inputs[2])[0]
        results.append(gradient[:, 2])
    assert results[0].isfinite().all()
    torch.testing.assert_close(*results)
