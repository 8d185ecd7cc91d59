"""A run so small that it trains in a moment."""

import pytest

from polewise.tasks import RecallTask
from polewise.training import ModelOptions, Run, TrainingOptions


def _small_run(task=None, **training):
    options = {"max_steps": 6, "log_every": 1, "evaluate_every": 3, "checkpoint_every": 2}
    return Run(
        task=task or RecallTask(length=6, vocab_size=6, num_eval=8, batch_size=4),
        model=ModelOptions(mixer="attention", hidden_size=8, num_layers=1),
        training=TrainingOptions(**(options | training)),
    )


@pytest.fixture
def small_run():
    """A function of the task and of training options that returns a run."""
    return _small_run
