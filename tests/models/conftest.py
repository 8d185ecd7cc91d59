"""Small models: one that streams, and one of bytes for everything that runs the real thing."""

from __future__ import annotations

import pytest
import torch
from tests.models.small_models import language_model

from polewise import PolewiseConfig, PolewiseForCausalLM

FOCUS = {"chunk_length": 8, "bin_length": 8, "windows": 2, "heads": 2}


@pytest.fixture(scope="module")
def model():
    """Do not change it: a module shares it."""
    return language_model()


@pytest.fixture
def byte_model():
    torch.manual_seed(0)
    config = PolewiseConfig(
        mixer_options=FOCUS, hidden_size=16, num_hidden_layers=2, intermediate_size=16,
        pad_token_id=255, bos_token_id=254, eos_token_id=253,
    )  # fmt: skip
    return PolewiseForCausalLM(config).eval()


@pytest.fixture
def model_folder(byte_model, tmp_path):
    from polewise.models.tokenizer import byte_tokenizer

    byte_model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"
