"""Facts about training on several processes: what they learn, save, resume, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from tests.parallel.launches import (
    MIXER_OPTIONS,
    Drawing,
    Poisoned,
    Stalling,
    alone,
    answers_of,
    changed,
    environment,
    farthest,
    free_port,
    recall,
    shared_out,
    study_together,
    together,
    weights,
)
from torch import nn

from polewise.mixers import MIXERS
from polewise.recipes.studies import Comparison, Study, System, run_study
from polewise.tasks import ListOpsTask, MqarTask, RecallTask
from polewise.training import Run, RunFolder, train
from polewise.training.building import require_splittable_run
from polewise.training.checkpoint import list_checkpoints, verify_checkpoint
from polewise.training.errors import SaveError
from polewise.training.launch import asks_for_sharding, join_processes, naming_lost_processes
from polewise.training.run import ModelOptions, TrainingOptions

LAYOUTS = {
    "data parallel": {},
    "sharded": {"shard_parameters": True},
    "split": {"split_sequence": True},
    "split and sharded": {"split_sequence": True, "shard_parameters": True},
}
OPTIONS = [
    "train", "text", "--source", "embedded", "--length", "64", "--batch-size", "4",
    "--hidden-size", "16", "--num-layers", "2", "--eval-bytes", "1000", "--warmup", "0",
    "--final-learning-rate", "1", "--seed", "0", "--checkpoint-every", "2",
    *(word for name, value in MIXER_OPTIONS.items() for word in ("--set", f"{name}={value}")),
]  # fmt: skip

ROUNDING = 1e-6


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs in every layout: 4 steps on two processes, resumed to 6 on one, two and four."""
    folder = tmp_path_factory.mktemp("runs")
    sharded = LAYOUTS["sharded"]
    rounded = {"precision": "bfloat16", "accumulate": 2}
    together(
        2,
        *((changed(**options), folder / name / "saved") for name, options in LAYOUTS.items()),
        (changed(**rounded), folder / "data parallel" / "rounded"),
        (changed(accumulate=2), folder / "data parallel" / "accumulated"),
        (changed(**rounded, **sharded), folder / "sharded" / "rounded"),
        (changed(**sharded), folder / "sharded" / "2"),
        (6, folder / "sharded" / "2"),
        (changed(max_steps=6, **sharded), folder / "sharded" / "whole"),
    )
    for name in LAYOUTS:
        for processes in ("1", "4"):
            shutil.copytree(folder / name / "saved", folder / name / processes)
    one_process = (changed(max_steps=6), folder / "one process")
    alone(one_process, *((6, folder / name / "1") for name in LAYOUTS))
    together(4, *((6, folder / name / "4") for name in LAYOUTS))
    return folder


def test_measures_that_only_some_processes_see_are_reported(tmp_path):
    """One cell of multi-query recall goes to each process; nothing is learned at this rate."""
    run = Run(
        task=MqarTask(
            train_on="16:2", test_on="16:2,24:3", vocab_size=32, num_eval=4, batch_size=4
        ),
        model=ModelOptions(mixer="attention", hidden_size=8, num_layers=1),
        training=TrainingOptions(max_steps=1, learning_rate=1e-30, weight_decay=0),
    )
    together(2, (run, tmp_path / "two"))
    alone((run, tmp_path / "one"))
    measured = []
    for name in ("one", "two"):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        row = next(row for row in map(json.loads, lines) if row["kind"] == "eval")
        measured.append({name: row[name] for name in row if name not in ("kind", "seconds")})
    assert {"accuracy_16_2", "accuracy_24_3", "loss"} < set(measured[0])
    assert measured[1] == pytest.approx(measured[0], rel=1e-5)


def test_processes_hold_shares_of_all_parameters_where_asked_and_nowhere_else(runs):
    for name, options in LAYOUTS.items():
        whole = len(weights(runs / name / "saved"))
        for rank in (0, 1):
            expected = whole if options.get("shard_parameters") else 0
            assert shared_out(runs / name / "saved", rank) == expected


def test_sharded_parameters_learn_what_whole_ones_learn(runs):
    assert farthest(runs / "sharded/saved", runs / "data parallel/saved") < ROUNDING
    assert farthest(runs / "split and sharded/saved", runs / "split/saved") < ROUNDING
    # In bfloat16, and sharded gradients are summed over processes first, then over batches.
    assert farthest(runs / "sharded/rounded", runs / "data parallel/rounded") < 1e-3
    assert farthest(runs / "sharded/rounded", runs / "data parallel/accumulated") > 1e-3


def test_a_resumed_sharded_run_ends_with_the_same_bits(runs):
    assert farthest(runs / "sharded/2", runs / "sharded/whole") == 0
    assert farthest(runs / "sharded/2", runs / "sharded/saved") > 0


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_two_processes_saved_goes_on_with_one_and_with_four(runs, layout, processes):
    ended = runs / layout / str(processes)
    verify_checkpoint(ended / "checkpoints/step-6")
    # All pieces of a sequence together are one process; sharding changes nothing.
    same = runs / "one process" if "split" in layout else runs / f"data parallel/{processes}"
    assert farthest(ended, same) < 1e-4


def start(words, rank=0, processes=1, port=0):
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **(environment(rank, processes, port) if processes > 1 else {})},
    )  # fmt: skip


def test_a_killed_process_ends_the_others_with_a_message_and_the_run_resumes(tmp_path):
    words = [
        "-m",
        "polewise",
        *OPTIONS,
        "--max-steps",
        "100000",
        "--out",
        str(tmp_path / "run"),
    ]
    port = free_port()
    victim, other = (start(words, rank, 2, port) for rank in (1, 0))
    try:
        while len(list_checkpoints(tmp_path / "run/checkpoints")) < 2:
            assert victim.poll() is None, victim.communicate()
            time.sleep(0.05)
        victim.kill()
        _, said = other.communicate(timeout=60)
    finally:
        for process in (victim, other):
            process.kill()
            process.communicate()
    assert other.returncode == 1
    assert "polewise: error: every process of the run must go on; another has ended" in said
    assert said.count("\n") == 1, said

    newest = list_checkpoints(tmp_path / "run/checkpoints")[-1]
    verify_checkpoint(newest)
    steps = int(newest.name.removeprefix("step-")) + 2
    run = RunFolder(tmp_path / "run").read_run()
    whole = replace(run, training=replace(run.training, max_steps=steps))
    together(2, (steps, tmp_path / "run"), (whole, tmp_path / "whole"))
    assert farthest(tmp_path / "run", tmp_path / "whole") == 0


def test_trouble_in_one_process_or_in_pieces_is_answered_by_all(tmp_path):
    nan, stalled = answers_of(
        2,
        tmp_path,
        recall(Poisoned, shard_parameters=True, skip_limit=2, on_skip_limit="roll_back"),
        recall(Stalling, shard_parameters=True, data_timeout=1.0),
    )
    for answer in nan:
        assert "NaN or infinite at step 3" in answer
        assert "the loss is NaN, though the logits are finite" in answer
    lines = RunFolder(tmp_path / "0").read_metrics()
    assert sum(line["kind"] == "roll_back" for line in lines) == 3
    assert "must give a batch within 1 s" in stalled[1]
    assert stalled[0].startswith("the data of another process failed. The run is saved at step 2")
    for number in (0, 1):
        verify_checkpoint(tmp_path / str(number) / "checkpoints/step-2")


def test_accelerate_launch_goes_on_sharded_with_what_was_not(runs, tmp_path):
    run = shutil.copytree(runs / "data parallel/saved", tmp_path / "run")
    words = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--use_fsdp"]
    process = start(
        [
            *words,
            "--fsdp_version",
            "2",
            "-m",
            "polewise",
            "resume",
            str(run),
            "--max-steps",
            "6",
        ]
    )
    out, said = process.communicate()
    assert process.returncode == 0, said
    assert "finished after 6 steps" in out
    assert farthest(run, runs / "sharded/2") < ROUNDING


def test_sequences_that_cannot_be_split_are_refused_before_a_folder_is_made(tmp_path, monkeypatch):
    several = SimpleNamespace(num_processes=2, is_main_process=True)
    monkeypatch.setattr("polewise.training.loop.join_processes", lambda _: several)
    run = changed(split_sequence=True)
    options = MIXER_OPTIONS | {"chunk_length": 64}
    run = replace(run, model=replace(run.model, mixer_options=options))
    with pytest.raises(ValueError, match="multiple of processes x chunk_length = 128; got 64"):
        train(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("mixer", "options", "unit"),
    [
        ("focus", {}, None),
        ("focus", {"chunk_length": 50}, "chunk_length = 100"),
        ("focus", {"filters": 1, "hypernetwork": "recurrent"}, "bin_length = 64"),
        ("published_focus", {"chunk_length": 23, "hypernetwork": "none"}, None),
        ("mega", {"chunk_length": 50}, "chunk_length = 100"),
        ("attention", {}, None),
    ],
)
def test_pieces_hold_whole_chunks_and_whole_bins_where_filters_go_by_them(mixer, options, unit):
    model = ModelOptions(mixer=mixer, mixer_options=options, hidden_size=64)
    run = replace(changed(split_sequence=True), model=model, task=RecallTask(length=90))
    wrong = pytest.raises(ValueError, match=f"multiple of processes x {unit}; got 92")
    with wrong if unit else contextlib.nullcontext():
        require_splittable_run(run, 2)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (RecallTask(length=90, align_to=93), "multiple of processes = 2; got 93"),
        (ListOpsTask(), "split_sequence must be False for listops: its rows have lengths"),
    ],
)
def test_sequences_that_have_no_equal_pieces_are_refused(task, message):
    model = ModelOptions(mixer="attention", hidden_size=64)
    run = replace(changed(split_sequence=True), model=model, task=task)
    with pytest.raises(ValueError, match=message):
        require_splittable_run(run, 2)


class Unsplit(nn.Module):
    """A mixer of the user's that knows nothing of other processes."""

    causal = True


@dataclass(frozen=True, kw_only=True)
class UnsplitConfig:
    dim: int
    build = staticmethod(Unsplit)


@pytest.mark.parametrize(
    ("mixer", "options", "message"),
    [("attention", {"causal": False}, "must be causal"), ("unsplit", {}, "know how to be split")],
)
def test_mixers_that_cannot_be_split_are_refused(mixer, options, message, monkeypatch):
    monkeypatch.setitem(MIXERS, "unsplit", UnsplitConfig)
    model = ModelOptions(mixer=mixer, mixer_options=options, hidden_size=64)
    run = replace(changed(split_sequence=True), model=model, task=ListOpsTask())
    with pytest.raises(ValueError, match=f"split_sequence must be False for this mixer.*{message}"):
        require_splittable_run(run, 2)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DEEPSPEED"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "asks for MEGATRON_LM"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "asks for version 1"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "asks for bf16, the run for float32. Launch with"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "asks for inductor"),
    ],
)
def test_what_the_loop_does_not_know_or_is_told_by_the_run_is_refused(
    variables, message, monkeypatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        join_processes(TrainingOptions(max_steps=1))


def test_each_process_draws_masks_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("DRAWN_IN", str(tmp_path))
    together(2, (recall(Drawing), tmp_path / "run"))
    first, second = ((tmp_path / rank).read_text().split() for rank in "01")
    assert len(first) == len(second) >= 8
    assert len({*first, *second}) == len(first) + len(second)


def test_what_ends_a_run_of_ours_is_not_taken_for_a_lost_process():
    with pytest.raises(SaveError, match="igloo"), naming_lost_processes():
        raise SaveError("a checkpoint must be written to runs/igloo; free some space there.")


def test_the_launcher_is_asked_for_sharding_too(monkeypatch):
    assert not asks_for_sharding(TrainingOptions(max_steps=1))
    assert asks_for_sharding(TrainingOptions(max_steps=1, shard_parameters=True))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert asks_for_sharding(TrainingOptions(max_steps=1))


def test_a_study_trains_each_run_on_all_processes_and_goes_on_with_as_many(tmp_path):
    options = ModelOptions(mixer="attention", hidden_size=8, num_layers=1)
    comparison = Comparison(
        name="short",
        task=RecallTask(length=8, vocab_size=8, num_eval=20, batch_size=4),
        systems=(System(name="attention", model=options),),
        training=TrainingOptions(max_steps=2, evaluate_every=2, checkpoint_every=2),
        learning_rates=(1e-3, 1e-2),
    )
    study = Study(name="tiny", size="cpu", question="?", comparisons=(comparison,))
    results = tmp_path / "results.json"
    study_together(2, study, tmp_path)
    rows = json.loads(results.read_text())["rows"]
    assert [(row["num_processes"], row["steps"]) for row in rows] == [(2, 2), (2, 2)]
    before = results.read_bytes()
    study_together(2, study, tmp_path)
    assert results.read_bytes() == before
    more = replace(study, comparisons=(replace(comparison, learning_rates=(1e-3, 1e-2, 2e-2)),))
    with pytest.raises(ValueError, match=r"must be trained by 2 process\(es\).*; got 1"):
        run_study(more, out=tmp_path / "runs", results=results)
