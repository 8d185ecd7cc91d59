"""Facts about the associative filter: filtered products of keys and values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.drawing import Draw, all_gradients

from polewise.ops import associative_filter

BATCH, HEADS = 2, 2


def products(length, turning, seed=0):
    draw = Draw(seed)
    q, k = draw.normal(BATCH, length, HEADS, 4), draw.normal(BATCH, length, HEADS, 4)
    v, decay = draw.normal(BATCH, length, HEADS, 3), draw.uniform(BATCH, length, HEADS)
    angle = [draw.normal(BATCH, length, HEADS)] if turning else []
    state = draw.normal(BATCH, HEADS, 2 if turning else 1, 4, 3)
    return [t.requires_grad_() for t in (q, k, v, decay, *angle)], state.requires_grad_()


@pytest.mark.parametrize("turning", [False, True])
@settings(deadline=None, max_examples=15)
@given(length=st.sampled_from([0, 1, 31, 32, 33, 100]), ragged=st.booleans(), stepped=st.booleans())
def test_every_backend_is_the_recursion_gradients_included(turning, length, ragged, stepped):
    inputs, state = products(length, turning)
    step, skip = Draw(1).normal(BATCH, length, HEADS), Draw(2).normal(HEADS)
    more = {"step": step.requires_grad_(), "skip": skip.requires_grad_()} if stepped else {}
    leaves = [*inputs, state, *more.values()]
    lengths = torch.tensor([length, length // 2]) if ragged else None
    results = []
    for backend in ("reference", "torch", "cpu"):
        y, end = associative_filter(*inputs, **more, lengths=lengths, state=state, backend=backend)
        results.append((y, end, *all_gradients(y, end, leaves)))
    expected, *others = results
    for each in others:
        for ours, definition in zip(each, expected, strict=True):
            torch.testing.assert_close(ours, definition, rtol=1e-9, atol=1e-9)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("turning", [False, True])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(64, 40), (5, 130), (200, 64), (1, 1)])
def test_compiled_products_of_any_size_on_any_number_of_threads(
    key_dim, value_dim, turning, dtype, threads
):
    """Blocks of columns, the last one narrower; segments, the last one shorter."""
    draw, length, heads = Draw(), 150, 3
    q, k = (draw.normal(2, length, heads, key_dim) / key_dim**0.5 for _ in range(2))
    v, decay = draw.normal(2, length, heads, value_dim), draw.uniform(2, length, heads)
    angle = [draw.normal(2, length, heads)] if turning else []
    state = draw.normal(2, heads, 1 + turning, key_dim, value_dim)
    step, skip = draw.normal(2, length, heads), draw.normal(heads)
    results = []
    for backend, kind, count in (
        ("reference", torch.float64, 1),
        ("cpu", dtype, 1),
        ("cpu", dtype, 3),
    ):
        threads(count)
        leaves = [
            t.to(kind).detach().requires_grad_()
            for t in (q, k, v, decay, *angle, step, skip, state)
        ]
        *inputs, by, skipped, start = leaves
        y, end = associative_filter(*inputs, step=by, skip=skipped, state=start, backend=backend)
        results.append((y, end, *all_gradients(y, end, leaves)))
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    for definition, alone, shared in zip(*results, strict=True):
        assert alone.dtype == dtype
        assert torch.equal(alone, shared)
        torch.testing.assert_close(alone.double(), definition, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "sizes", [(0, 5, 2, 3, 3), (2, 5, 0, 3, 3), (2, 5, 2, 0, 3), (2, 5, 2, 3, 0)]
)
def test_compiled_products_of_nothing(sizes):
    batch, length, heads, key_dim, value_dim = sizes
    q = torch.ones(batch, length, heads, key_dim, requires_grad=True)
    v = torch.ones(batch, length, heads, value_dim)
    y, end = associative_filter(q, q, v, torch.ones(batch, length, heads), backend="cpu")
    assert y.shape == v.shape
    assert end.shape == (batch, heads, 1, key_dim, value_dim)
    assert y.eq(0).all()
    (y.sum() + end.sum()).backward()
    assert q.grad.shape == q.shape


def test_compiled_products_of_strided_sequences():
    inputs, state = products(70, turning=True)
    wide = [torch.stack([part, part], -1).flatten(-2)[..., ::2] for part in inputs]
    expected = associative_filter(*inputs, state=state, backend="cpu")
    for ours, wanted in zip(
        associative_filter(*wide, state=state, backend="cpu"), expected, strict=True
    ):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("output", [0, 1])
def test_compiled_products_have_a_gradient_where_one_output_is_not_used(output):
    inputs, state = products(40, turning=False)
    both = []
    for backend in ("reference", "cpu"):
        result = associative_filter(*inputs, state=state, backend=backend)[output]
        gradients = torch.autograd.grad(
            result.square().sum(), [*inputs, state], allow_unused=True, materialize_grads=True
        )
        both.append(gradients)
    for definition, ours in zip(*both, strict=True):
        torch.testing.assert_close(ours, definition, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("turning", [False, True])
@pytest.mark.parametrize(("pairs", "poles"), [(2, 1), (1, 1), (2, 4)])
def test_the_registered_op_passes_opcheck(turning, pairs, poles):
    from polewise.ops._products import filtered_products

    draw = Draw()
    q, k = draw.normal(2, 70, pairs, 4), draw.normal(2, 70, pairs, 4)
    v, pole = draw.normal(2, 70, 2, 3), 0.7 * draw.uniform(2, 70, 2, 1 + turning, poles)
    step, skip = draw.uniform(2, 70, 2), draw.normal(2)
    arguments = [q, k, v, step, pole, skip, draw.normal(2, 2, 1 + turning, 4, 3)]
    key_head = [0, pairs - 1]
    torch.library.opcheck(filtered_products, (*(t.requires_grad_() for t in arguments), key_head))


@pytest.mark.parametrize("turning", [False, True])
@pytest.mark.parametrize("length", [0, 1, 33, 100])
def test_one_head_of_queries_and_keys_is_that_of_all(turning, length):
    (q, k, *others), state = products(length, turning)
    q, k = (part[:, :, :1].detach().requires_grad_() for part in (q, k))
    lengths, results = torch.tensor([length, length // 2]), []
    for heads, backend in ((1, "cpu"), (1, "torch"), (1, "reference"), (HEADS, "reference")):
        pairs = (part.expand(-1, -1, heads, -1) for part in (q, k))
        y, end = associative_filter(*pairs, *others, lengths=lengths, state=state, backend=backend)
        results.append((y, end, *all_gradients(y, end, [q, k, *others, state])))
    *shared, expected = results
    for each in shared:
        for ours, definition in zip(each, expected, strict=True):
            torch.testing.assert_close(ours, definition, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("length", "backend"),
    [(1, None), *((n, b) for n in (1, 100) for b in ("cpu", "torch", "reference")), (1100, "cpu")],
)  # gradients of shared keys are summed every 512 steps
@pytest.mark.parametrize("key_head", [[1, 0], [1, 1], [1], [0]])
def test_heads_look_up_with_the_keys_they_are_given(length, key_head, backend):
    (q, k, *others), state = products(length, turning=False)
    others, state = [part[:, :, : len(key_head)] for part in others], state[:, : len(key_head)]
    results = []
    for pairs, looks in (((q, k), key_head), ((q[:, :, key_head], k[:, :, key_head]), None)):
        y, end = associative_filter(*pairs, *others, state=state, key_head=looks, backend=backend)
        results.append((y, end, *all_gradients(y, end, [q, k, *others, state])))
    for ours, definition in zip(*results, strict=True):
        torch.testing.assert_close(ours, definition, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_nan_in_a_key_of_all_heads_reaches_all_of_them_and_no_earlier_output(backend):
    (q, k, v, decay), _ = (list(map(torch.detach, part)) for part in products(80, False))
    q, k = q[:, :, :1], k[:, :, :1].clone()
    clean, _ = associative_filter(q, k, v, decay, backend=backend)
    k[:, 40] = float("nan")
    y, _ = associative_filter(q, k, v, decay, backend=backend)
    torch.testing.assert_close(y[:, :40], clean[:, :40], rtol=1e-12, atol=1e-12)
    assert y[:, 40:].isnan().all()


@pytest.mark.parametrize("turning", [False, True])
@torch.no_grad()
def test_products_are_carried_from_span_to_span(turning):
    inputs, state = products(2500, turning)  # more than 64 chunks of 32
    backends = ("reference", "torch", "cpu")
    expected, *others = (associative_filter(*inputs, state=state, backend=b) for b in backends)
    for each in others:
        for ours, definition in zip(each, expected, strict=True):
            torch.testing.assert_close(ours, definition, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("turning", [False, True])
@settings(deadline=None, max_examples=10)
@given(cut=st.integers(0, 70))
def test_any_split_of_the_products_gives_one_pass(turning, backend, cut):
    inputs, state = products(70, turning)
    whole, end = associative_filter(*inputs, state=state, backend=backend)
    left, middle = associative_filter(*(t[:, :cut] for t in inputs), state=state, backend=backend)
    right, last = associative_filter(*(t[:, cut:] for t in inputs), state=middle, backend=backend)
    torch.testing.assert_close(torch.cat([left, right], 1), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(last, end, rtol=1e-10, atol=1e-10)


def test_a_decay_of_one_is_linear_attention():
    (q, k, v, decay), _ = products(20, False)
    y, _ = associative_filter(q, k, v, torch.ones_like(decay))
    weights = torch.einsum("bihk,bjhk->bhij", q, k).tril()
    torch.testing.assert_close(y, torch.einsum("bhij,bjhv->bihv", weights, v))


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-5, 1.0])
def test_extreme_decays_are_exact(value, backend):
    (q, k, v, decay), _ = products(100, False)
    decay = torch.full_like(decay, value)
    got = associative_filter(q, k, v, decay, backend=backend)
    expected = associative_filter(q, k, v, decay, backend="reference")
    for ours, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_products_of_an_empty_segment_keep_their_gradient(backend):
    (q, k, v, decay), state = products(0, False)
    y, last = associative_filter(q, k, v, decay, state=state, backend=backend)
    (grad,) = torch.autograd.grad(y.sum() + last.sum(), state)
    assert torch.equal(grad, torch.ones_like(state))
    assert y.requires_grad


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("place", ["k", "v", "decay", "step"])
def test_nan_in_the_products_reaches_no_earlier_output(place, backend):
    (q, k, v, decay), _ = (list(map(torch.detach, part)) for part in products(80, False))
    step = torch.full_like(decay, 0.5)
    clean, _ = associative_filter(q, k, v, decay, step=step, backend=backend)
    {"k": k, "v": v, "decay": decay, "step": step}[place][:, 40] = float("nan")
    y, _ = associative_filter(q, k, v, decay, step=step, backend=backend)
    torch.testing.assert_close(y[:, :40], clean[:, :40], rtol=1e-12, atol=1e-12)
    assert y[:, 40:].isnan().all()


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_nan_in_a_step_size_reaches_no_gradient_of_earlier_segments(backend):
    """Values of 3 channels, of which the compiled form makes 64."""

    def gradients(late):
        (q, k, v, decay), _ = products(200, False)
        step = torch.full_like(decay, 0.5, requires_grad=False)
        step[:, 150] = late
        leaves = [q, k, v, decay, step.requires_grad_()]
        y, _ = associative_filter(q, k, v, decay, step=step, backend=backend)
        return torch.autograd.grad(y[:, :150].square().sum(), leaves)

    for ours, clean in zip(gradients(float("nan")), gradients(0.5), strict=True):
        torch.testing.assert_close(ours[:, :150], clean[:, :150], rtol=1e-12, atol=1e-12)
