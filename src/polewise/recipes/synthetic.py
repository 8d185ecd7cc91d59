"""Problems that a generator poses, at sizes for a CPU."""

from __future__ import annotations

from polewise.tasks import InductionTask, ListOpsTask, SelectiveCopyTask
from polewise.training import ModelOptions, Run, TrainingOptions


def selective_copy() -> Run:
    """Return selective copying of 4 tokens among 60 of noise: width 64, 2 layers.

    The published size is `SelectiveCopyTask()`, 16 tokens in 4096, for 400,000 steps.
    """
    return Run(
        task=SelectiveCopyTask(length=64, num_tokens=4),
        model=ModelOptions(),
        training=_training(),
    )


def induction() -> Run:
    """Return induction heads trained at length 64 and tested up to 1024: width 64, 2 layers.

    The published size is `InductionTask()`, trained at length 256, for 200,000 steps.
    """
    return Run(
        task=InductionTask(length=64, test_lengths="64,128,256,1024", batch_size=128),
        model=ModelOptions(),
        training=_training(),
    )


def listops() -> Run:
    """Return ListOps at a size for a CPU: at most 5 arguments, 33 to 127 tokens.

    The Long Range Arena's is `ListOpsTask()`.
    """
    return Run(
        task=ListOpsTask(min_length=32, max_length=128, max_arguments=5, num_eval=500),
        model=ModelOptions(),
        training=_training(),
    )


def _training() -> TrainingOptions:
    return TrainingOptions(
        max_steps=2000,
        learning_rate=3e-3,
        evaluate_every=250,
        checkpoint_every=1000,
        stop_at=0.999,
    )
