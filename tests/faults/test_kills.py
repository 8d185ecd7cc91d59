"""A run that is killed goes on as if nothing had happened."""

import itertools
import os
import shutil
from dataclasses import dataclass
from uuid import uuid4

import pytest
from benchmarks.faults.kills import kill_at_operations, kill_at_random_moments
from tests.faults.runs import (
    TASK,
    checkpoints_in,
    have_equal_parameters,
    quiet,
    small_run,
    untimed_metrics,
)

from polewise.tasks import RecallTask
from polewise.training import RunFolder, resume, train


def test_killed_at_random_moments_a_run_ends_with_the_same_bits_and_the_same_log(tmp_path):
    found = kill_at_random_moments(6, seed=0, folder=tmp_path)
    assert found.kills == 6
    assert found.most_steps_lost <= 2


def test_killed_before_any_of_its_file_operations_a_run_ends_with_the_same_bits(tmp_path):
    # Spread over making the folder, the first checkpoint, the best model, pruning, the end.
    found = kill_at_operations(iter([2, 9, 23, 38, 61, 94, 120, 152]), tmp_path)
    assert found.kills == 8


@dataclass(frozen=True, kw_only=True)
class Dying(RecallTask):
    """Dies at its second batch."""

    def train_batches(self, seed, first_step=0):
        yield from itertools.islice(super().train_batches(seed, first_step), 1)
        raise SystemExit  # as no mistake of the data does


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path, finished_run):
    with pytest.raises(SystemExit):
        train(small_run(Dying(**TASK)), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run" / "checkpoints").exists()
    resume(tmp_path / "run", console=quiet())
    assert have_equal_parameters(tmp_path / "run", finished_run)
    assert untimed_metrics(tmp_path / "run") == untimed_metrics(finished_run)


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(run_copy):
    log = (run_copy / "metrics.jsonl").read_bytes()
    shutil.rmtree(run_copy / "checkpoints")
    for gone in ("the model at the end is there", "the log says it"):
        with pytest.raises(
            ValueError, match=r"must have a checkpoint to go on from; .*up to step 6"
        ):
            resume(run_copy, max_steps=8, console=quiet())
        shutil.rmtree(run_copy / "model-last", ignore_errors=True)
        assert (run_copy / "metrics.jsonl").read_bytes() == log, gone


def test_what_a_killed_process_left_half_done_is_finished_or_cleared_up(run_copy):
    checkpoints = run_copy / "checkpoints"
    (checkpoints / ".step-8.partial").mkdir()
    (checkpoints / ".step-2.gone").mkdir()
    (checkpoints / "step-6").rename(checkpoints / ".step-6.old")
    (run_copy / "model").rename(run_copy / ".model.old")
    (run_copy / f".metrics.jsonl.{uuid4().hex}.partial").write_text("{")
    assert RunFolder(run_copy).load_model() is not None
    resume(run_copy, max_steps=7, console=quiet())
    assert checkpoints_in(run_copy) == ["step-6", "step-7"]
    assert (run_copy / "model").is_dir()
    assert [p.name for p in run_copy.iterdir() if p.name.startswith(".")] == [".lock"]


def test_two_processes_never_train_in_one_folder(run_copy):
    with (
        RunFolder(run_copy).in_use(),
        pytest.raises(ValueError, match=f"run must not be in use; process {os.getpid()} on .* in "),
    ):
        resume(run_copy, max_steps=8, console=quiet())
    assert resume(run_copy, max_steps=8, console=quiet()).step == 8
