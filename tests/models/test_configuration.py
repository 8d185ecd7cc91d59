"""Facts about the configuration: published sizes, defaults, what it refuses."""

from __future__ import annotations

import pytest
import torch
from tests.models.small_models import FOCUS, tokens

from polewise import (
    PolewiseConfig,
    PolewiseForCausalLM,
    PolewiseForForecasting,
    PolewiseForSequenceClassification,
)
from polewise.models import PRESETS

pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("preset", "adaptive", "static"),
    [
        ("published-focus-22m", 22_223_232, 21_173_248),
        ("published-focus-22m-noffn", 22_206_848, 21_156_864),
    ],
)
def test_presets_have_the_published_sizes(preset, adaptive, static):
    def count(**options):
        keys = PRESETS[preset]
        keys = keys | {"mixer_options": keys["mixer_options"] | options}
        with torch.device("meta"):
            model = PolewiseForCausalLM(PolewiseConfig(**keys))
        return sum(parameter.numel() for parameter in model.parameters())

    assert count() == adaptive
    assert count(hypernetwork="none") == static


@pytest.mark.parametrize(
    ("mixer", "width"), [("focus", 0), ("mamba2", 0), ("attention", 16), ("published_focus", 16)]
)
def test_a_feed_forward_is_left_out_beside_a_mixer_that_contains_one(mixer, width, tmp_path):
    config = PolewiseConfig(mixer=mixer, hidden_size=8, num_hidden_layers=1)
    assert config.intermediate_size == width
    assert (PolewiseForCausalLM(config).model.backbone.blocks[0].feed_forward is None) == (
        not width
    )
    config.save_pretrained(tmp_path)
    assert PolewiseConfig.from_pretrained(tmp_path).intermediate_size == width
    assert PolewiseConfig(mixer=mixer, hidden_size=8, intermediate_size=3).intermediate_size == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hiden_size": 8}, "Did you mean 'hidden_size'"),
        ({"mixer": "fokus"}, "Did you mean 'focus'"),
        ({"mixer_options": {"bin_lenght": 8}}, "Did you mean 'bin_length'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer of at least 1"),
        ({"dropout": 1.5}, "dropout must lie in"),
        ({"num_labels": 0}, "num_labels must be an integer of at least 1"),
        (
            {"mixer": "attention", "mixer_options": {"heads": None, "key_dim": 8}},
            "must name options of attention .*got 'key_dim'",
        ),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be of type bool; got 'false'"),
        ({"mixer_options": [1]}, "mixer_options must be of type dict"),
        ({"eos_token_id": "a"}, "eos_token_id must be of type int"),
        ({"problem_type": "regresion"}, "Did you mean 'regression'"),
    ],
)
def test_a_mistyped_key_is_refused_with_the_nearest_name(keys, message):
    with pytest.raises(ValueError, match=message):
        PolewiseConfig(**keys)


def test_a_language_model_must_be_causal():
    with pytest.raises(ValueError, match="must have causal=True"):
        PolewiseForCausalLM(PolewiseConfig(hidden_size=8, mixer_options={"causal": False}))


@pytest.mark.parametrize(
    "make", [PolewiseForCausalLM, PolewiseForSequenceClassification, PolewiseForForecasting]
)
def test_a_configuration_may_ask_for_tuples(make):
    numbers = {"num_input_features": 2, "prediction_length": 1}
    options = numbers if make is PolewiseForForecasting else {"vocab_size": 30}
    config = PolewiseConfig(hidden_size=8, num_hidden_layers=1, mixer_options=FOCUS, **options)
    model = make(config).eval()
    given = {"input_ids": tokens(1, 5)}
    if options == numbers:
        given = {"input_values": torch.randn(1, 5, 2)}
    expected = model(**given).logits
    config.return_dict = False
    got = model(**given)
    assert isinstance(got, tuple)
    assert torch.equal(got[0], expected)
