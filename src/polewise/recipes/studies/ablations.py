"""The study of Focus itself: one part or choice less at a time."""

from __future__ import annotations

from typing import Any

from polewise.recipes.studies.plan import in_steps, study_of
from polewise.recipes.studies.study import Comparison, Size, Study, System
from polewise.tasks import RecallTask, TextTask
from polewise.training import ModelOptions


def ablations(size: Size) -> Study:
    """What does each part of Focus bring, and each of its choices?

    Every system is Focus with one thing changed, or two that its name says, in as many layers.
    """
    filters: dict[str, dict[str, Any]] = {
        "filters": {},
        "filters-fixed": {"hypernetwork": "none"},
        "filters-first-order": {"turning": False},
        "filters-first-order-fixed": {"turning": False, "hypernetwork": "none"},
        "filters-long-conv": {"hypernetwork": "long_conv", "taps": 64},
        "filters-direct": {"realisation": "direct"},
        "filters-direct-reset": {"realisation": "direct", "reset": True},
        "filters-reset": {"reset": True},
        "filters-short-memories": {"max_decay": 0.9},
        "filters-alone": {"memory": False},
        "filters-and-attention": {"chunk_length": 64},
        **{f"filters-{n}": {"filters": n} for n in (2, 4)},
        **{f"filters-bins-of-{n}": {"bin_length": n} for n in (8, 128)},
        **{f"filters-windows-{n}": {"windows": n} for n in (1, 16)},
    }
    parts: dict[str, dict[str, Any]] = {
        "focus": {},
        "no-turning": {"memory_turning": False},
        "own-keys": {"shared_keys": False},
        "no-convolution": {"conv_width": 1},
        "sliding": {"chunk_length": 64, "sliding": True},
        "attention-alone": {"chunk_length": 64, "memory": False},
        **{f"chunks-of-{n}": {"chunk_length": n} for n in (16, 64, 128)},
        **{name: {"filters": 1} | options for name, options in filters.items()},
    }
    cpu = size == "cpu"
    text = TextTask(source="dickens", length=256, batch_size=16, eval_bytes=50_000)
    recall = RecallTask(length=256, batch_size=16, align_to=128)
    dim, num_layers = (64, 4) if cpu else (256, 12)
    systems = tuple(
        System(
            name=name,
            model=ModelOptions(
                mixer="focus",
                mixer_options=options,
                hidden_size=dim,
                num_layers=num_layers,
                intermediate_size=0,
            ),
        )
        for name, options in parts.items()
    )
    return study_of(
        ablations,
        size,
        Comparison(
            name="text",
            task=text,
            systems=systems,
            training=in_steps(500 if cpu else 10_000),
            learning_rates=(2e-3, 6e-3),
            num_seeds=2 if cpu else 3,
            expected_seconds=110 if cpu else None,
        ),
        Comparison(
            name="recall",
            task=recall,
            systems=systems,
            training=in_steps(500 if cpu else 5000, stop_at=1.0),
            learning_rates=(2e-3, 6e-3),
            num_seeds=2 if cpu else 3,
            expected_seconds=140 if cpu else None,
        ),
    )
