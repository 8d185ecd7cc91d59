"""Facts about the associative filter's Triton kernels, found by Triton's interpreter on a CPU.

Run by `test_triton.py`, like `interpreted_triton.py`. Chunks are 16 steps here and tiles of the
state 16 wide, the least that a matrix product takes, so that small inputs have several.
"""

from __future__ import annotations

import copy

import pytest
import torch
from tests.ops.drawing import Draw

from polewise import FocusConfig
from polewise.ops import _associative_triton, _backends, associative_filter


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(_associative_triton, "CHUNK", 16)
    monkeypatch.setattr(_associative_triton, "TILE", 16)


def drawn(batch, length, heads, key_dim, value_dim, turning, dtype=torch.float32):
    """Queries, keys, values, decays, angles where poles turn, and a state."""
    draw = Draw()
    q, k = draw.normal(batch, length, heads, key_dim), draw.normal(batch, length, heads, key_dim)
    v, decay = draw.normal(batch, length, heads, value_dim), draw.uniform(batch, length, heads)
    angle = [3 * draw.normal(batch, length, heads)] if turning else []
    state = draw.normal(batch, heads, 2 if turning else 1, key_dim, value_dim)
    return [*(t.to(dtype) for t in (q, k, v)), *(t.float() for t in (decay, *angle, state))]


def results(inputs, backend, exactly=False, **options):
    """Outputs, state, and all gradients of what weighs both."""
    inputs = [t.detach().double() if exactly else t.detach() for t in inputs]
    inputs = [t.requires_grad_() for t in inputs]
    *sequences, state = inputs
    y, last = associative_filter(*sequences, state=state, backend=backend, **options)
    draw = Draw(1)
    weights = [draw.normal(*out.shape).bfloat16().to(out.dtype) for out in (y, last)]
    total = (y * weights[0]).sum() + (last * weights[1]).sum()
    gradients = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
    return [y.detach(), last.detach(), *gradients]


@pytest.mark.parametrize("turning", [False, True])
@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ((1, 0, 2, 4, 3), None),
        ((2, 1, 1, 4, 3), None),
        ((2, 16, 2, 16, 16), [16, 3]),
        ((2, 37, 2, 5, 3), [37, 0]),
        ((1, 50, 1, 20, 18), None),  # several tiles each way
    ],
)
def test_kernels_agree_with_the_definition_gradients_included(sizes, lengths, turning):
    inputs = drawn(*sizes, turning)
    lengths = torch.tensor(lengths) if lengths else None
    got = results(inputs, "triton", lengths=lengths)
    exact = results(inputs, "reference", exactly=True, lengths=lengths)
    for ours, wanted in zip(got, exact, strict=True):
        assert (ours.double() - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("turning", [False, True])
def test_one_head_of_queries_and_keys_is_that_of_all(turning):
    q, k, *others = drawn(2, 37, 2, 5, 3, turning)
    inputs = [q[:, :, :1], k[:, :, :1], *others]
    got, exact = results(inputs, "triton"), results(inputs, "reference", exactly=True)
    for ours, wanted in zip(got, exact, strict=True):
        assert (ours.double() - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_skip_and_heads_that_share_keys_are_those_of_the_definition(dtype):
    """What a memory of Focus asks for, beside what every filter of products has."""
    draw, unit = Draw(), 1e-6 if dtype == torch.float32 else 2**-7
    q, k = (draw.normal(2, 37, 2, 5).to(dtype) for _ in range(2))
    v = draw.normal(2, 37, 3, 4).to(dtype)
    decay, step = (draw.uniform(2, 37, 3).float() for _ in range(2))
    inputs = [q, k, v, decay, step, draw.normal(3).float()]

    def run(backend, *inputs):
        *sequences, step, skip = inputs = [t.detach().requires_grad_() for t in inputs]
        y, last = associative_filter(
            *sequences, step=step, skip=skip, key_head=[0, 1, 0], backend=backend
        )
        total = (y.double() * Draw(1).normal(*y.shape)).sum() + last.double().square().sum()
        return [y, last, *torch.autograd.grad(total, inputs)]

    got = run("triton", *inputs)
    exact = run("reference", *(t.double() for t in inputs))
    assert [t.dtype for t in got[2:]] == [t.dtype for t in inputs]
    for ours, wanted in zip(got, exact, strict=True):
        assert (ours.double() - wanted).norm() <= unit * wanted.norm()


@pytest.mark.parametrize("options", [{"heads": 2}, {"memory": False, "filters": 1}])
def test_a_layer_of_focus_on_the_kernels_is_the_layer(options, monkeypatch):
    """What a GPU runs: kernels where there are some, tensor operations elsewhere."""
    torch.manual_seed(0)
    layer = FocusConfig(dim=16, **options).build()
    x = Draw().normal(2, 21, 16).float().requires_grad_()
    lengths = torch.tensor([21, 9])

    def results(layer, x):
        y, _ = layer(x, lengths=lengths)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    exact = results(copy.deepcopy(layer).double(), x.detach().double().requires_grad_())
    monkeypatch.setattr(_backends, "fastest_backend", lambda _: "triton")
    for ours, wanted in zip(results(layer, x), exact, strict=True):
        assert (ours.double() - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("turning", [False, True])
def test_poles_that_forget_at_once_have_exact_gradients_too(turning):
    inputs = drawn(1, 40, 1, 4, 4, turning)
    inputs[3] = torch.where(inputs[3] < 0.4, 1e-6 * inputs[3], inputs[3])
    by_decay, exact = (
        results(inputs, backend, exactly=backend == "reference")[5]
        for backend in ("triton", "reference")
    )
    # Number by number: a difference of long sums would be off by 1e-7 / 1e-6.
    torch.testing.assert_close(by_decay.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_costs_its_own_rounding_only(dtype):
    inputs = drawn(1, 40, 2, 8, 8, True, dtype)
    inputs[3] = 1 - 0.01 * inputs[3]
    got = results(inputs, "triton")
    exact = results(inputs, "reference", exactly=True)
    assert [t.dtype for t in got[:5]] == [dtype, torch.float32, dtype, dtype, dtype]
    for ours, wanted in zip(got, exact, strict=True):
        # The interpreter cuts bfloat16 off where a GPU rounds to the nearest.
        unit = 2 * torch.finfo(dtype).eps if ours.dtype == dtype else 1e-5
        assert ((ours.double() - wanted).abs() <= unit * wanted.abs() + 1e-5 * wanted.norm()).all()


@pytest.mark.parametrize("turning", [False, True])
def test_any_split_gives_the_outputs_of_one_pass(turning):
    *sequences, state = drawn(2, 40, 1, 4, 3, turning)
    whole, end = associative_filter(*sequences, state=state, backend="triton")
    left, state = associative_filter(*(t[:, :17] for t in sequences), state=state, backend="triton")
    right, state = associative_filter(
        *(t[:, 17:] for t in sequences), state=state, backend="triton"
    )
    torch.testing.assert_close(torch.cat([left, right], 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, end, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("turning", [False, True])
def test_layout_and_company_change_no_bit(turning):
    inputs = drawn(2, 20, 2, 4, 3, turning)
    expected = results(inputs, "triton")
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in inputs]
    for ours, plain in zip(results(turned, "triton"), expected, strict=True):
        assert torch.equal(ours, plain)
    y, last = associative_filter(
        *(t[1:] for t in inputs[:-1]), state=inputs[-1][1:], backend="triton"
    )
    assert torch.equal(y, expected[0][1:])
    assert torch.equal(last, expected[1][1:])


@pytest.mark.parametrize("place", [1, 2, 3])
def test_what_is_not_finite_reaches_no_earlier_output(place):
    inputs = drawn(1, 40, 1, 4, 3, False)
    clean = results(inputs, "triton")
    inputs[place][:, 20] = float("nan")
    y, last = results(inputs, "triton")[:2]
    assert torch.equal(y[:, :20], clean[0][:, :20])
    assert y[:, 20:].isnan().all()
    assert last.isnan().all()


@pytest.mark.parametrize("turning", [False, True])
def test_the_registered_op_passes_opcheck(turning):
    *sequences, state = (t.requires_grad_() for t in drawn(2, 20, 1, 4, 3, turning))
    arguments = (*sequences, *([] if turning else [None]), state)
    torch.library.opcheck(_associative_triton.forward, arguments)


def test_compiles_whole():
    *sequences, state = drawn(2, 20, 1, 4, 3, True)

    def run(*sequences):
        return associative_filter(*sequences, state=state, backend="triton")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*sequences), run(*sequences))


def test_what_the_kernels_do_not_take_is_refused():
    q = torch.zeros(1, 4, 1, 130)
    for wide in (q, q[..., :4].double()):
        with pytest.raises(ValueError, match=r"backend 'triton' takes up to float32 and keys of"):
            associative_filter(wide, wide, wide, wide[..., 0], backend="triton")
