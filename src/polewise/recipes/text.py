"""Byte-level language models."""

from __future__ import annotations

from dataclasses import replace

from polewise.tasks import TextTask
from polewise.training import ModelOptions, Run, TrainingOptions


def demo_text(source: str = "embedded", seconds: float = 170.0) -> Run:
    """Return the text run of the demo: a small Focus on a small text, in minutes on two cores."""
    return Run(
        task=TextTask(source=source, length=256, batch_size=16, eval_bytes=50_000),
        model=ModelOptions(
            mixer="focus", mixer_options={"chunk_length": 32}, hidden_size=128, num_layers=4
        ),
        training=TrainingOptions(
            max_seconds=seconds,
            learning_rate=3e-3,
            evaluate_every=200,
            checkpoint_every=1000,
        ),
    )


def dickens(minutes: float = 15.0, mixer: str = "focus") -> Run:
    """Return a run on ten megabytes of novels, for a budget in minutes on two cores.

    The same sizes and schedule for every mixer, so that two systems can be compared by one word.
    """
    run = demo_text("dickens", seconds=60 * minutes)
    options = {"chunk_length": 32} if mixer == "focus" else {}
    return replace(run, model=replace(run.model, mixer=mixer, mixer_options=options))
