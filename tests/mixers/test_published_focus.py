"""Facts about Focus as published, beyond the contract."""

from __future__ import annotations

import cmath

import pytest
import torch
from torch.nn import functional

from polewise import PublishedFocusConfig
from polewise.filters import unconstrained_to_coefficients
from polewise.models import Block

SMALL = {"dim": 8, "chunk_length": 8, "bin_length": 8, "windows": 2, "taps": 5}


def test_the_published_formula_is_refused_in_causal_use_and_says_why():
    with pytest.raises(ValueError, match=r"depends on later inputs.*leak=True"):
        PublishedFocusConfig.paper(dim=8, bin_length=8, chunk_length=8, causal=True)


def test_the_published_formula_leaks_when_asked_for_by_name():
    config = PublishedFocusConfig.paper(
        dim=8, bin_length=8, chunk_length=8, taps=16, causal=True, leak=True
    )
    mixer = config.build().double()
    x = torch.randn(1, 16, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: mixer(x)[0].sum(-1)[0], x)
    assert jacobian[:, 0].abs().sum(-1).triu(1).max() > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "dim must be a multiple of heads"),
        ({"value_dim": 0}, "value_dim must be an integer of at least 1"),
        ({"realisation": "norml"}, "Did you mean 'normal'"),
        ({"turning": False, "realisation": "direct"}, "turning must be True"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        PublishedFocusConfig(**({"dim": 8} | options))


def test_features_of_the_model_are_asked_for():
    mixer = PublishedFocusConfig(**SMALL, hypernetwork="shared_recurrent").build()
    with pytest.raises(ValueError, match="shared must be the features"):
        mixer(torch.randn(1, 5, 8))


@pytest.mark.parametrize("shared_query_key", [False, True])
def test_the_mixer_is_its_equations_step_by_step(shared_query_key):
    """In a block: Eq. 14 with the input as it came, whose norm the rest of the mixer reads."""
    _assert_is_its_equations(hypernetwork="none", shared_query_key=shared_query_key)


@pytest.mark.parametrize("realisation", ["normal", "direct", "square", "circular"])
@pytest.mark.parametrize("hypernetwork", ["long_conv", "shared_long_conv"])
def test_the_published_hypernetwork_is_its_equations_step_by_step(realisation, hypernetwork):
    """Eq. 1-8, with the filter as published (circular) and the three that are causal."""
    _assert_is_its_equations(
        hypernetwork=hypernetwork, realisation=realisation, leak=realisation == "circular"
    )


def _assert_is_its_equations(**options):
    torch.manual_seed(0)
    config = PublishedFocusConfig(**SMALL, max_decay=0.9, **options)
    mixer, shared = config.build().double(), config.build_shared()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        x = 3 * torch.randn(1, 21, 8, dtype=torch.float64)
        if shared is not None:
            # Of what stands before the first layer, which here is the layer's own input.
            seen, bins = x, shared.double()
            features = bins(seen)[0]
        else:
            seen, bins, features = mixer.norm(x), mixer.features, None
        y, _ = Block(mixer, 8, 0)(x, shared=features)
        poles = mixer.filters.base[:, 0].expand(3, -1, -1)
        if bins is not None:
            poles = poles + _moves_by_loops(bins, mixer.filters.to_poles, seen[0])
        torch.testing.assert_close(y[0], _by_loops(mixer, x[0], poles), rtol=1e-9, atol=1e-11)


def _moves_by_loops(bins, network, x):
    """Eq. 1-3: a convolution without its small taps, the maxima of both halves of the bin before,
    a network of one hidden layer. Nothing lies before the first bin."""
    taps = bins.embedder.kernel
    taps = taps.sign() * (taps.abs() - 0.003).clamp(min=0)
    embedded = [
        sum(taps[i] * x[t - i] for i in range(min(t + 1, len(taps)))) + bins.embedder.skip * x[t]
        for t in range(len(x))
    ]
    moves = [torch.zeros(8, 2, dtype=x.dtype)]
    for start in range(0, len(x) - 8, 8):
        halves = [torch.stack(embedded[at : at + 4]).amax(0) for at in (start, start + 4)]
        hidden = (torch.stack(halves, -1) @ network.up.weight.T + network.up.bias).sigmoid()
        moves.append(hidden @ network.down.weight.T)
    return torch.stack(moves)


def _filtered_by_loops(mixer, x, numbers):
    """Eq. 4-8 from the unbounded numbers of every bin of 8, a channel at a time."""
    filtered = torch.zeros_like(x)
    for channel in range(8):
        c0, c1 = mixer.filters.mix[0, 0, channel].tolist()
        signal, last = x[:, channel].tolist(), [0.0, 0.0]
        state = 0j
        for t, now in enumerate(signal):
            n0, n1 = numbers[t // 8, channel].sigmoid().tolist()
            if mixer.realisation == "normal":
                decay = 0.9 * n0
                state = decay * cmath.exp(1j * cmath.pi * n1) * state + now
                gain = (1 - decay**2) ** 0.5
                filtered[t, channel] = gain * (c0 * state.real + c1 * state.imag)
            elif mixer.realisation == "circular":
                around = (signal + 8 * [0.0])[t // 8 * 8 : t // 8 * 8 + 8]
                h = [1.0, -n0]
                while len(h) < 500:
                    h.append(-n0 * h[-1] - n1 * h[-2])
                filtered[t, channel] = c0 * sum(h[n] * around[(t + n) % 8] for n in range(500))
            else:
                a1, a2 = 0.9 * n0, 0.81 * n1
                if mixer.realisation == "direct":
                    pair = unconstrained_to_coefficients(numbers[t // 8, channel], max_decay=0.9)
                    a1, a2 = pair.tolist()
                last = [now - a1 * last[0] - a2 * last[1], last[0]]
                filtered[t, channel] = c0 * last[0]
    return filtered


def _by_loops(mixer, given, poles):
    x = mixer.norm.weight * given / (given.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    if mixer.config.shared_query_key:
        query = mixer.to_query_key(x) * mixer.query_scale[0] + mixer.query_shift
    else:
        query = mixer.to_query(x)
    keys, values, outputs = [], [], []
    for t, filtered in enumerate(_filtered_by_loops(mixer, x, poles)):
        reset, candidate, value, *key, update = mixer.from_filtered(filtered).split(8)
        if mixer.config.shared_query_key:
            key = [mixer.to_query_key(filtered) * mixer.query_scale[1]]
        if t % 8 == 0:
            keys, values = [], []
        keys += key
        values.append(value)
        logits = torch.stack(
            [query[t] @ k / 8**0.5 + mixer.position_bias()[0, len(keys) - 1 - j]
             for j, k in enumerate(keys)]
        )  # fmt: skip
        attended = logits.softmax(0) @ torch.stack(values)
        gated = functional.silu(reset) * attended
        candidate = functional.silu(candidate + mixer.from_attention(gated))
        share = update.sigmoid()
        outputs.append(share * candidate + (1 - share) * given[t])
    return torch.stack(outputs)
