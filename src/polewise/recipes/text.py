"""Byte-level language models."""

from __future__ import annotations

from dataclasses import replace

from polewise.mixers import MIXERS
from polewise.options import require_choice
from polewise.tasks import TextTask
from polewise.training import ModelOptions, Run, TrainingOptions


def demo_text(source: str = "embedded", seconds: float = 170.0) -> Run:
    """Return the text run of the demo: a small Focus on a small text, in minutes on two cores."""
    return Run(
        task=TextTask(source=source, length=256, batch_size=16, eval_bytes=50_000),
        model=ModelOptions(mixer="focus", hidden_size=128, num_layers=8),
        training=TrainingOptions(
            max_seconds=seconds,
            learning_rate=3e-3,
            evaluate_every=200,
            checkpoint_every=1000,
        ),
    )


def dickens(minutes: float = 15.0, mixer: str = "focus") -> Run:
    """Return a run on ten megabytes of novels, for a budget in minutes on two cores.

    The same schedule for every mixer; half of the layers where each has a feed-forward beside it.
    """
    require_choice("mixer", mixer, MIXERS)
    run = demo_text("dickens", seconds=60 * minutes)
    alone = getattr(MIXERS[mixer], "contains_feed_forward", False)
    return replace(
        run, model=ModelOptions(mixer=mixer, hidden_size=128, num_layers=8 if alone else 4)
    )
