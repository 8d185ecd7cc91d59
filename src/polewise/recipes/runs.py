"""Complete runs, one for each task, at sizes for a CPU: what `polewise train TASK` begins with."""

from __future__ import annotations

from polewise.tasks import (
    ForecastTask,
    ImagesTask,
    InductionTask,
    ListOpsTask,
    MqarTask,
    RecallTask,
    SelectiveCopyTask,
    SeriesTask,
    SpokenDigitsTask,
    TextTask,
)
from polewise.training import ModelOptions, Run, TrainingOptions


def focus_recall(length: int = 128) -> Run:
    """Return causal Focus on associative recall at the paper's size: width 64, 2 layers.

    Fresh sequences at every step, until the held-out accuracy is 100 %. The published runs train on
    a fixed set of 2000 sequences (`num_train=2000` of the task).
    """
    return Run(
        task=RecallTask(length=length),
        model=ModelOptions(),
        training=TrainingOptions(
            max_steps=5000,
            learning_rate=1e-2,
            evaluate_every=100,
            checkpoint_every=1000,
            stop_at=1.0,
        ),
    )


def focus_mqar() -> Run:
    """Return causal Focus on multi-query recall at a size for a CPU: vocabulary 512, width 64,
    2 layers without feed-forward parts, as in the published comparison."""
    return Run(
        task=MqarTask(vocab_size=512),
        model=ModelOptions(intermediate_size=0),
        training=TrainingOptions(
            max_steps=5000,
            learning_rate=3e-3,
            evaluate_every=250,
            checkpoint_every=1000,
            stop_at=0.999,
        ),
    )


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


def digits() -> Run:
    """Return scikit-learn's 8 x 8 digits as sequences of 64: no files, about a minute."""
    return Run(
        task=ImagesTask(source="digits", batch_size=32),
        model=ModelOptions(),
        training=TrainingOptions(max_steps=1000, learning_rate=3e-3, evaluate_every=200),
    )


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


def selective_copy() -> Run:
    """Return selective copying of 4 tokens among 60 of noise: width 64, 2 layers.

    The published size is `SelectiveCopyTask()`, 16 tokens in 4096, for 400,000 steps.
    """
    return Run(
        task=SelectiveCopyTask(length=64, num_tokens=4),
        model=ModelOptions(),
        training=_until_it_is_solved(),
    )


def induction() -> Run:
    """Return induction heads trained at length 64 and tested up to 1024: width 64, 2 layers.

    The published size is `InductionTask()`, trained at length 256, for 200,000 steps.
    """
    return Run(
        task=InductionTask(length=64, test_lengths="64,128,256,1024", batch_size=128),
        model=ModelOptions(),
        training=_until_it_is_solved(),
    )


def listops() -> Run:
    """Return ListOps at a size for a CPU: at most 5 arguments, 33 to 127 tokens.

    The Long Range Arena's is `ListOpsTask()`.
    """
    return Run(
        task=ListOpsTask(min_length=32, max_length=128, max_arguments=5, num_eval=500),
        model=ModelOptions(),
        training=_until_it_is_solved(),
    )


def _until_it_is_solved() -> TrainingOptions:
    return TrainingOptions(
        max_steps=2000,
        learning_rate=3e-3,
        evaluate_every=250,
        checkpoint_every=1000,
        stop_at=0.999,
    )
