"""A study small enough for a test: two systems, two rates, two seeds, a few steps each."""

import pytest

from polewise.recipes.studies import Comparison, Study, System
from polewise.tasks import RecallTask
from polewise.training import ModelOptions, TrainingOptions


def make_study(max_steps=4, rates=(1e-3, 1e-2), names=("attention", "mega"), **options):
    systems = tuple(
        System(name=name, model=ModelOptions(mixer=name, hidden_size=8, num_layers=1))
        for name in names
    )
    comparison = Comparison(
        name="short",
        task=RecallTask(length=8, vocab_size=8, num_eval=20, batch_size=4),
        systems=systems,
        training=TrainingOptions(
            max_steps=max_steps, evaluate_every=2, checkpoint_every=2, log_every=1
        ),
        learning_rates=rates,
        **options,
    )
    return Study(name="tiny", size="cpu", question="Does it run?", comparisons=(comparison,))


@pytest.fixture
def tiny_study():
    return make_study
