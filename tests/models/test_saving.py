"""Facts about what is saved and read back."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import torch
from tests.models.small_models import FOCUS, language_model, tokens

from polewise import FocusConfig, PolewiseConfig, PolewiseForCausalLM

transformers = pytest.importorskip("transformers")


def test_a_saved_model_names_its_mixer_and_every_option_of_it(tmp_path):
    PolewiseConfig().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["mixer"] == "focus"
    assert {*written["mixer_options"], "dim"} == {each.name for each in fields(FocusConfig)}


@pytest.mark.parametrize("tied", [True, False])
def test_saving_and_loading_changes_nothing(tied, tmp_path):
    model, ids = language_model(tied=tied), tokens(2, 20)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, PolewiseForCausalLM)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.config.mixer_options == model.config.mixer_options
    base = transformers.AutoModel.from_pretrained(tmp_path)
    assert torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half(ids).logits.dtype == torch.bfloat16


def test_options_given_beside_a_file_change_those_alone(tmp_path):
    language_model(key_dim=16, sliding=True).save_pretrained(tmp_path)
    loaded = PolewiseConfig.from_pretrained(tmp_path, mixer_options={"chunk_length": 16})
    options = loaded.mixer_options
    assert (options["key_dim"], options["sliding"], options["chunk_length"]) == (16, True, 16)
    with pytest.raises(ValueError, match="Did you mean 'chunk_length'"):
        PolewiseConfig.from_pretrained(tmp_path, mixer_options={"chunk_lenght": 16})
    other = PolewiseConfig.from_pretrained(tmp_path, mixer="attention", num_labels=3)
    assert (other.mixer_options["base"], other.num_labels) == (10000.0, 3)
    assert other.intermediate_size == 16  # its own, not the saved one's


def test_the_tied_output_layer_is_stored_once(tmp_path):
    from safetensors import safe_open

    language_model(tied=True).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        names = set(stored.keys())
    assert "lm_head.weight" not in names
    assert "model.embed_tokens.weight" in names


def test_a_model_that_is_saved_again_promises_no_code_of_the_folder_it_came_from(tmp_path):
    config = PolewiseConfig(hidden_size=8, mixer_options=FOCUS, auto_map={"AutoModel": "a.B"})
    config.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


def test_a_configuration_can_be_read_back_with_the_notes_of_others(tmp_path):
    config = PolewiseConfig(hidden_size=8, mixer_options=FOCUS)
    assert PolewiseConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config.note = "left by a tool"
    config.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="PolewiseConfig has no 'note'"):
        assert PolewiseConfig.from_pretrained(tmp_path).note == "left by a tool"


@pytest.mark.parametrize("mixer", ["focus", "mamba2"])
def test_what_was_loaded_whole_is_not_started_again(mixer, tmp_path, monkeypatch):
    """Nor could it be where it is quantised: its numbers lie in another shape."""
    model, started = language_model(mixer), []
    model.save_pretrained(tmp_path)
    kind = type(model.model.backbone.blocks[0].mixer)
    monkeypatch.setattr(kind, "reset_parameters", lambda mixer: started.append(mixer))
    language_model(mixer)
    assert len(started) == 4  # each of two layers as it is built, and when the model is whole
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(started) == 6
