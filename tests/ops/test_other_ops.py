"""Facts about the associative filter, local attention and the convolutions."""

from __future__ import annotations

import itertools

import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.drawing import Draw, all_gradients

from polewise.ops import (
    WindowState,
    associative_filter,
    chunked_attention,
    circular_filter,
    direct_form_filter,
    gated_filter,
    long_conv,
)
from polewise.ops.long_conv import good_fft_length

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


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference", None])
@pytest.mark.parametrize("key_head", [[1, 0], [1, 1], [1], [0]])
@pytest.mark.parametrize("length", [1, 100, 1100])
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


def test_products_are_carried_from_span_to_span():
    inputs, state = products(2500, False)  # more than 64 chunks of 32
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


@pytest.mark.parametrize("op", ["associative", "gated", "attention"])
def test_nan_in_padding_reaches_no_gradient(op):
    draw, lengths = Draw(), torch.tensor([20, 7])
    q, k, v = (draw.normal(BATCH, 20, HEADS, 4) for _ in range(3))
    decay = draw.uniform(BATCH, 20, HEADS)
    run = {
        "associative": lambda q, k, v: associative_filter(q, k, v, decay, lengths=lengths),
        "gated": lambda q, k, v: gated_filter(
            q, k, v, decay[..., None].expand_as(k), lengths=lengths
        ),
        "attention": lambda q, k, v: chunked_attention(q, k, v, 8, lengths=lengths),
    }[op]
    gradients = []
    for padding in (0.0, float("nan")):
        inputs = [part.clone() for part in (q, k, v)]
        for part in inputs:
            part[1, 7:] = padding
            part.requires_grad_()
        run(*inputs)[0].square().sum().backward()
        gradients.append([part.grad for part in inputs])
    for clean, poisoned in zip(*gradients, strict=True):
        torch.testing.assert_close(poisoned, clean)


def test_shapes_are_told_without_numbers():
    q = torch.ones(1, 40, 2, 4, device="meta")
    y, state = associative_filter(q, q, q, q[..., 0])
    assert (y.shape, state.shape) == (q.shape, (1, 2, 1, 4, 4))
    y, state = gated_filter(q, q, q, q)
    assert (y.shape, state.shape) == (q.shape, (1, 2, 4, 4))
    x, a = q.flatten(2), torch.ones(1, 5, 8, 2, device="meta")
    assert circular_filter(x, a, 8).shape == x.shape
    assert long_conv(x, x[0, :7])[0].shape == x.shape


def test_a_window_that_autocast_began_goes_on_without_it():
    q = Draw().normal(1, 12, 2, 4).float()
    _, state = chunked_attention(*[q[:, :7].bfloat16()] * 3, 4)
    y, _ = chunked_attention(*[q[:, 7:]] * 3, 4, state=state)
    wanted, _ = chunked_attention(q, q, q, 4)
    torch.testing.assert_close(y, wanted[:, 7:], rtol=0.05, atol=0.05)
    with pytest.raises(TypeError, match=r"state\.keys must be float32"):
        chunked_attention(q, q, q, 4, state=state._replace(keys=state.keys.long()))


@pytest.mark.parametrize("op", [associative_filter, gated_filter])
def test_what_is_read_has_the_precision_of_what_was_stored(op):
    q = torch.ones(1, 3, 1, 4, dtype=torch.bfloat16)
    y, _ = op(q, q, q.float(), q[..., 0] if op is associative_filter else q)
    assert y.dtype == torch.float32


def test_coefficients_of_another_shape_are_named():
    x = torch.zeros(2, 8, 3)
    for a in (torch.zeros(2), torch.zeros(2, 1, 3), torch.zeros(2, 1, 3, 1)):
        with pytest.raises(ValueError, match="a must have"):
            circular_filter(x, a, 8)


@pytest.mark.parametrize(("causal", "sliding"), [(True, False), (True, True), (False, False)])
@settings(deadline=None, max_examples=25)
@given(
    length=st.sampled_from([0, 1, 4, 5, 8, 17]),
    ragged=st.booleans(),
    biased=st.booleans(),
    stateful=st.booleans(),
)
def test_attention_by_chunks_equals_the_sum(causal, sliding, length, ragged, biased, stateful):
    draw = Draw()
    q, k = draw.normal(BATCH, length, HEADS, 5), draw.normal(BATCH, length, HEADS, 5)
    v = draw.normal(BATCH, length, HEADS, 3)
    bias = draw.normal(HEADS, 4 if causal else 7) if biased else None
    state = None
    if stateful and causal:
        keys, values = draw.normal(BATCH, 4, HEADS, 5), draw.normal(BATCH, 4, HEADS, 3)
        state = WindowState(keys, values, torch.tensor([2, 9]))
    ys = [
        chunked_attention(
            q, k, v, 4, bias=bias, causal=causal, sliding=sliding, state=state, backend=backend,
            lengths=torch.tensor([length, length // 2]) if ragged else None,
        )[0]
        for backend in ("reference", "torch")
    ]  # fmt: skip
    torch.testing.assert_close(ys[1], ys[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sliding", [False, True])
@settings(deadline=None, max_examples=15)
@given(cuts=st.lists(st.integers(0, 23), max_size=4))
def test_any_split_of_attention_gives_one_pass(sliding, cuts):
    draw = Draw()
    q, k, v = (draw.normal(BATCH, 23, HEADS, 4) for _ in range(3))
    whole, end = chunked_attention(q, k, v, 5, sliding=sliding)
    outputs, state = [], None
    edges = sorted([0, *cuts, 23])
    for i, j in itertools.pairwise(edges):
        y, state = chunked_attention(
            q[:, i:j], k[:, i:j], v[:, i:j], 5, sliding=sliding, state=state
        )
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), whole)
    for ours, theirs in zip(state, end, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("length", [0, 1, 17])
@pytest.mark.parametrize("taps", [1, 4, 30])
def test_the_long_convolution_equals_its_sum_and_streams(length, taps):
    draw = Draw()
    x, kernel = draw.normal(2, length, 3), draw.normal(taps, 3)
    state, lengths = draw.normal(2, taps - 1, 3), torch.tensor([length, length // 2])
    ours = long_conv(x, kernel, lengths=lengths, state=state)
    wanted = long_conv(x, kernel, lengths=lengths, state=state, backend="reference")
    torch.testing.assert_close(ours, wanted)
    whole, end = long_conv(x, kernel, state=state)
    left, middle = long_conv(x[:, : length // 3], kernel, state=state)
    right, last = long_conv(x[:, length // 3 :], kernel, state=middle)
    torch.testing.assert_close(torch.cat([left, right], 1), whole)
    assert torch.equal(last, end)


def test_the_long_convolution_equals_scipy():
    draw = Draw()
    x, kernel = draw.normal(1, 100, 1), draw.normal(30, 1)
    wanted = scipy.signal.lfilter(kernel[:, 0].numpy(), [1], x[0, :, 0].numpy())
    torch.testing.assert_close(long_conv(x, kernel)[0][0, :, 0], torch.as_tensor(wanted))


@given(at_least=st.integers(1, 5000))
@settings(deadline=None)
def test_fft_lengths_are_smooth_and_the_smallest(at_least):
    def smooth(n):
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    assert good_fft_length(at_least) == next(n for n in range(at_least, 10**4) if smooth(n))


def test_the_published_filter_sees_the_future_and_without_conjugate_and_wrap_it_does_not():
    draw = Draw()
    x, a = draw.normal(1, 32, 1), 0.6 * draw.stable(1, 2, 1)

    def ahead(**options):
        jacobian = torch.autograd.functional.jacobian(
            lambda x: circular_filter(x, a, 16, **options)[0, :, 0], x
        )
        return jacobian[:, 0, :, 0].triu(1).abs().max()

    assert ahead() > 0.1
    assert ahead(conjugate=False) > 1e-4
    assert ahead(conjugate=False, fft_length=2048) < 1e-12
    exact, _ = direct_form_filter(x, a, 16, reset=True)
    padded = circular_filter(x, a, 16, conjugate=False, fft_length=2048)
    torch.testing.assert_close(padded, exact)


def test_the_published_filter_is_a_circular_correlation_with_the_response():
    """y[t] = sum_n h[n] x[(t + n) mod R] in every bin: h is the impulse response, n its delay."""
    draw = Draw()
    x, a = draw.normal(1, 32, 1), 0.6 * draw.stable(1, 2, 1)
    y = circular_filter(x, a, 16)
    for number in range(2):
        a1, a2 = a[0, number, 0].tolist()
        h = [1.0, -a1]
        for _ in range(500):
            h.append(-a1 * h[-1] - a2 * h[-2])
        values = x[0, 16 * number : 16 * (number + 1), 0].tolist()
        expected = [sum(h[n] * values[(t + n) % 16] for n in range(len(h))) for t in range(16)]
        got = y[0, 16 * number : 16 * (number + 1), 0]
        torch.testing.assert_close(got, torch.tensor(expected, dtype=x.dtype))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q: chunked_attention(q, q[:, :1], q, 4), "k must have shape"),
        (lambda q: chunked_attention(q, q, q, 0), "chunk_length must be at least 1"),
        (
            lambda q: chunked_attention(q, q, q, 4, causal=False, sliding=True),
            "causal must be True",
        ),
        (lambda q: associative_filter(q, q, q, q[..., 0], q), "angle must have shape"),
        (lambda q: associative_filter(q, q, q, q[..., 0], step=q), "step must have shape"),
        (lambda q: associative_filter(q, q, q, q[..., 0], skip=q), "skip must have shape"),
        (
            lambda q: associative_filter(q, q, q[:, :, :1].expand(-1, -1, 3, -1), q[..., 0]),
            "q and k must have the 3 heads of v, or one for all; got 2",
        ),
        (
            lambda q: associative_filter(q, q, q, q[..., 0], key_head=[0, 2]),
            r"key_head must have a number from 0 to 1, .* for each of 2 heads; got \[0, 2\]",
        ),
        (lambda q: associative_filter(q, q, q, q[..., 0], state=q), "state must have shape"),
        (lambda q: long_conv(q[0], q[0, :0, 0]), "kernel must have at least 1 tap"),
        (lambda q: circular_filter(q[0], q[0], 8), "a must have shape"),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 6, 2, 3))
