"""Every mixer in the table, in its default and in its other forms, keeps the contract."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn

from polewise import MIXERS, check_mixer
from polewise.mixers import FocusConfig
from polewise.mixers.checks import mixer_checks
from polewise.models import Backbone, BackboneConfig

SMALL = {
    "focus": {"chunk_length": 8, "bin_length": 8, "windows": 2},
    "chunk_attention": {"chunk_length": 8},
    "sliding_attention": {"chunk_length": 8},
    "mega": {"chunk_length": 8, "memories": 3},
    "long_conv": {"taps": 20},
    "hyena": {"taps": 20, "hidden": 8},
    "s4d": {"state_dim": 4},
    "mamba2": {"state_dim": 4},
    "mamba3": {"state_dim": 8},
}

FORMS = {
    "focus": [
        {},
        {"sliding": True, "filters": 2, "heads": 2, "associative_turning": True},
        {"realisation": "direct", "reset": True, "associative_heads": 0},
        {"hypernetwork": "none", "value_dim": 16, "conv_width": 0, "turning": False},
        {"published_gates": True, "skip": False},
        {"hypernetwork": "long_conv", "taps": 5, "shared_query_key": False},
        {"causal": False},
        {"causal": False, "realisation": "circular", "hypernetwork": "long_conv"},
    ],
    "associative": [{}, {"turning": True}, {"causal": False}],
    "attention": [{}, {"causal": False}],
    "chunk_attention": [{}, {"causal": False}],
    "mega": [{}, {"causal": False}],
    "mamba3": [{}, {"turning": 0}, {"turning": 4}],
    "gated_linear_attention": [{}, {"decay": "head", "conv_width": 3}, {"decay": "constant"}],
}


def built(name, options):
    torch.manual_seed(0)
    return MIXERS[name](dim=8, **SMALL.get(name, {}), **options).build()


CASES = [
    pytest.param(name, options, check, id=f"{name}-{number}-{check}")
    for name in MIXERS
    for number, options in enumerate(FORMS.get(name, [{}]))
    for check, _ in mixer_checks(built(name, options))
]


@pytest.mark.parametrize(("name", "options", "check"), CASES)
def test_mixer_keeps_the_contract(name, options, check):
    dict(mixer_checks(built(name, options)))[check]()


@pytest.mark.parametrize("hypernetwork", ["recurrent", "shared_recurrent", "shared_long_conv"])
def test_a_whole_backbone_keeps_the_contract(hypernetwork):
    mixer = FocusConfig(dim=8, **SMALL["focus"], hypernetwork=hypernetwork, taps=5)
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(mixer=mixer, num_layers=2, hidden_dim=12))
    backbone.uses_fft = "long_conv" in hypernetwork
    check_mixer(backbone, dim=8)


class FaultyState(NamedTuple):
    last: torch.Tensor


class Faulty(nn.Module):
    """An exponential average with one planted fault."""

    causal = True

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x, state=None, lengths=None):
        if self.fault == "looks ahead":
            x = x + 0.1 * torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)
        if self.fault == "hides nan":
            x = x.nan_to_num()
        last = x.new_zeros(x.shape[0], x.shape[2]) if state is None else state.last
        if self.fault == "drops its state":
            last = torch.zeros_like(last)
        outputs = []
        for t in range(x.shape[1]):
            real = torch.ones(x.shape[0], dtype=torch.bool) if lengths is None else t < lengths
            if self.fault == "ignores lengths":
                real = torch.ones_like(real)
            last = torch.where(real[:, None], 0.5 * last + x[:, t], last)
            outputs.append(torch.where(real[:, None], last * self.gain, 0))
        y = torch.stack(outputs, 1) if outputs else torch.zeros_like(x)
        return y, FaultyState(last)


def test_a_sound_mixer_of_ones_own_passes():
    check_mixer(Faulty("none"), dim=8, length=11)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("looks ahead", "causality"),
        ("drops its state", "segments"),
        ("ignores lengths", "padding"),
        ("hides nan", "nan"),
    ],
)
def test_planted_faults_are_caught(fault, check):
    with pytest.raises(AssertionError):
        dict(mixer_checks(Faulty(fault), dim=8, length=11))[check]()
