"""Associative recall."""

from __future__ import annotations

from dataclasses import replace

from polewise.tasks import RecallTask
from polewise.training import ModelOptions, Run, TrainingOptions


def focus_recall(length: int = 128) -> Run:
    """Return causal Focus on associative recall at the paper's size: width 64, 2 layers.

    Fresh sequences at every step, until the held-out accuracy is 100 %. The published runs train on
    a fixed set of 2000 sequences: `focus_recall_2000`.
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


def focus_recall_2000(length: int = 128) -> Run:
    """Return `focus_recall` on the paper's fixed set of 2000 sequences."""
    task = RecallTask(length=length, num_train=2000)
    return replace(focus_recall(length), task=task)
