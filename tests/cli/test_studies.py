"""Facts about `polewise study` and `polewise report`."""

from pathlib import Path

import pytest

from polewise.cli import main, studies
from polewise.recipes.studies import Comparison, Study, System
from polewise.tasks import RecallTask
from polewise.training import ModelOptions, TrainingOptions


@pytest.fixture
def tiny(monkeypatch):
    """One system, two rates, two seeds; in place of table1."""

    def build(name, size):
        model = ModelOptions(mixer="attention", hidden_size=8, num_layers=1)
        comparison = Comparison(
            name="short",
            task=RecallTask(length=8, vocab_size=8, num_eval=20, batch_size=4),
            systems=(System(name="attention", model=model),),
            training=TrainingOptions(max_steps=4, evaluate_every=1, log_every=1),
            learning_rates=(1e-3, 1e-2),
            num_seeds=2,
            expected_seconds=1800.0,
        )
        return Study(name=name, size=size, question="Does it run?", comparisons=(comparison,))

    monkeypatch.setattr(studies, "build_study", build)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("study tabel1", "Did you mean 'table1'?"),
        ("study table1 --size huge", "--size"),
        ("study table1 --only nothing", "only must match a run of table1, such as 30/focus/"),
        ("study table1 --only nothing --list", "only must match a run of table1"),
        ("study table1 --jobs 0", "jobs must be an integer of at least 1; got 0."),
        ("report", "results must be given; there is no benchmarks/results/study-*.json here."),
        ("report nothing.json", "results must be the results file of a study; nothing.json"),
    ],
)
def test_a_mistake_is_one_line_and_creates_nothing(words, answer, capsys, tmp_path):
    assert main(words.split()) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("polewise: error: ")
    assert printed.err.count("\n") == 1
    assert answer in printed.err
    assert list(tmp_path.rglob("*")) == []


def test_the_studies_are_listed_with_their_questions(capsys):
    assert main(["study"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(studies.STUDIES)
    assert all("?" in line for line in lines)


def test_a_study_is_listed_run_run_again_and_reported(tiny, tmp_path, capsys):
    assert main(["study", "table1", "--list"]) == 0
    said = capsys.readouterr().out
    assert said.count("to do") == 2  # the rate of the third is not known yet
    assert "0 of 3 runs are done; all take about 1.5 core hours" in said
    assert list(tmp_path.iterdir()) == []

    for _ in range(2):
        assert main(["study", "table1"]) == 0
        assert "ended: 3 runs done, 0 left" in capsys.readouterr().out
    results = Path("benchmarks/results/study-table1-cpu.json")
    assert results.is_file()
    assert len(list(Path("runs/studies/table1-cpu/short/attention").iterdir())) == 3

    assert main(["report", "--out", "page.html"]) == 0
    assert "attention" in Path("page.html").read_text()
    assert main(["report", str(results), "--docs"]) == 2
    assert "there is no folder docs" in capsys.readouterr().err
    Path("docs/figures").mkdir(parents=True)
    Path("docs/figures/study-table1-cpu-7.svg").touch()  # of a page with more figures
    Path("docs/figures/study-table1-cpu-old-0.svg").touch()  # of other results
    assert main(["report", "--docs"]) == 0
    assert "| attention |" in Path("docs/studies.md").read_text()
    assert sorted(path.name for path in Path("docs/figures").iterdir()) == [
        "study-table1-cpu-0.svg", "study-table1-cpu-old-0.svg"
    ]  # fmt: skip


def test_one_run_is_made_anew_beside_what_is_there(tiny, capsys):
    name = "short/attention/rate-0.01-seed-1"
    words = ["study", "table1", "--size", "gpu", "--only", name, "--out", "again"]
    assert main(words) == 0
    assert "ended: 1 runs done, 0 left" in capsys.readouterr().out
    assert Path("again/table1-gpu", name, "outcome.json").is_file()
    assert Path("again/study-table1-gpu.json").is_file()
    assert not Path("benchmarks").exists()


def test_when_the_time_is_over_that_is_no_failure(tiny, capsys):
    assert main(["study", "table1", "--max-hours", "0"]) == 0
    assert "out of time" in capsys.readouterr().out
