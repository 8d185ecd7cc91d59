"""Facts about models of equal size."""

from dataclasses import replace

import pytest

from polewise.mixers import MIXERS
from polewise.recipes.studies.parameter_matching import count_parameters, deepest, match_parameters
from polewise.tasks import TaskSpec
from polewise.training import ModelOptions, build_model

SPEC = TaskSpec(kind="language", length=64, vocab_size=30)


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_meets_a_wanted_size_within_two_percent(mixer):
    options = ModelOptions(mixer=mixer, hidden_size=64, num_layers=2)
    matched = match_parameters(SPEC, options, 320_000)  # the kernels of long_conv take 262,144
    assert count_parameters(SPEC, matched) == pytest.approx(320_000, rel=0.02)
    assert replace(matched, intermediate_size=None) == options


def test_a_size_is_counted_without_building_and_is_that_of_the_model_built():
    options = ModelOptions(mixer="attention", hidden_size=8, num_layers=1, intermediate_size=5)
    built = build_model(SPEC, options)
    assert count_parameters(SPEC, options) == sum(p.numel() for p in built.parameters())


def test_a_size_that_the_mixer_alone_exceeds_is_refused():
    options = ModelOptions(mixer="focus", hidden_size=64, num_layers=2)
    with pytest.raises(ValueError, match=r"parameters must be at least .* for focus .* got 1,000"):
        match_parameters(SPEC, options, 1000)


@pytest.mark.parametrize("mixer", ["focus", "mamba2"])
def test_a_mixer_that_contains_a_feed_forward_gets_all_the_layers_that_fit(mixer):
    found = deepest(SPEC, ModelOptions(mixer=mixer, hidden_size=32, intermediate_size=99), 100_000)
    assert found.intermediate_size == 0
    assert count_parameters(SPEC, found) <= 104_000
    assert count_parameters(SPEC, replace(found, num_layers=found.num_layers + 1)) > 104_000


def test_a_size_that_one_layer_exceeds_is_refused():
    with pytest.raises(ValueError, match=r"parameters must be at least .* one layer of focus"):
        deepest(SPEC, ModelOptions(mixer="focus", hidden_size=64), 1000)
