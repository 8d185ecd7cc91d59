"""Facts about Focus as published, beyond the contract."""

from __future__ import annotations

import cmath

import pytest
import torch
from torch.nn import functional

from polewise import PublishedFocusConfig
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
    torch.manual_seed(0)
    config = PublishedFocusConfig(
        **SMALL, hypernetwork="none", max_decay=0.9, shared_query_key=shared_query_key
    )
    mixer = config.build().double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        x = 3 * torch.randn(1, 21, 8, dtype=torch.float64)
        y, _ = Block(mixer, 8, 0)(x)
        torch.testing.assert_close(y[0], _by_loops(mixer, x[0]), rtol=1e-9, atol=1e-11)


def _by_loops(mixer, given):
    x = mixer.norm.weight * given / (given.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    shares = mixer.filters.base[:, 0].sigmoid()
    if mixer.config.shared_query_key:
        query = mixer.to_query_key(x) * mixer.query_scale[0] + mixer.query_shift
    else:
        query = mixer.to_query(x)
    states, keys, values, outputs = [0j] * 8, [], [], []
    for t, now in enumerate(x):
        filtered = torch.zeros_like(now)
        for channel in range(8):
            decay, angle = 0.9 * shares[channel, 0].item(), cmath.pi * shares[channel, 1].item()
            pole = decay * cmath.exp(1j * angle)
            states[channel] = pole * states[channel] + now[channel].item()
            c0, c1 = mixer.filters.mix[0, 0, channel].tolist()
            gain = (1 - decay**2) ** 0.5
            filtered[channel] = gain * (c0 * states[channel].real + c1 * states[channel].imag)
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
