"""Whole models under a name, as keyword arguments of `PolewiseConfig`."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # The paper's language model, in the block layout its text spells: square gates, one
    # shared projection for queries and keys, a feed-forward of 1024. One long kernel for
    # all layers chooses the poles. 22.2M parameters (21.1M with hypernetwork="none").
    "published-focus-22m": {
        "mixer": "published_focus",
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "intermediate_size": 1024,
        "mixer_options": {
            "hypernetwork": "shared_long_conv",
            "taps": 2048,
            "windows": 4,
            "shared_query_key": True,
        },
    },
    # The other layout that gives the same count: values of 1024 as in MEGA, no feed-forward.
    "published-focus-22m-noffn": {
        "mixer": "published_focus",
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "intermediate_size": 0,
        "mixer_options": {
            "hypernetwork": "shared_long_conv",
            "taps": 2048,
            "windows": 4,
            "value_dim": 1024,
        },
    },
}
