"""The benchmark of training steps tells what each system of a comparison takes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="studies need the extra train")

from polewise.recipes.studies import Comparison, equal_systems
from polewise.recipes.studies.plan import in_steps
from polewise.tasks import RecallTask


def test_every_system_is_timed_in_every_round_and_its_tensors_are_counted(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import steps

    task = RecallTask(length=32, batch_size=2)
    chosen = {name: (name, {}) for name in ("focus", "attention")}
    comparison = Comparison(
        name="small", task=task, systems=equal_systems(task.spec, chosen, dim=8, num_layers=1),
        training=in_steps(1), learning_rates=(1e-3,),
    )  # fmt: skip
    rows = steps.measure_comparison(comparison, rounds=3)
    assert [row["system"] for row in rows] == ["focus", "attention"]
    assert rows[0]["steps_to_one_of_focus"] == 1
    for row in rows:
        assert len(row["core_seconds"]) == 3
        # At least the logits, their gradient, and gradients of all parameters.
        assert row["most_alive_bytes"] > 4 * 2 * 2 * 32 * task.spec.vocab_size


def test_what_is_no_study_is_refused(monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import steps

    with pytest.raises(SystemExit):
        steps.main(["ablation"])
    assert "invalid choice: 'ablation'" in capsys.readouterr().err
