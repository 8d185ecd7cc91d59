"""Every mixer in the table, in its default and in its other forms, keeps the contract."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn

from polewise import MIXERS, check_mixer
from polewise.mixers import PublishedFocusConfig
from polewise.mixers.checks import mixer_checks
from polewise.models import Backbone, BackboneConfig

SMALL = {
    "focus": {
        "chunk_length": 8,
        "bin_length": 8,
        "windows": 2,
        "filters": 1,
        "hypernetwork": "recurrent",
    },
    "published_focus": {"chunk_length": 8, "bin_length": 8, "windows": 2, "taps": 5},
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
        {"sliding": True, "filters": 2, "heads": 2, "memory_turning": False, "shared_keys": False},
        {"realisation": "direct", "reset": True, "memory": False},
        {"hypernetwork": "none", "value_dim": 6, "conv_width": 1, "turning": False},
        {"hypernetwork": "none", "reset": True, "realisation": "direct", "causal": False},
        {"hypernetwork": "long_conv", "taps": 5},
        {"filters": 0, "chunk_length": 0, "key_dim": 5},
        {"memory": False, "chunk_length": 0},
        {"causal": False},
        # Keys that turn, beside those of a head that copies.
        {"filters": 0, "chunk_length": 0, "hypernetwork": "none", "heads": 2},
        {"heads": 4, "shared_keys": False},
    ],
    "published_focus": [
        {},
        {"sliding": True, "filters": 2, "heads": 2, "hypernetwork": "recurrent"},
        {"realisation": "direct", "reset": True, "shared_query_key": True},
        {"hypernetwork": "none", "value_dim": 16, "turning": False},
        {"causal": False},
        {"causal": False, "realisation": "circular"},
    ],
    "attention": [{}, {"causal": False}, {"positions": 300, "conv_width": 3}],
    "chunk_attention": [{}, {"causal": False}],
    "mega": [{}, {"causal": False}],
    "mamba2": [{}, {"heads": 2}],
    "mamba3": [{}, {"turning": 0, "heads": 2}, {"turning": 4}],
    "gated_linear_attention": [
        {},
        {"decay": "head", "conv_width": 3, "heads": 2},
        {"decay": "constant"},
    ],
}


def built(name, options):
    torch.manual_seed(0)
    return MIXERS[name](dim=8, **SMALL.get(name, {}) | options).build()


CASES = [
    pytest.param(name, options, check, id=f"{name}-{number}-{check}")
    for name in MIXERS
    for number, options in enumerate(FORMS.get(name, [{}]))
    for check, _ in mixer_checks(built(name, options))
]


@pytest.mark.parametrize(("name", "options", "check"), CASES)
def test_mixer_keeps_the_contract(name, options, check):
    dict(mixer_checks(built(name, options)))[check]()


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_names_an_input_or_an_option_that_does_not_fit(name):
    with pytest.raises(
        ValueError, match=r"x must have shape \(batch, length, 8\); got \(2, 5, 7\)"
    ):
        built(name, {})(torch.zeros(2, 5, 7))
    with pytest.raises(ValueError, match=r"dim must be of type int; got '8'"):
        MIXERS[name](dim="8")
    for lengths, error in (
        (torch.tensor([5]), ValueError),
        (torch.tensor([[5], [3]]), ValueError),
        (torch.tensor([5.0, 3.0]), TypeError),
        ([5, 3], TypeError),
    ):
        with pytest.raises(error, match="lengths must"):
            built(name, {})(torch.zeros(2, 5, 8), lengths=lengths)


@pytest.mark.parametrize("name", MIXERS)
def test_a_state_of_other_rows_is_named(name):
    mixer = built(name, {})
    _, state = mixer(torch.zeros(3, 5, 8))
    assert state is not None
    with pytest.raises(ValueError, match="state must have as many rows as x, 2; got 3"):
        mixer(torch.zeros(2, 5, 8), state)


@pytest.mark.parametrize("hypernetwork", ["recurrent", "shared_recurrent", "shared_long_conv"])
def test_a_whole_backbone_keeps_the_contract(hypernetwork):
    mixer = PublishedFocusConfig(dim=8, **SMALL["published_focus"], hypernetwork=hypernetwork)
    torch.manual_seed(0)
    check_mixer(Backbone(BackboneConfig(mixer=mixer, num_layers=2, intermediate_size=12)), dim=8)


def test_a_backbone_whose_layers_differ_keeps_the_contract():
    torch.manual_seed(0)
    config = BackboneConfig(mixer=MIXERS["focus"](dim=8), num_layers=3, intermediate_size=0)
    check_mixer(Backbone(config), dim=8)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, length, 8\); got \(5, 8\)"):
        Backbone(config)(torch.zeros(5, 8))


@pytest.mark.parametrize("name", ["mamba2", "mamba3", "gated_linear_attention"])
def test_heads_that_follow_from_the_width_compile(name):
    torch.manual_seed(0)
    config = MIXERS[name](dim=512, state_dim=4) if "mamba" in name else MIXERS[name](dim=512)
    assert config.num_heads > 1
    dict(mixer_checks(config.build(), length=9))["compile"]()


class FaultyState(NamedTuple):
    last: torch.Tensor


class FaultyConfig(NamedTuple):
    fault: str
    dim: int = 8

    def build(self):
        return Faulty(self.fault)


class Faulty(nn.Module):
    """An exponential average with one planted fault."""

    causal = True

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.gain = nn.Parameter(torch.ones(8))
        self.config = FaultyConfig(fault)
        self.drawn = torch.rand(())
        self.dropout = nn.Dropout(0.5) if fault == "none" else nn.Identity()  # no fault at all
        if fault == "learns nothing":
            self.unused = nn.Parameter(torch.ones(8))

    def forward(self, x, state=None, lengths=None):
        if self.fault == "looks ahead":
            x = x + 0.1 * torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)
        if self.fault == "hides nan":
            x = x.nan_to_num()
        if self.fault == "mixes rows":
            x = x + 0.1 * x.sum(0)
        if self.fault == "fails on nothing" and not x.shape[1]:
            raise AssertionError("no steps")
        if self.fault == "asks for float64" and x.dtype != torch.float64:
            x = 2 * x
        if self.fault == "is too small in bfloat16" and x.dtype == torch.bfloat16:
            x = 0 * x
        if self.fault == "breaks the graph":
            torch._dynamo.graph_break()
        last = x.new_zeros(x.shape[0], x.shape[2]) if state is None else state.last
        forgets = self.fault == "forgets its state beside lengths" and lengths is not None
        if self.fault == "drops its state" or forgets:
            last = torch.zeros_like(last)
        if self.fault == "lets no gradient through its state":
            last = last.detach()
        if self.fault == "writes into its state":
            last.data.add_(1)
        outputs = []
        for t in range(x.shape[1]):
            real = torch.ones(x.shape[0], dtype=torch.bool) if lengths is None else t < lengths
            if self.fault == "ignores lengths":
                real = torch.ones_like(real)
            last = torch.where(real[:, None], 0.5 * last + x[:, t], last)
            outputs.append(torch.where(real[:, None], last * self.gain, 0))
        y = self.dropout(torch.stack(outputs, 1) if outputs else torch.zeros_like(x))
        if self.fault == "forgets a number":
            y = y * self.drawn
        if self.fault == "is too small in bfloat16":
            y = 1e-3 * y
        if self.fault == "widens":
            y = torch.cat([y, y], -1)
        return y, (last,) if self.fault == "hands on a tuple" else FaultyState(last)


def test_a_sound_mixer_of_ones_own_passes():
    check_mixer(Faulty("none"), dim=8, length=11)


def test_what_a_check_cannot_do_without_or_does_not_survive_is_named():
    with pytest.raises(ValueError, match=r"dim must be given for a mixer without config\.dim"):
        check_mixer(nn.Identity())
    with pytest.raises(AssertionError, match=r"Faulty fails 'compile': \w+: "):
        check_mixer(Faulty("breaks the graph"), length=11)


def test_a_limit_that_is_declared_is_not_checked():
    limited = Faulty("breaks the graph")
    limited.limits = {"compile": "a fault, planted"}
    check_mixer(limited, length=11)


def test_a_form_that_declares_that_it_cannot_stream_passes():
    check_mixer(
        PublishedFocusConfig.paper(
            dim=8, bin_length=8, chunk_length=8, causal=True, leak=True
        ).build(),
        length=20,
    )


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("looks ahead", "causality"),
        ("drops its state", "segments"),
        ("ignores lengths", "padding"),
        ("hides nan", "nan"),
        ("widens", "shape"),
        ("fails on nothing", "any length"),
        ("learns nothing", "gradients"),
        ("mixes rows", "rows"),
        ("forgets a number", "save and load"),
        ("breaks the graph", "compile"),
        ("asks for float64", "precision"),
        ("is too small in bfloat16", "precision"),
        ("hands on a tuple", "state"),
        ("forgets its state beside lengths", "padding"),
        ("lets no gradient through its state", "segments"),
        ("writes into its state", "segments"),
    ],
)
def test_planted_faults_are_caught(fault, check):
    # A graph that breaks is torch's to refuse.
    refused = Exception if fault == "breaks the graph" else AssertionError
    with pytest.raises(refused):
        dict(mixer_checks(Faulty(fault), length=11))[check]()


def test_a_mixer_of_both_ways_that_looks_back_alone_is_caught():
    mixer = Faulty("none")
    mixer.causal = False
    with pytest.raises(AssertionError, match="no output depends on a later input"):
        dict(mixer_checks(mixer, length=11))["both ways"]()


@pytest.mark.parametrize("name", MIXERS)
def test_only_convolutions_by_transform_are_excused_from_keeping_nan_to_later_outputs(name):
    by_transform = ("hyena", "long_conv", "published_focus")
    assert ("nan" in dict(mixer_checks(built(name, {})))) == (name not in by_transform)
