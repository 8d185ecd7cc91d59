"""Byte-level language models."""

from __future__ import annotations

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
