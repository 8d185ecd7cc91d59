"""Associative recall."""

from __future__ import annotations

from polewise.tasks import RecallTask
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
