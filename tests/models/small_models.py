"""Small models in every form, for tests of what models do."""

from __future__ import annotations

import torch

from polewise import PolewiseConfig, PolewiseForCausalLM

FOCUS = {
    "chunk_length": 8,
    "bin_length": 8,
    "windows": 2,
    "filters": 1,
    "hypernetwork": "recurrent",
}
SMALL = {"published_focus": FOCUS, "focus": FOCUS | {"memory_every": 1}}
FORMS = [
    ("focus", {}),
    ("focus", {"sliding": True, "heads": 2}),
    ("focus", {"filters": 2, "memory_turning": False, "shared_keys": False}),
    ("focus", {"realisation": "direct", "reset": True}),
    ("focus", {"hypernetwork": "none", "memory": False}),
    ("published_focus", {"hypernetwork": "shared_recurrent"}),
    ("focus", {"hypernetwork": "long_conv", "taps": 12}),
    ("focus", {"filters": 0, "chunk_length": 0}),
    ("focus", {"filters": 0, "chunk_length": 0, "hypernetwork": "none", "memory_every": 2}),
    ("attention", {"heads": 2}),
]
"""Mixers and options that differ in what their state holds."""


def language_model(mixer="focus", *, tied=False, **options):
    """Two layers; tied, the last token alone would decide most of the next."""
    torch.manual_seed(0)
    config = PolewiseConfig(
        mixer=mixer, mixer_options=SMALL.get(mixer, {}) | options, hidden_size=8,
        num_hidden_layers=2, intermediate_size=12, vocab_size=30, pad_token_id=0,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return PolewiseForCausalLM(config).eval()


def tokens(*shape, seed=0):
    """None of them is the padding token, 0."""
    return torch.randint(1, 30, shape, generator=torch.Generator().manual_seed(seed))


def written(model, ids, **options):
    """The new tokens that transformers' generate writes."""
    options = {"max_new_tokens": 12, "do_sample": False} | options
    mask = options.pop("attention_mask", torch.ones_like(ids))
    return model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]
