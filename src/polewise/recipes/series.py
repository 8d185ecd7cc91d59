"""Series of measured values: audio, several channels at once, and what comes next."""

from __future__ import annotations

from polewise.tasks import ForecastTask, SeriesTask, SpokenDigitsTask
from polewise.training import ModelOptions, Run, TrainingOptions


def spoken_digits(minutes: float = 15.0) -> Run:
    """Return spoken digits as raw audio, 8 samples a step, for a budget in minutes on two cores."""
    return Run(
        task=SpokenDigitsTask(samples_per_step=8),
        model=ModelOptions(),
        training=TrainingOptions(
            max_seconds=60 * minutes,
            learning_rate=3e-3,
            evaluate_every=100,
            checkpoint_every=500,
        ),
    )


def japanese_vowels() -> Run:
    """Return the UEA archive's vowels of nine speakers: 7 to 29 steps, about a minute."""
    return Run(
        task=SeriesTask(),
        model=ModelOptions(),
        training=TrainingOptions(max_steps=300, learning_rate=1e-3, evaluate_every=25),
    )


def etth1(horizon: int = 96) -> Run:
    """Return the forecast of `horizon` hours of ETTh1 from 336, evaluated at every 8th window."""
    return Run(
        task=ForecastTask(horizon=horizon, subtract_last=True, eval_stride=8),
        model=ModelOptions(),
        training=TrainingOptions(max_steps=1000, learning_rate=1e-3, evaluate_every=100),
    )
