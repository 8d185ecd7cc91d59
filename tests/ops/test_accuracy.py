"""How far rounding takes the compiled filters from float64, and that it goes no further.

With unit roundoff u (2^-24 in float32), a result whose every term passes through at most n
roundings is off by less than n u times the same result with all terms made positive (Higham,
Accuracy and Stability of Numerical Algorithms, 3.1). For the normal form these positive terms are
a filter too: with |x|, |c| and angle 0, for outputs, states and gradients alike.

The direct form amplifies. A rounding at one step comes back through the impulse response of the
poles, at most rho^k / sin(angle) after k steps.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.drawing import Draw

from polewise.ops import (
    associative_filter,
    direct_form_filter,
    long_conv,
    normal_form_filter,
)

UNIT = {
    torch.float64: 2**-53, torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11
}  # fmt: skip
A_STEP = 8
"""Roundings a step adds to a term: 3 of the pole (cosine, sine, product), 3 of a complex product
(sqrt(5) u; Brent, Percival, Zimmermann 2007), 1 of the addition, 1 of the sum over a bin."""

LAYOUTS = {
    "contiguous": lambda t: t,
    "time first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "channels first": lambda t: t.transpose(1, -1).contiguous().transpose(1, -1),
    "every second": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
}
radii = st.sampled_from([0.0, 0.5, 0.9, 0.999, 0.99999])


def rounding_of(got, wanted):
    """The last one, to the dtype that comes out; small numbers have fewer digits there."""
    smallest = torch.finfo(got.dtype).smallest_normal
    return 1.01 * UNIT[got.dtype] * (wanted.abs() + smallest)


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(list(UNIT)),
    layout=st.sampled_from(list(LAYOUTS)),
    batch=st.integers(1, 3),
    length=st.sampled_from([1, 2, 5, 33, 127, 128, 129, 200]),
    dim=st.sampled_from([1, 3, 17, 40]),
    bin_length=st.sampled_from([1, 3, 16, 100, 500]),
    radius=radii,
    per_row=st.booleans(),
    ragged=st.booleans(),
    reset=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_normal_form_and_its_gradients_stay_within_the_bound_of_rounding(
    dtype, layout, batch, length, dim, bin_length, radius, per_row, ragged, reset, seed
):
    draw = Draw(seed)
    accumulator = torch.promote_types(dtype, torch.float32)
    offset = torch.arange(batch) % bin_length if per_row else (bin_length - 1) // 2
    lengths = length - torch.arange(batch) if ragged else None
    lengths = None if lengths is None else lengths.clamp(min=0)
    bins = -(-(int(torch.as_tensor(offset).max()) + length) // bin_length)
    x = LAYOUTS[layout](draw.normal(batch, length, dim).to(dtype))
    # Every third pole as near to the edge as asked for.
    decay = torch.where(draw.uniform(batch, bins, dim) < 0.3, radius, draw.uniform(dim))
    decay = decay.to(accumulator)
    angle = (3.2 * draw.uniform(batch, bins, dim)).to(accumulator)
    mix = draw.normal(batch, bins, dim, 2).to(accumulator)
    state = draw.normal(batch, dim, 2).to(accumulator)
    # Weights that every dtype here holds exactly.
    by_y = draw.normal(batch, length, dim).to(torch.bfloat16).to(torch.float16).double()
    by_last = draw.normal(batch, dim, 2).to(torch.bfloat16).to(torch.float16).double()
    options = {"offset": offset, "lengths": lengths, "reset": reset}

    def run(backend, x, decay, angle, mix, state):
        inputs = [t.detach().requires_grad_() for t in (x, decay, angle, mix, state)]
        x, decay, angle, mix, state = inputs
        y, last = normal_form_filter(
            x, decay, angle, bin_length, mix=mix, state=state, backend=backend, **options
        )
        weights = by_y.to(y.dtype), by_last.to(last.dtype)
        return [y, last, *torch.autograd.grad((y, last), inputs, weights, materialize_grads=True)]

    given_inputs = (x, decay, angle, mix, state)
    ours = run("cpu", *given_inputs)
    exact = run("reference", *(t.double() for t in given_inputs))

    def modulus(pair):
        return torch.stack([pair.double().norm(dim=-1), torch.zeros(pair.shape[:-1])], -1)

    inputs = [
        t.detach().requires_grad_()
        for t in (
            x.double().abs(),
            decay.double(),
            0 * angle.double(),
            modulus(mix),
            modulus(state),
        )
    ]
    y, last = normal_form_filter(
        *inputs[:3], bin_length, mix=inputs[3], state=inputs[4], backend="torch", **options
    )
    by_x, by_decay, _, by_mix, by_state = torch.autograd.grad(
        (y, last), inputs, (by_y.abs(), modulus(by_last)), materialize_grads=True
    )
    # What is complex has one modulus for its real and imaginary part.
    positive = [
        y, last[..., :1], by_x, by_decay, by_decay * decay.double(), by_mix[..., :1],
        by_state[..., :1],
    ]  # fmt: skip
    n = A_STEP * (length + 4)
    for got, wanted, terms in zip(ours, exact, positive, strict=True):
        allowed = n * UNIT[accumulator] * terms
        if got.dtype != accumulator:  # rounded once more on the way out
            allowed = allowed + rounding_of(got, wanted)
        assert ((got.double() - wanted).abs() <= allowed + 1e-300).all()


def carried(rounding, radius, gain=1.0):
    """What roundings of this size at every step can have become: their sum, weighted by how much
    the poles' impulse response has left of each."""
    radius = radius.expand(rounding.shape[0], 1, -1)
    y, _ = normal_form_filter(rounding, radius, 0 * radius, max(rounding.shape[1], 1))
    return 1.01 * gain * y


@settings(deadline=None, max_examples=40)
@given(
    dtype=st.sampled_from(list(UNIT)),
    layout=st.sampled_from(list(LAYOUTS)),
    batch=st.integers(1, 3),
    length=st.sampled_from([1, 2, 5, 33, 129, 200]),
    dim=st.sampled_from([1, 3, 17, 40]),
    radius=radii.filter(bool),
    angle=st.sampled_from([0.02, 0.3, 1.5, 3.1]),
    bin_length=st.sampled_from([1, 7, 64, 500]),
    per_row=st.booleans(),
    ragged=st.booleans(),
    reset=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_direct_form_and_its_gradients_stay_within_the_bound_of_rounding(
    dtype, layout, batch, length, dim, radius, angle, bin_length, per_row, ragged, reset, seed
):
    """All bins have the same poles; a state that is cleared carries less than one that is not."""
    draw = Draw(seed)
    offset = torch.arange(batch) % bin_length if per_row else (bin_length - 1) // 2
    bins = -(-(int(torch.as_tensor(offset).max()) + length) // bin_length)
    ends = (length - torch.arange(batch) * ragged).clamp(min=0)
    options = {"offset": offset, "lengths": ends if ragged else None, "reset": reset}
    accumulator = torch.promote_types(dtype, torch.float32)
    x = LAYOUTS[layout](draw.normal(batch, length, dim).to(dtype))
    rho = torch.where(draw.uniform(batch, 1, dim) < 0.5, radius, 0.1 + 0.8 * draw.uniform(dim))
    a = torch.stack([-2 * rho * torch.cos(torch.tensor(angle)), rho**2], -1).to(accumulator)
    state = draw.normal(batch, dim, 2).to(accumulator)
    weights = draw.normal(batch, length, dim).to(torch.bfloat16).to(torch.float16)

    def run(backend, *inputs):
        x, a, state = inputs = [t.detach().requires_grad_() for t in inputs]
        a = a.expand(-1, bins, -1, -1)
        y, last = direct_form_filter(x, a, bin_length, state=state, backend=backend, **options)
        gradients = torch.autograd.grad(y, inputs, weights.to(y.dtype), materialize_grads=True)
        return [y, last, *gradients]

    ours = run("cpu", x, a, state)
    y, _, grad_x, *_ = exact = run("reference", x.double(), a.double(), state.double())

    # The poles of the coefficients as they are after rounding.
    rho = a[..., 1].double().sqrt()
    gain = 1 / (1 - (a[..., 0].double() / (2 * rho)) ** 2).sqrt()
    sizes = a.double().abs().unbind(-1)
    unit = UNIT[accumulator]

    def roundings(drive, first, second):
        return 3 * unit * (drive.abs() + sizes[0] * first.abs() + sizes[1] * second.abs())

    y1 = torch.cat([state[:, None, :, 0].double(), y], 1)[:, :-1]
    y2 = torch.cat([state[:, None, :, 1].double(), y1], 1)[:, :-1]
    of_y = carried(roundings(x.double(), y1, y2), rho, gain)
    later = torch.cat([grad_x, torch.zeros(batch, 2, dim)], 1)
    of_grad = roundings(weights.double(), later[:, 1:-1], later[:, 2:])
    of_grad = carried(of_grad.flip(1), rho, gain).flip(1)

    def of_sum(before, of_before):
        terms = of_grad * before.abs() + grad_x.abs() * of_before
        return (terms + (length + 2) * unit * (grad_x * before).abs()).sum(1)

    of_past = torch.cat([torch.zeros(batch, 2, dim), of_y], 1)  # what was given is exact
    of_a = [of_sum(y1, of_past[:, 1:-1]), of_sum(y2, of_past[:, :-2])]
    rows = torch.arange(batch)
    of_last = [of_past[rows, ends + 1], of_past[rows, ends]]
    # What comes back to y[-1] is -a1 g[0] - a2 g[1], to y[-2] -a2 g[0], with g the gradient of x.
    first, second = (
        torch.cat([of_grad + 3 * unit * grad_x.abs(), torch.zeros(batch, 1, dim)], 1)[:, t]
        for t in (0, 1)
    )
    a1, a2 = (size[:, 0] for size in sizes)
    of_state = [a1 * first + a2 * second, a2 * first]
    of_pairs = (torch.stack(pair, -1) for pair in (of_last, of_a, of_state))
    of_last, of_a, of_state = of_pairs
    bounds = [of_y, of_last, of_grad, of_a[:, None], of_state]
    for got, wanted, allowed in zip(ours, exact, bounds, strict=True):
        if got.dtype != accumulator:
            allowed = allowed + rounding_of(got, wanted)
        assert ((got.double() - wanted).abs() <= allowed).all()


def test_over_a_million_steps_the_error_grows_no_further_than_the_memory():
    length, unit = 1 << 20, UNIT[torch.float32]
    decay = torch.tensor([0.9, 0.999, 0.9999, 0.99999])[None, None]
    angle = torch.tensor([0.02, 1.0, 2.0, 0.3])[None, None]
    x = Draw().normal(1, length, 4).float()

    def moduli(x):
        parts = [
            normal_form_filter(x, decay.double(), angle.double(), length, mix=mix.double())[0]
            for mix in (torch.eye(2)[:1].expand(4, 2), torch.eye(2)[1:].expand(4, 2))
        ]
        return parts[0], (parts[0] ** 2 + parts[1] ** 2).sqrt()

    leaf = x.clone().requires_grad_()
    y, _ = normal_form_filter(leaf, decay, angle, length)
    weights = x.flip(1)
    (grad,) = torch.autograd.grad(y, leaf, weights)
    exact, size = moduli(x.double())
    allowed = carried(A_STEP * unit * (size + x.abs()), decay.double())
    error = (y.detach() - exact).abs()
    assert (error <= allowed).all()
    # Time reversed, the gradient is the same filter.
    assert ((grad.flip(1) - exact).abs() <= allowed).all()
    # The bound is that of 1 / (1 - decay) steps, however many there are.
    steps = 1 / (1 - decay[0, 0].double())
    assert (allowed.amax((0, 1)) <= 1.03 * A_STEP * unit * steps * (size + x.abs()).amax(1)).all()

    a = torch.stack([-2 * decay * angle.cos(), decay**2], -1)
    y, _ = direct_form_filter(x, a, length)
    exact, _ = direct_form_filter(x.double(), a.double(), length)
    rho = a[..., 1].double().sqrt()
    gain = 1 / (1 - (a[..., 0].double() / (2 * rho)) ** 2).sqrt()
    past = torch.nn.functional.pad(exact.abs(), (0, 0, 2, 0))
    sizes = x.abs() + a[..., 0].abs() * past[:, 1:-1] + a[..., 1].abs() * past[:, :-2]
    assert ((y - exact).abs() <= carried(3 * unit * sizes, rho, gain)).all()


@settings(deadline=None, max_examples=40)
@given(
    dtype=st.sampled_from(list(UNIT)),
    layout=st.sampled_from(list(LAYOUTS)),
    batch=st.integers(1, 2),
    length=st.sampled_from([1, 2, 31, 33, 64, 65, 200]),
    heads=st.integers(1, 3),
    key_dim=st.sampled_from([1, 3, 16]),
    value_dim=st.sampled_from([1, 5, 70]),
    radius=radii,
    ragged=st.booleans(),
    seed=st.integers(0, 9),
)
def test_filtered_products_and_their_gradients_stay_within_the_bound_of_rounding(
    dtype, layout, batch, length, heads, key_dim, value_dim, radius, ragged, seed
):
    draw = Draw(seed)
    accumulator = torch.promote_types(dtype, torch.float32)
    lengths = (length - torch.arange(batch)).clamp(min=0) if ragged else None
    q, k = (draw.normal(batch, length, heads, key_dim) for _ in range(2))
    v = draw.normal(batch, length, heads, value_dim)
    q, k, v = (LAYOUTS[layout](part.to(dtype)) for part in (q, k, v))
    near = draw.uniform(batch, length, heads) < 0.5
    decay = torch.where(near, max(radius, 1e-30), draw.uniform(heads)).to(accumulator)
    step = draw.uniform(batch, length, heads).to(accumulator)
    state = draw.normal(batch, heads, 1, key_dim, value_dim).to(accumulator)
    by_y = draw.normal(*v.shape).to(torch.bfloat16).to(torch.float16).double()
    by_last = draw.normal(*state.shape).to(torch.bfloat16).to(torch.float16).double()

    def run(backend, inputs, by_y, by_last):
        *sequences, step, state = leaves = [t.detach().requires_grad_() for t in inputs]
        y, last = associative_filter(
            *sequences, step=step, state=state, lengths=lengths, backend=backend
        )
        weights = by_y.to(y.dtype), by_last.to(last.dtype)
        return [y, last, *torch.autograd.grad((y, last), leaves, weights, materialize_grads=True)]

    inputs = (q, k, v, decay, step, state)
    ours = run("cpu", inputs, by_y, by_last)
    exact = run("reference", [t.double() for t in inputs], by_y, by_last)
    positive = run("reference", [t.double().abs() for t in inputs], by_y.abs(), by_last.abs())
    # A product and an addition a step; sums over keys, values and the two ways through time.
    n = A_STEP * (length + key_dim + value_dim + 4)
    for got, wanted, terms in zip(ours, exact, positive, strict=True):
        allowed = n * UNIT[accumulator] * terms
        if got.dtype != accumulator:
            allowed = allowed + rounding_of(got, wanted)
        assert ((got.double() - wanted).abs() <= allowed + 1e-300).all()


def test_products_over_many_steps_are_off_by_no_more_than_over_few():
    """Errors do not grow with the length: each fades as what it is an error of."""

    def errors(length):
        draw = Draw()
        inputs = [draw.normal(1, length, 1, 4).float() for _ in range(3)]
        inputs.append(torch.full((1, length, 1), 0.999))
        found = []
        for dtype in (torch.float32, torch.float64):
            leaves = [t.to(dtype).requires_grad_() for t in inputs]
            y, _ = associative_filter(*leaves, backend="cpu")
            found.append([y, *torch.autograd.grad(y, leaves, Draw(1).normal(*y.shape).to(dtype))])
        return [(one.double() - two).norm() / two.norm() for one, two in zip(*found, strict=True)]

    for few, many in zip(errors(2**12), errors(2**19), strict=True):
        assert few < 40 * UNIT[torch.float32]
        assert many < 2 * few


@settings(deadline=None, max_examples=40)
@given(
    dtype=st.sampled_from(list(UNIT)),
    layout=st.sampled_from(list(LAYOUTS)),
    length=st.sampled_from([1, 2, 50, 333]),
    taps=st.sampled_from([1, 2, 60, 700]),
    ragged=st.booleans(),
    with_state=st.booleans(),
    seed=st.integers(0, 9),
)
def test_a_long_convolution_and_its_gradients_are_exact_to_rounding_of_their_norms(
    dtype, layout, length, taps, ragged, with_state, seed
):
    """What a transform does to a number depends on all of them: an error is a share of the norm."""
    draw = Draw(seed)
    lengths = torch.tensor([length, length // 2]) if ragged else None
    x = LAYOUTS[layout](draw.normal(2, length, 3).to(dtype))
    kernel, state = draw.normal(taps, 3).to(dtype), draw.normal(2, taps - 1, 3).to(dtype)
    by_y = draw.normal(2, length, 3).to(torch.bfloat16).to(torch.float16).double()

    def run(backend, *inputs):
        x, kernel, *state = leaves = [t.detach().requires_grad_() for t in inputs]
        y, _ = long_conv(
            x, kernel, lengths=lengths, state=state[0] if state else None, backend=backend
        )
        gradients = torch.autograd.grad(y, leaves, by_y.to(y.dtype), materialize_grads=True)
        return [y, *gradients]

    inputs = (x, kernel, state) if with_state else (x, kernel)
    ours = run("torch", *inputs)
    exact = run("reference", *(t.double() for t in inputs))
    unit = UNIT[torch.promote_types(dtype, torch.float32)]
    sizes = [t.double().norm() for t in (x, kernel, state, by_y)]
    size = (sizes[0] + sizes[2]) * sizes[1] + sizes[3] * (sizes[0] + sizes[1] + sizes[2])
    for got, wanted in zip(ours, exact, strict=True):
        allowed = 20 * unit * size
        if got.dtype != torch.promote_types(dtype, torch.float32):
            allowed = allowed + rounding_of(got, wanted)
        assert ((got.double() - wanted).abs() <= allowed).all()
