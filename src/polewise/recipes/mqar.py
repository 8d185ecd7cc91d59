"""Multi-query associative recall."""

from __future__ import annotations

from polewise.tasks import MqarTask
from polewise.training import ModelOptions, Run, TrainingOptions


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
