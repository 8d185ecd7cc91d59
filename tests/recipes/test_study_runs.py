"""Facts about studies: what is run, what comes out, and what is never run twice."""

import io
import json
import math
import multiprocessing
import os
import pickle
import re
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from polewise.recipes.studies import (
    Results,
    read_results,
    run_study,
    running,
    side_by_side,
)
from polewise.tasks import RecallTask, TextTask
from polewise.training import RunFolder
from polewise.training.errors import TrainingError
from polewise.training.run_folder import OUTCOME

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_a_finished_study_is_not_run_again_and_its_rows_tell_everything(
    tiny_study, tmp_path, monkeypatch
):
    study = tiny_study(num_seeds=2, names=("attention",))
    places = {"out": tmp_path / "runs", "results": tmp_path / "results" / "tiny.json"}
    outcome = run_study(study, **places)
    assert (outcome.status, outcome.num_done, outcome.num_left) == ("ended", 3, 0)

    values = read_results(places["results"])
    assert values["comparisons"][0]["learning_rates"] == [1e-3, 1e-2]
    assert len(values["rows"]) == 3
    for row in values["rows"]:
        assert row["status"] == "done"
        assert row["steps"] == 4
        assert [point["step"] for point in row["curve"]] == [2, 4]
        assert row["metrics"]["accuracy"] == row["curve"][-1]["accuracy"]
        assert row["configuration"]["model"]["mixer_options"]["base"] == 10000.0
        assert row["environment"]["versions"]["torch"]
        assert row["cpu_seconds"] > 0
        assert row["num_processes"] == 1
        assert row["state_bytes"] > 0
        assert row["command"] == ""  # no command knows this study

    monkeypatch.setattr(running, "run_trial", lambda *_: pytest.fail("it was run again"))
    written = places["results"].read_bytes()
    assert run_study(study, **places).num_left == 0
    # The results file alone says what is done, on another machine too.
    assert run_study(study, **places | {"out": tmp_path / "elsewhere"}).num_left == 0
    assert places["results"].read_bytes() == written
    # So do the run folders alone, from which a lost file comes back.
    places["results"].unlink()
    said = Console(record=True, width=200)
    assert run_study(study, **places, console=said).num_left == 0
    assert places["results"].read_bytes() == written
    assert f"3 runs of {places['out']} were done already" in said.export_text().replace("\n", "")


def test_an_interrupted_run_goes_on_and_ends_as_if_nothing_had_been(
    tiny_study, tmp_path, monkeypatch
):
    study = tiny_study(max_steps=6, rates=(1e-3,), names=("attention",))
    whole = tmp_path / "whole.json"
    run_study(study, out=tmp_path / "whole", results=whole)

    task, after = type(study.comparisons[0].task), []
    evaluate = task.eval_batches

    def interrupt_at_the_first_evaluation(self):
        if not after:
            after.append(os.kill(os.getpid(), signal.SIGTERM))
        return evaluate(self)

    monkeypatch.setattr(task, "eval_batches", interrupt_at_the_first_evaluation)
    places = {"out": tmp_path / "runs", "results": tmp_path / "tiny.json"}
    stopped = run_study(study, **places)
    assert (stopped.status, stopped.signal) == ("interrupted", signal.SIGTERM)
    assert (stopped.num_done, stopped.num_left) == (0, 1)
    assert not list(places["out"].rglob(OUTCOME))

    assert run_study(study, **places).num_done == 1
    (row,), (expected,) = (read_results(path)["rows"] for path in (places["results"], whole))
    assert row["metrics"] == expected["metrics"]
    assert row["cpu_seconds"] is None  # only its second part is known


@pytest.mark.parametrize(("evaluation", "done"), [(2, 0), (3, 1), (4, 1)])
def test_a_request_stops_the_study_also_while_a_run_ends(
    evaluation, done, tiny_study, tmp_path, monkeypatch
):
    study = tiny_study(names=("attention",), rates=(1e-3, 1e-2, 3e-2))
    task, asked = type(study.comparisons[0].task), []
    evaluate = task.eval_batches

    def interrupt_at_that_evaluation(self):
        asked.append(None)
        if len(asked) == evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self)

    monkeypatch.setattr(task, "eval_batches", interrupt_at_that_evaluation)
    stopped = run_study(study, out=tmp_path / "runs", results=tmp_path / "tiny.json")
    assert (stopped.status, stopped.signal) == ("interrupted", signal.SIGTERM)
    assert (stopped.num_done, stopped.num_left) == (done, 3 - done)


def test_processes_that_share_a_results_file_keep_each_other_s_rows(tiny_study, tmp_path):
    study = tiny_study(rates=(1e-3,))
    run_study(study, out=tmp_path / "runs", results=tmp_path / "whole.json")
    one, two = (Results(study, tmp_path / "shared.json") for _ in range(2))
    for results, row in zip((one, two), read_results(tmp_path / "whole.json")["rows"], strict=True):
        results.add(row)
        results.write()
    assert read_results(one.path) == read_results(tmp_path / "whole.json")
    changed = tiny_study(rates=(1e-3,), max_steps=5)
    run_study(changed, out=tmp_path / "other", results=tmp_path / "changed.json")
    one, two = (Results(changed, one.path) for _ in range(2))  # of whom both rows are outdated
    rows = read_results(tmp_path / "changed.json")["rows"]
    for results, row in zip((one, two), rows, strict=True):
        results.add(row)
        results.write()
    assert len(Results(changed, one.path).rows) == 2
    # A study that began before it was changed leaves rows of the new one alone.
    old = Results(study, tmp_path / "old.json")
    for row in read_results(tmp_path / "whole.json")["rows"][:1]:
        old.add(row)
    newer = Results(changed, tmp_path / "old.json")
    newer.add(rows[1])
    newer.write()
    old.write()
    assert {row["run"] for row in read_results(old.path)["rows"]} == {*old.rows, *newer.rows}


def test_a_run_that_another_process_trains_is_left_to_it(tiny_study, tmp_path):
    study = tiny_study(rates=(1e-3,))
    first, second = (trial.name for trial in study.trials())
    run_study(study, out=tmp_path / "runs", results=tmp_path / "a.json", only=first)
    (tmp_path / "runs" / first / OUTCOME).unlink()
    with RunFolder.open(tmp_path / "runs" / first).in_use():
        outcome = run_study(study, out=tmp_path / "runs", results=tmp_path / "b.json")
    assert (outcome.num_done, outcome.num_left) == (1, 1)
    assert [row["run"] for row in read_results(outcome.results)["rows"]] == [second]


def test_a_run_that_was_killed_before_it_was_written_down_is_not_trained_again(
    tiny_study, tmp_path
):
    study = tiny_study(rates=(1e-3,), names=("attention",))
    run_study(study, out=tmp_path / "runs", results=tmp_path / "a.json")
    (done,) = (tmp_path / "runs").rglob(OUTCOME)
    done.unlink()
    run_study(study, out=tmp_path / "runs", results=tmp_path / "b.json")
    (row,) = read_results(tmp_path / "b.json")["rows"]
    assert row["steps"] == 4


def test_an_outcome_that_is_damaged_is_named_with_its_folder(tiny_study, tmp_path):
    study = tiny_study(rates=(1e-3,), names=("attention",))
    run_study(study, out=tmp_path / "runs", results=tmp_path / "a.json")
    (done,) = (tmp_path / "runs").rglob(OUTCOME)
    done.write_text('{"status')
    with pytest.raises(ValueError, match=rf"{re.escape(str(done.parent))}: {OUTCOME} must be JSON"):
        run_study(study, out=tmp_path / "runs", results=tmp_path / "b.json")


def test_a_run_that_diverges_is_done_and_says_why(tiny_study, tmp_path):
    study = tiny_study(rates=(1e-3, 1e30), names=("attention",), num_seeds=2, max_steps=30)
    outcome = run_study(study, out=tmp_path / "runs", results=tmp_path / "tiny.json")
    assert (outcome.num_done, outcome.num_left) == (3, 0)
    rows = {row["run"]: row for row in read_results(outcome.results)["rows"]}
    diverged = rows["short/attention/rate-1e+30-seed-0"]
    assert diverged["status"] == "diverged"
    assert "NaN or infinite" in diverged["diagnosis"]
    assert rows["short/attention/rate-0.001-seed-1"]["status"] == "done"


def test_a_run_whose_last_figure_is_not_finite_counts_as_diverged(
    tiny_study, tmp_path, monkeypatch
):
    figures = {"accuracy": (torch.tensor(math.nan), torch.tensor(1.0))}
    monkeypatch.setattr(RecallTask, "metrics", lambda *_: figures)
    study = tiny_study(rates=(1e-3,), names=("attention",), num_seeds=1)
    for _ in range(2):  # and the study goes on
        outcome = run_study(study, out=tmp_path / "runs", results=tmp_path / "tiny.json")
        assert outcome.num_left == 0
    (row,) = read_results(outcome.results)["rows"]
    assert (row["status"], row["diagnosis"]) == (
        "diverged", "accuracy is not a finite number at the end"
    )  # fmt: skip


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_breaks_off_leaves_the_others_their_turn(
    jobs, tiny_study, tmp_path, monkeypatch
):
    study = tiny_study(rates=(1e-3,))
    places = {"out": tmp_path / "runs", "results": tmp_path / "tiny.json"}
    broken = next(iter(study.trials())).name
    if jobs == 1:
        run_trial = running.run_trial

        def without_memory(trial, *rest):
            if trial.name == broken:
                raise torch.OutOfMemoryError("no memory left")
            return run_trial(trial, *rest)

        monkeypatch.setattr(running, "run_trial", without_memory)
    else:
        start = side_by_side.start

        def killed(trial, *rest):
            process = start(trial, *rest)
            if trial.name == broken:
                process.kill()
            return process

        monkeypatch.setattr(side_by_side, "start", killed)
    outcome = run_study(study, **places, jobs=jobs, console=Console(quiet=True))
    assert outcome.failed == (broken,)
    assert (outcome.status, outcome.num_done, outcome.num_left) == ("ended", 1, 1)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_is_too_large_leaves_the_others_their_turn(jobs, tiny_study, tmp_path):
    study = tiny_study(rates=(1e-3,))
    (comparison,) = study.comparisons
    first, *others = comparison.systems
    first = replace(first, model=replace(first.model, num_layers=1000, hidden_size=10**6))
    study = replace(study, comparisons=(replace(comparison, systems=(first, *others)),))
    places = {"out": tmp_path / "runs", "results": tmp_path / "tiny.json"}
    outcome = run_study(study, **places, jobs=jobs, console=Console(quiet=True))
    assert outcome.failed == (next(iter(study.trials())).name,)
    assert (outcome.status, outcome.num_done, outcome.num_left) == ("ended", 1, 1)


@pytest.mark.parametrize(("jobs", "message"), [(1, "run folder"), (2, "could not begin or go on")])
def test_a_folder_that_holds_something_else_ends_a_study(jobs, message, tiny_study, tmp_path):
    study = tiny_study(rates=(1e-3,))
    (tmp_path / "runs" / next(iter(study.trials())).name).mkdir(parents=True)
    with pytest.raises(ValueError, match=message):
        run_study(study, out=tmp_path / "runs", results=tmp_path / "tiny.json", jobs=jobs)


def test_missing_data_are_named_before_anything_is_trained(tiny_study, tmp_path):
    study = tiny_study(rates=(1e-3,))
    absent = TextTask(source=str(tmp_path / "absent"), length=8, batch_size=2)
    further = replace(study.comparisons[0], name="text", task=absent)
    study = replace(study, comparisons=(*study.comparisons, further))
    places = {"out": tmp_path / "runs", "results": tmp_path / "tiny.json"}
    with pytest.raises(ValueError, match="absent"):
        run_study(study, **places)
    assert not places["out"].exists()
    assert run_study(study, **places, only="short/*").num_done == 2


def test_a_run_that_another_study_began_a_moment_before_is_left_to_it(
    tiny_study, tmp_path, monkeypatch
):
    """Its folder comes into being between the look and the begin; nobody is at work there, so it is
    gone on with."""
    study = tiny_study(rates=(1e-3,), names=("attention",))
    (trial,) = study.trials()
    prepare, asked = RecallTask.prepare, []

    def other_is_quicker(task):
        prepare(task)
        asked.append(task)
        if len(asked) == 2:  # the first looks whether data are missing
            RunFolder.create(tmp_path / "runs" / trial.name, trial.run)

    monkeypatch.setattr(RecallTask, "prepare", other_is_quicker)
    outcome = run_study(study, out=tmp_path / "runs", results=tmp_path / "tiny.json")
    assert (outcome.failed, outcome.num_done) == ((), 1)


def test_a_process_whose_run_another_one_trains_has_not_failed(tiny_study, tmp_path):
    study = tiny_study(rates=(1e-3,), names=("attention",))
    (trial,) = study.trials()
    folder = RunFolder.create(tmp_path / trial.name, trial.run)
    with folder.in_use():
        process = side_by_side.start(trial, tmp_path / trial.name, 0)
        process.join()
    assert process.exitcode == side_by_side.IN_USE


def test_side_by_side_each_run_has_a_process_and_the_result_is_the_same(tiny_study, tmp_path):
    study = tiny_study(rates=(1e-3,))
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    run_study(study, out=tmp_path / "one", results=one)
    assert run_study(study, out=tmp_path / "two", results=two, jobs=2).num_left == 0
    for alone, beside in zip(read_results(one)["rows"], read_results(two)["rows"], strict=True):
        assert beside["environment"]["num_threads"] == 1
        assert beside["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], rel=1e-4)


def test_a_run_goes_to_its_process_without_the_files_that_are_open(tiny_study, tmp_path):
    (tmp_path / "text").write_bytes(b"It was the best of times. " * 400)
    task = TextTask(source=str(tmp_path / "text"), length=16, batch_size=2, eval_bytes=100)
    task.prepare()
    study = tiny_study(names=("attention",))
    comparison = replace(study.comparisons[0], task=task)
    (trial, *_) = replace(study, comparisons=(comparison,)).trials()
    assert pickle.loads(pickle.dumps(trial.without_data())).run == trial.run


def test_when_the_time_is_over_the_run_in_progress_is_saved(tiny_study, tmp_path):
    places = {"out": tmp_path / "runs", "results": tmp_path / "tiny.json"}
    outcome = run_study(tiny_study(max_steps=10**6), **places, max_hours=2 / 3600)
    assert outcome.status == "out of time"
    assert outcome.signal is None
    assert outcome.num_left == 4
    assert len(list(places["out"].rglob("config.json"))) >= 1


def test_only_takes_a_pattern_or_one_whole_name(tiny_study, tmp_path):
    study = tiny_study(num_seeds=2)
    places = {"out": tmp_path / "runs", "results": tmp_path / "tiny.json"}
    assert run_study(study, **places, only="*/mega/rate-0.001-*").num_done == 1
    # A seed at a rate that is not known to be the best: asked for by name, it is run.
    assert run_study(study, **places, only="short/attention/rate-0.01-seed-1").num_done == 2
    with pytest.raises(ValueError, match=r"only must match a run of tiny, such as short/attention"):
        run_study(study, **places, only="*/focus/*")


def test_results_of_another_study_are_left_alone(tiny_study, tmp_path):
    path = tmp_path / "study.json"
    study = tiny_study(rates=(1e-3,), names=("attention",))
    run_study(study, out=tmp_path / "runs", results=path)
    written = path.read_bytes()
    other = replace(study, name="other")
    with pytest.raises(ValueError, match=r"those of study other, .* holds those of tiny"):
        run_study(other, out=tmp_path / "others", results=path)
    assert path.read_bytes() == written


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("metrics", None),
        ("metrics", {}),
        ("metrics", {"accuracy": "x"}),
        ("steps", None),
        ("parameters", "many"),
        ("curve", 5),
        ("curve", [{}]),
        ("environment", -1),
    ],
)
def test_a_damaged_row_is_explained(place, value, tmp_path):
    values = json.loads((RESULTS / "study-table1-cpu.json").read_text())
    values["rows"][0][place] = value
    (tmp_path / "damaged.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="results must be the results file of a study"):
        read_results(tmp_path / "damaged.json")


def test_a_folder_with_other_options_is_left_alone(tiny_study, tmp_path):
    places = {"out": tmp_path / "runs", "only": "*/attention/rate-0.001-seed-0"}
    run_study(tiny_study(), **places, results=tmp_path / "a.json")
    (done,) = (tmp_path / "runs").rglob(OUTCOME)
    others = {"out": tmp_path / "runs", "only": places["only"], "results": tmp_path / "b.json"}
    refused = r"out must hold runs of the study as it is now; .* has other options"
    with pytest.raises(ValueError, match=refused):  # not taken for the outcome of this run
        run_study(tiny_study(max_steps=5), **others)
    done.unlink()
    with pytest.raises(ValueError, match=refused):  # nor gone on with
        run_study(tiny_study(max_steps=5), **others)
    assert not (tmp_path / "b.json").exists()


def test_rows_whose_options_have_changed_do_not_count(tiny_study, tmp_path):
    path = tmp_path / "tiny.json"
    run_study(tiny_study(rates=(1e-3,)), out=tmp_path / "runs", results=path)
    assert len(Results(tiny_study(rates=(1e-3,)), path).rows) == 2
    changed = tiny_study(rates=(1e-3,), max_steps=5)
    assert len(Results(changed, path).rows) == 0
    console = Console(file=io.StringIO(), width=300)
    run_study(
        changed, out=tmp_path / "new", results=tmp_path / "tiny.json", max_hours=0, console=console
    )
    assert "2 rows of" in console.file.getvalue()
    assert "will be dropped, such as short/attention/rate-0.001-seed-0" in console.file.getvalue()
    # An option that did not exist when the row was written had its default then.
    values = json.loads(path.read_text())
    del values["rows"][0]["configuration"]["model"]["mixer_options"]["heads"]
    path.write_text(json.dumps(values))
    assert len(Results(tiny_study(rates=(1e-3,)), path).rows) == 2
    # And none but that.
    del values["rows"][0]["configuration"]["task"]["answer_only"]
    path.write_text(json.dumps(values))
    study = tiny_study(rates=(1e-3,))
    (comparison,) = study.comparisons
    task = replace(comparison.task, answer_only=True)
    other = replace(study, comparisons=(replace(comparison, task=task),))
    assert (len(Results(study, path).rows), len(Results(other, path).rows)) == (2, 0)
    # But a mixer whose default has become another one has another size, too.
    values["rows"][0]["parameters"] += 1
    path.write_text(json.dumps(values))
    assert len(Results(tiny_study(rates=(1e-3,)), path).rows) == 1


def test_a_folder_whose_model_has_another_size_now_is_not_taken_for_todays(tiny_study, tmp_path):
    places = {"out": tmp_path / "runs", "only": "*/attention/rate-0.001-seed-0"}
    run_study(tiny_study(), **places, results=tmp_path / "a.json")
    (done,) = (tmp_path / "runs").rglob(OUTCOME)
    outcome = json.loads(done.read_text())
    done.write_text(json.dumps(outcome | {"parameters": outcome["parameters"] + 1}))
    with pytest.raises(ValueError, match="a model of another size"):
        run_study(tiny_study(), **places, results=tmp_path / "b.json")
    assert not (tmp_path / "b.json").exists()


def test_runs_of_a_comparison_are_all_trained_by_as_many_processes(tiny_study, tmp_path):
    places = {"out": tmp_path / "runs", "results": tmp_path / "tiny.json"}
    run_study(tiny_study(), **places, only="*/attention/rate-0.001-seed-0")
    values = json.loads(places["results"].read_text())
    values["rows"][0]["num_processes"] = 4
    places["results"].write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"must be trained by 4 process\(es\), as those of short"):
        run_study(tiny_study(), **places)


def test_side_by_side_runs_have_the_gpus_that_the_call_was_given(tiny_study, tmp_path, monkeypatch):
    given = []

    class Process:
        def __init__(self, **_):
            given.append(os.environ["CUDA_VISIBLE_DEVICES"])

        def start(self):
            pass

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(multiprocessing.get_context("spawn"), "Process", Process, raising=False)
    trial = tiny_study().open_trials({})[0]
    for visible in ("2,3", "GPU-a,GPU-b", None):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        for slot in (0, 1, 2):
            side_by_side.start(trial, tmp_path, slot)
    assert given == ["2", "3", "2", "GPU-a", "GPU-b", "GPU-a", "0", "1", "0"]


def test_seconds_are_not_shared_out_among_more_jobs_than_cores(tiny_study, tmp_path):
    study = tiny_study()
    comparison = study.comparisons[0]
    training = replace(comparison.training, max_steps=None, max_seconds=60.0)
    timed = replace(study, comparisons=(replace(comparison, training=training),))
    jobs = len(os.sched_getaffinity(0)) + 1
    with pytest.raises(ValueError, match=r"jobs must be at most .* short has a budget in seconds"):
        run_study(timed, out=tmp_path, results=tmp_path / "tiny.json", jobs=jobs)


def test_runs_with_a_budget_in_seconds_all_have_as_many_threads(tiny_study, tmp_path):
    study = tiny_study(names=("attention",))
    comparison = study.comparisons[0]
    training = replace(comparison.training, max_steps=None, max_seconds=0.1)
    timed = replace(study, comparisons=(replace(comparison, training=training),))
    places = {"out": tmp_path / "runs", "results": tmp_path / "tiny.json"}
    run_study(timed, **places, only="*/rate-0.001-*")
    values = json.loads(places["results"].read_text())
    values["environments"][0]["num_threads"] += 1
    places["results"].write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"jobs must give every run .* thread\(s\), as those of "):
        run_study(timed, **places | {"out": tmp_path / "again"})


def test_a_damaged_results_file_is_refused_and_kept(tiny_study, tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text('{"format": 7}')
    with pytest.raises(ValueError, match="results must be the results file of a study"):
        run_study(tiny_study(), out=tmp_path / "runs", results=path)
    assert path.read_text() == '{"format": 7}'


@pytest.mark.parametrize("lost", ["metrics", "status", "curve", "run"])
def test_a_row_that_lacks_something_is_told_at_once(lost, tiny_study, tmp_path):
    places = {"out": tmp_path / "runs", "results": tmp_path / "tiny.json"}
    study = tiny_study(num_seeds=1, names=("attention",), rates=(1e-3,))
    run_study(study, **places)
    values = json.loads(places["results"].read_text())
    del values["rows"][0][lost]
    places["results"].write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"must have '{lost}'"):
        read_results(places["results"])


@pytest.mark.parametrize("max_hours", [-1.0, math.nan, math.inf])
def test_hours_that_are_none_are_refused(max_hours, tiny_study, tmp_path):
    with pytest.raises(ValueError, match="max_hours must be between 0 and"):
        run_study(
            tiny_study(), out=tmp_path / "runs", results=tmp_path / "tiny.json", max_hours=max_hours
        )


def test_side_by_side_a_full_disk_ends_the_study_with_one_message(
    tiny_study, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # half of it would be read ever after
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(TrainingError, match="could not go on; its message is above"):
            run_study(
                tiny_study(names=("attention",)), out=tmp_path / "runs",
                results=tmp_path / "tiny.json", jobs=2, console=Console(quiet=True),
            )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    printed = capfd.readouterr().err
    assert "must be written to" in printed
    assert "Traceback" not in printed
