"""The study of Focus itself: one part or choice less at a time, and what filters alone can do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polewise.recipes.studies.parameter_matching import count_parameters, match_parameters
from polewise.recipes.studies.plan import in_steps, study_of
from polewise.recipes.studies.study import Comparison, Size, Study, System
from polewise.recipes.studies.systems import WITHOUT_MEMORY
from polewise.tasks import ImagesTask, RecallTask, TaskSpec, TextTask
from polewise.training import ModelOptions, TrainingOptions

Variants = dict[str, dict[str, Any]]
"""Name of a system to what it changes."""

ALONE: Variants = {
    name.removeprefix("focus-"): options for name, (_, options) in WITHOUT_MEMORY.items()
}
"""Filters chosen for every bin, fixed ones, and the convolution with its gate."""

PARTS: Variants = {
    "focus": {},
    "memory-everywhere": {"memory_every": 1},
    "chosen-filters": {"hypernetwork": "recurrent"},
    "no-memory-turning": {"memory_turning": False},
    "own-keys": {"shared_keys": False},
    "keys-of-32": {"key_dim": 32},
    "no-convolution": {"conv_width": 1},
    "sliding-64": {"chunk_length": 64, "sliding": True},
    **{f"chunks-of-{n}": {"chunk_length": n} for n in (16, 64)},
    "filters-beside-memory": {"filters": 1},
    **{f"{part}-alone": options for part, options in ALONE.items()},
    "attention-alone": {"chunk_length": 64, "memory": False},
    "filters-and-attention": ALONE["filters"] | {"chunk_length": 64},
}
"""The default, and what it is with a part more or less. The convolution alone, with its gate, is
the control: a task that it learns as well does not tell the other parts apart."""

ORDERS: Variants = {
    "second-order-adaptive": {},
    "second-order-fixed": {"hypernetwork": "none"},
    "first-order-adaptive": {"turning": False},
    "first-order-fixed": {"turning": False, "hypernetwork": "none"},
}
"""Of filters alone: poles that ring or only fade, chosen for every bin or learned once for all."""

CHOICES: Variants = {
    "direct": {"realisation": "direct"},
    "direct-reset": {"realisation": "direct", "reset": True},
    "square": {"realisation": "square"},
    "reset": {"reset": True},
    "long-conv": {"hypernetwork": "long_conv", "taps": 64},
    "short-memories": {"max_decay": 0.9},
    **{f"filters-{n}": {"filters": n} for n in (2, 4, 8)},
    **{f"bins-of-{n}": {"bin_length": n} for n in (8, 128)},
    **{f"windows-{n}": {"windows": n} for n in (1, 16)},
}
"""Of filters alone: the paper's own list of what it did not explore."""


def ablations(size: Size) -> Study:
    """What does each part of Focus bring, and each choice of its filters?

    `text` and `recall`: the default with one part changed, or two that its name says, in as many
    layers. `order-text` and `order-pixels`: filters alone, of first or second order, fixed or
    adaptive, at equal parameters. `choices`: filters alone with one choice changed; as they are
    they take part in `text`.
    """
    cpu = size == "cpu"
    dim, num_layers = (64, 4) if cpu else (256, 12)
    text = TextTask(source="dickens", length=256, batch_size=16, eval_bytes=50_000)
    recall = RecallTask(length=256, batch_size=16, align_to=128)
    pixels = ImagesTask(
        source="mnist", num_eval=1000 if cpu else None, batch_size=10 if cpu else 50
    )

    def comparison(
        name: str,
        task: TextTask | RecallTask | ImagesTask,
        variants: Variants,
        training: TrainingOptions,
        seconds: float,
        *,
        num_seeds: int = 1 if cpu else 3,
        equal: bool = False,
    ) -> Comparison:
        models = {
            each: ModelOptions(
                mixer="focus",
                mixer_options=options,
                hidden_size=dim,
                num_layers=num_layers,
                intermediate_size=dim if equal else 0,
            )
            for each, options in variants.items()
        }
        return Comparison(
            name=name,
            task=task,
            systems=_equally_large(task.spec, models) if equal else _systems(models),
            training=training,
            learning_rates=(2e-3, 6e-3),
            num_seeds=num_seeds,
            expected_seconds=seconds if cpu else None,
        )

    orders = {name: ALONE["filters"] | options for name, options in ORDERS.items()}
    choices = {name: ALONE["filters"] | options for name, options in CHOICES.items()}
    steps, few = in_steps(500 if cpu else 10_000), 2 if cpu else 3
    return study_of(
        ablations,
        size,
        comparison("text", text, PARTS, steps, 150, num_seeds=few),
        comparison("recall", recall, PARTS, replace(steps, stop_at=1.0), 90),
        comparison("order-text", text, orders, steps, 150, num_seeds=few, equal=True),
        comparison("order-pixels", pixels, orders, steps, 380, num_seeds=few, equal=True),
        comparison("choices", text, choices, steps, 170),
    )


def _systems(models: dict[str, ModelOptions]) -> tuple[System, ...]:
    return tuple(System(name=name, model=model) for name, model in models.items())


def _equally_large(spec: TaskSpec, models: dict[str, ModelOptions]) -> tuple[System, ...]:
    """All as large as the largest, by the width of their feed-forwards."""
    most = max(count_parameters(spec, model) for model in models.values())
    return _systems({name: match_parameters(spec, each, most) for name, each in models.items()})
