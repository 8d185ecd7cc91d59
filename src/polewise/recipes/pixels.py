"""Images read pixel by pixel."""

from __future__ import annotations

from polewise.tasks import ImagesTask
from polewise.training import ModelOptions, Run, TrainingOptions


def digits() -> Run:
    """Return scikit-learn's 8 x 8 digits as sequences of 64: no files, about a minute."""
    return Run(
        task=ImagesTask(source="digits", batch_size=32),
        model=ModelOptions(),
        training=TrainingOptions(max_steps=1000, learning_rate=3e-3, evaluate_every=200),
    )
