"""Facts about Mamba-3: a complex state, and the rule that weighs the token before."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from polewise.mixers import Mamba3Config
from polewise.mixers.mamba3 import Mamba3State


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def built(**options):
    torch.manual_seed(0)
    mixer = Mamba3Config(**options).build().double()
    # Far from the start, where all biases are 1 and steps are short.
    with torch.no_grad():
        for seed, parameter in enumerate(mixer.parameters()):
            parameter.add_(0.5 * drawn(*parameter.shape, seed=seed))
        mixer.step.bias.add_(3)
    return mixer


def complex_numbers(x, pairs):
    """The first channels are real parts, the next imaginary ones, the others real numbers."""
    turning = torch.complex(x[..., :pairs], x[..., pairs : 2 * pairs])
    return torch.cat([turning, x[..., 2 * pairs :].to(turning.dtype)], -1)


def by_definition(mixer, x):
    """The published equations with complex numbers, token by token:

    h[t] = p h[t-1] + (1 - l) step p B[t-1] u[t-1]^T + l step B[t] u[t]^T,  p = exp(step (A + j w))
    y[t] = Re(conj(C[t])^T h[t]) + D u[t]
    """
    heads, pairs = mixer.config.num_heads, mixer.config.pairs
    z, u = mixer.to_gate(x), mixer.to_values(x)
    b, c, d, a, lam, w = mixer.to_parts(x).split(mixer.parts, -1)
    b = mixer.key_norm(b)[:, :, None] + mixer.key_bias
    c = mixer.query_norm(c)[:, :, None] + mixer.query_bias
    b, c = complex_numbers(b, pairs), complex_numbers(c, pairs)
    u = u.unflatten(-1, (heads, -1))
    step = functional.softplus(d + mixer.step.bias)
    w = functional.pad(torch.pi * w.tanh(), (0, b.shape[-1] - pairs))
    exponent = torch.complex(
        -functional.softplus(a)[..., None].expand_as(b).real, w[:, :, None].expand_as(b).real
    )
    pole = (step[..., None] * exponent).exp()
    lam = lam.sigmoid()
    h = torch.zeros(len(x), heads, b.shape[-1], u.shape[-1], dtype=b.dtype)
    before, outputs = torch.zeros_like(h), []
    for t in range(x.shape[1]):
        product = b[:, t, :, :, None] * u[:, t, :, None, :]
        h = pole[:, t, :, :, None] * (h + ((1 - lam) * step)[:, t, :, None, None] * before)
        h = h + (lam * step)[:, t, :, None, None] * product
        before = product
        y = torch.einsum("bhn,bhnp->bhp", c[:, t].conj(), h).real + mixer.skip[:, None] * u[:, t]
        outputs.append(y.flatten(1) * functional.silu(z[:, t]))
    return mixer.to_output(torch.stack(outputs, 1)), h, before


@pytest.mark.parametrize("turning", [None, 0, 4])
def test_the_mixer_is_the_published_recursion_in_complex_numbers(turning):
    mixer, x = built(dim=6, heads=3, state_dim=8, turning=turning), drawn(2, 75, 6)
    wanted, _, _ = by_definition(mixer, x)
    torch.testing.assert_close(mixer(x)[0], wanted, rtol=1e-9, atol=1e-9)


def test_the_state_is_that_of_the_complex_recursion():
    mixer, x = built(dim=6, heads=3, state_dim=8), drawn(2, 40, 6)
    _, state = mixer(x)
    _, h, before = by_definition(mixer, x)
    ours = complex_numbers(state.products[:, :, 0].mT, mixer.config.pairs).mT
    torch.testing.assert_close(ours, h, rtol=1e-9, atol=1e-9)
    last = (
        complex_numbers(state.key[:, 0], mixer.config.pairs)[..., None] * state.value[:, 0, :, None]
    )
    torch.testing.assert_close(last, before, rtol=1e-9, atol=1e-9)


def test_angles_that_add_up_to_many_turns_stay_exact_in_float32():
    mixer, x = built(dim=6, heads=3, state_dim=8), 3 * drawn(1, 4000, 6)
    turns = by_angle(mixer, x).sum(1).abs().max() / (2 * torch.pi)
    assert turns > 100
    exact, _ = mixer(x)
    y, _ = mixer.float()(x.float())
    assert (y - exact).abs().max() < 2e-4 * exact.abs().max()


def by_angle(mixer, x):
    *_, d, _, _, w = mixer.to_parts(x).split(mixer.parts, -1)
    return torch.pi * mixer.step(d)[..., None] * w.tanh()[:, :, None]


def test_a_pole_that_turns_half_way_round_tells_odd_from_even():
    """Parity, which no sum of positive decays can hold: every 1 turns the state by half."""
    mixer = Mamba3Config(dim=2, heads=1, state_dim=2, turning=1, expand=1).build().double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.zero_()
        z, u = mixer.to_gate.weight, mixer.to_values.weight
        _, _, _, a, lam, w = mixer.to_parts.weight.split(mixer.parts)
        z[0, 1] = u[0, 1] = 1  # x = (bit, 1 at the first token): one thing is stored there
        z[0, 0] = 1
        a[0, 0] = a[0, 1] = -50  # nothing is forgotten
        lam[0, 1] = 50  # the first token enters at once
        w[0, 0] = 50  # a bit turns by pi
        mixer.step.bias.fill_(torch.tensor(1.0).expm1().log())  # steps of 1
        mixer.key_bias[0, 0] = mixer.query_bias[0, 0] = 1
        mixer.to_output.weight[0, 0] = 1
    bits = (drawn(1, 60, seed=3) > 0).double()
    bits[:, 0] = 0
    first = torch.zeros_like(bits)
    first[:, 0] = 1
    y, _ = mixer(torch.stack([bits, first], -1))
    parity = bits.cumsum(1) % 2
    ones = bits[0] > 0
    torch.testing.assert_close(y[0, ones, 0].sign(), 1 - 2 * parity[0, ones])


def test_a_state_is_a_value():
    mixer, x = built(dim=6, heads=3, state_dim=8), drawn(2, 9, 6)
    _, state = mixer(x)
    kept = Mamba3State(*(part.clone() for part in state))
    mixer(x, state)
    assert all(torch.equal(a, b) for a, b in zip(state, kept, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 9, "heads": 4}, r"expand \* dim must be a multiple of heads; got 18 and 4"),
        ({"dim": 8, "state_dim": 8, "turning": 5}, r"turning must be at most state_dim / 2 = 4"),
        ({"dim": 8, "turning": -1}, "turning must be an integer of at least 0"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        Mamba3Config(**options)
