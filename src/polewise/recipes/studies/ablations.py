"""The study of Focus itself: one part or choice less at a time."""

from __future__ import annotations

from typing import Any

from polewise.recipes.studies.plan import in_steps, study_of
from polewise.recipes.studies.study import Comparison, Size, Study
from polewise.recipes.studies.systems import Mixers, equal_systems
from polewise.tasks import RecallTask, TextTask


def ablations(size: Size) -> Study:
    """What does each part of Focus bring, and each of its choices?

    Every system is Focus with one thing changed, or two that its name says, at equal parameters.
    """
    parts: dict[str, dict[str, Any]] = {
        "focus": {},
        "fixed-poles": {"hypernetwork": "none"},
        "first-order": {"turning": False},
        "first-order-fixed": {"turning": False, "hypernetwork": "none"},
        "embedder-long-conv": {"hypernetwork": "long_conv", "taps": 64},
        "embedder-shared": {"hypernetwork": "shared_recurrent"},
        "direct-form": {"realisation": "direct"},
        "direct-form-reset": {"realisation": "direct", "reset": True},
        "reset": {"reset": True},
        "no-memory": {"associative_heads": 0},
        "no-convolution": {"conv_width": 0},
        "memory-turning": {"associative_turning": True},
        "no-attention": {"chunk_length": 1},
        "filter-alone": {"chunk_length": 1, "associative_heads": 0},
        "sliding": {"sliding": True},
        "separate-query-key": {"shared_query_key": False},
        "gates-as-printed": {"published_gates": True},
        "no-skip": {"skip": False},
        "short-memories": {"max_decay": 0.9},
        **{f"filters-{n}": {"filters": n} for n in (2, 4)},
        **{f"bins-of-{n}": {"bin_length": n} for n in (8, 128)},
        **{f"chunks-of-{n}": {"chunk_length": n} for n in (16, 128)},
        **{f"windows-{n}": {"windows": n} for n in (1, 16)},
    }
    changes: Mixers = {name: ("focus", options) for name, options in parts.items()}
    cpu = size == "cpu"
    text = TextTask(source="dickens", length=256, batch_size=16, eval_bytes=50_000)
    recall = RecallTask(length=256, batch_size=16, align_to=128)
    systems = equal_systems(text.spec, changes, dim=64 if cpu else 256, num_layers=2 if cpu else 6)
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
