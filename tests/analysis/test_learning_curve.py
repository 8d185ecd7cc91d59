"""Facts about learning curves."""

import pytest

from polewise.analysis import learning_curve
from polewise.analysis.figures import draw_learning_curve
from polewise.tasks import RecallTask
from polewise.training import ModelOptions, Run, RunFolder, TrainingOptions

RECORDS = [
    {"kind": "train", "step": 1, "seconds": 0.5, "loss": 3.0},
    {"kind": "eval", "step": 1, "seconds": 0.5, "accuracy": 0.25, "loss": 2.5},
    {"kind": "train", "step": 2, "seconds": 1.5, "loss": 2.0},
]


def test_a_curve_holds_the_lines_of_its_kind_in_order():
    curve = learning_curve(RECORDS, "train", "loss")
    assert curve.steps.tolist() == [1, 2]
    assert curve.seconds.tolist() == [0.5, 1.5]
    assert curve.values.tolist() == [3.0, 2.0]


def test_an_unknown_measure_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"eval \(accuracy, loss\); got 'bits'"):
        learning_curve(RECORDS, "eval", "bits")


def test_a_run_without_a_finite_figure_is_drawn_and_says_so(tmp_path):
    run = Run(
        task=RecallTask(length=8, vocab_size=8, num_eval=4, batch_size=4),
        model=ModelOptions(hidden_size=8, num_layers=1),
        training=TrainingOptions(max_steps=1),
    )
    folder = RunFolder.create(tmp_path / "run", run)
    drawn = draw_learning_curve(folder)
    assert drawn.is_file()
    caption = drawn.with_suffix(".txt").read_text()
    assert "No held-out value was finite." in " ".join(caption.split())
