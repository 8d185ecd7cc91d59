"""Facts about the demo."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from polewise.cli import demo
from polewise.tasks import RecallTask
from polewise.training import ModelOptions, Run, TrainingOptions


@pytest.fixture
def run_small(tmp_path, monkeypatch):
    """Run the demo with two tiny runs; `stop_at=0` and a task of one answer decide recall."""

    def run(recall_task, text="embedded"):
        model = ModelOptions(mixer="attention", hidden_size=8, num_layers=1)
        training = TrainingOptions(max_steps=30, learning_rate=0.05, evaluate_every=10, stop_at=1.0)
        recall = Run(task=recall_task, model=model, training=training)

        def small(options):
            task = demo.demo_text(options.text).task
            task = replace(task, length=16, batch_size=2, eval_bytes=4000)
            budget = replace(training, max_steps=3, stop_at=None)
            return recall, Run(task=task, model=model, training=budget)

        monkeypatch.setattr(demo, "demo_runs", small)
        console = Console(file=io.StringIO(), width=200)
        options = demo.DemoOptions(out=tmp_path / "demo", text=text)
        code = demo.run_demo(options, console)
        return code, console.file.getvalue()

    return run


# One key and one value: whoever has seen it once knows it.
EASY = RecallTask(length=2, vocab_size=4, num_eval=1)
HARD = RecallTask(length=64, num_eval=50)


def test_the_demo_ends_in_success_when_recall_is_perfect(run_small, tmp_path):
    code, text = run_small(EASY)
    assert code == 0
    assert "100.0% of 1 held-out sequences" in text
    assert "bits per byte held out; xz -9 needs" in text
    assert str(tmp_path / "demo" / "recall") in text
    assert (tmp_path / "demo" / "text" / "sample.txt").read_text().count(" ==> ") >= 1


def test_the_demo_fails_when_recall_is_not_perfect(run_small):
    code, text = run_small(HARD)
    assert code == 1
    assert "NOT 100 %" in text


def test_a_model_worse_than_the_compressor_is_told_plainly(run_small):
    _, text = run_small(EASY)
    assert "does NOT beat it" in text


def test_a_text_that_does_not_exist_is_refused_before_anything_is_trained(run_small, tmp_path):
    with pytest.raises(ValueError, match=r"there is no file nothing\.txt"):
        run_small(EASY, text="nothing.txt")
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("name", ["recall", "text"])
def test_a_folder_that_is_taken_is_refused_before_anything_is_trained(name, run_small, tmp_path):
    (tmp_path / "demo" / name / "mine").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"out must be a new or empty folder; .*{name} exists"):
        run_small(EASY)
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [name]


def test_the_prompt_is_prose_where_there_is_some():
    line = b"When the sun had gone down behind the hills, they walked home together again."
    assert demo.opening(b"| 1 | 2 |\n\nTable 3\n\n" + line + b"\n") == line[: demo.PROMPT_BYTES]
    assert demo.opening(b"0123456789") == b"0123456789"


def test_the_demos_budget_leaves_room_in_six_minutes():
    recall, text = demo.demo_runs(demo.DemoOptions())
    assert recall.training.max_seconds + text.training.max_seconds <= 320
    assert recall.training.stop_at == 1.0
