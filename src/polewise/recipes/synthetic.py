"""Problems that a generator poses, at sizes for a CPU."""

from __future__ import annotations

from polewise.tasks import InductionTask, ListOpsTask, SelectiveCopyTask
from polewise.training import ModelOptions, Run, TrainingOptions


def selective_copy() -> Run:
    """Return selective copying of 16 tokens among 256: width 64, 2 layers.

    The published length is 4096, in 400,000 steps of 64 sequences.
    """
    return Run(
        task=SelectiveCopyTask(length=256, batch_size=32),
        model=_model(),
        training=_training(),
    )


def induction() -> Run:
    """Return induction heads at the published size: trained at 256, width 64, 2 layers."""
    return Run(
        task=InductionTask(batch_size=32),
        model=_model(),
        training=_training(),
    )


def listops() -> Run:
    """Return ListOps at a size for a CPU: at most 5 arguments, 33 to 127 tokens.

    The Long Range Arena's is `ListOpsTask()`.
    """
    return Run(
        task=ListOpsTask(min_length=32, max_length=128, max_arguments=5, num_eval=500),
        model=_model(),
        training=_training(),
    )


def _model() -> ModelOptions:
    return ModelOptions(
        mixer="focus", mixer_options={"chunk_length": 32}, hidden_size=64, num_layers=2
    )


def _training() -> TrainingOptions:
    return TrainingOptions(
        max_steps=5000,
        learning_rate=3e-3,
        evaluate_every=250,
        checkpoint_every=1000,
        stop_at=0.999,
    )
