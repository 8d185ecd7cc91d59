"""Images read pixel by pixel."""

from __future__ import annotations

from polewise.tasks import ImagesTask
from polewise.training import ModelOptions, Run, TrainingOptions


def smnist(minutes: float = 15.0, mixer: str = "focus", *, num_train: int | None = None) -> Run:
    """Return sequential MNIST (length 784) for a budget in minutes on two cores.

    `num_train` takes the first so many training images; None takes all 55,000.
    """
    return Run(
        task=ImagesTask(source="mnist", num_train=num_train, num_eval=1000, batch_size=32),
        model=ModelOptions(mixer=mixer),
        training=TrainingOptions(
            max_seconds=60 * minutes,
            learning_rate=3e-3,
            evaluate_every=200,
            checkpoint_every=1000,
        ),
    )


def digits() -> Run:
    """Return scikit-learn's 8 x 8 digits as sequences of 64: no files, about a minute."""
    return Run(
        task=ImagesTask(source="digits", batch_size=32),
        model=ModelOptions(),
        training=TrainingOptions(max_steps=1000, learning_rate=3e-3, evaluate_every=200),
    )
