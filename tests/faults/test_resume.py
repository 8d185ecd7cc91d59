"""A run that was stopped and resumed equals one that was not, bit for bit."""

import contextlib
import itertools
import os
import pty
import random
import signal
import sys
import time
from typing import ClassVar

import numpy as np
import pytest
import torch
from tests.faults.runs import (
    TASK,
    RecallWith,
    have_equal_parameters,
    quiet,
    small_run,
    task_of,
    untimed_metrics,
)

from polewise.tasks import RecallTask
from polewise.training import resume, train
from polewise.training.checkpoint import load_checkpoint
from polewise.training.durable import replace_folder
from polewise.training.session import Session


class Stopping(RecallWith):
    """Someone sends a signal while a batch is made."""

    at = 0
    number = signal.SIGINT

    def change(self, step, batch):
        if step == self.at:
            os.kill(os.getpid(), self.number)
        return batch


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6])
def test_stopped_after_any_step_a_run_ends_with_the_same_bits_and_the_same_log(
    step, tmp_path, finished_run
):
    stopped = train(small_run(task_of(Stopping, at=step - 1)), tmp_path / "run", console=quiet())
    assert (stopped.status, stopped.step) == ("interrupted", step)
    assert resume(tmp_path / "run", console=quiet()).status == "finished"
    for name in ("model", "model-last"):
        assert have_equal_parameters(tmp_path / "run", finished_run, name)
    assert untimed_metrics(tmp_path / "run") == untimed_metrics(finished_run)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6])
def test_what_is_drawn_while_training_is_drawn_again_after_a_stop(step, tmp_path):
    options = {"mixer": "focus", "dropout": 0.3, "accumulate": 2}
    train(small_run(**options), tmp_path / "whole", console=quiet())
    task = task_of(Stopping, at=2 * step - 1)
    assert train(small_run(task, **options), tmp_path / "run", console=quiet()).step == step
    resume(tmp_path / "run", console=quiet())
    assert have_equal_parameters(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("batch", [3, 4, 5])
def test_stopped_inside_gradient_accumulation_a_run_ends_with_the_same_bits(batch, tmp_path):
    options = {"accumulate": 3, "log_every": 4}
    train(small_run(**options), tmp_path / "whole", console=quiet())
    task = task_of(Stopping, at=batch)
    assert train(small_run(task, **options), tmp_path / "run", console=quiet()).step == 2
    resume(tmp_path / "run", console=quiet())
    assert have_equal_parameters(tmp_path / "run", tmp_path / "whole")
    assert untimed_metrics(tmp_path / "run") == untimed_metrics(tmp_path / "whole")


def test_accumulated_gradients_are_those_of_one_large_batch(tmp_path):
    class Large(RecallWith):
        def change(self, step, batch):
            return batch

        def train_batches(self, seed, first_step=0):
            batches = super().train_batches(seed, 2 * first_step)
            for first in batches:
                second = next(batches)
                yield {name: torch.cat([first[name], second[name]]) for name in first}

    train(small_run(accumulate=2, max_steps=3), tmp_path / "a", console=quiet())
    train(small_run(Large(**TASK), max_steps=3), tmp_path / "b", console=quiet())
    losses = [
        [r["loss"] for r in untimed_metrics(tmp_path / name) if r["kind"] == "train"]
        for name in "ab"
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_every_random_generator_goes_on_where_it_was(run_copy):
    from tests.faults.test_damaged_checkpoints import fresh_model

    from polewise.training.optimizer import build_optimizer
    from polewise.training.random_state import random_state, set_random_state

    random.gauss(0, 1)  # leaves a second number behind
    np.random.normal()
    before = random_state()
    drawn = [random.random(), random.gauss(0, 1), np.random.normal(), torch.rand(1).item()]
    set_random_state(before)
    again = [random.random(), random.gauss(0, 1), np.random.normal(), torch.rand(1).item()]
    assert again == drawn

    model = fresh_model()
    random.seed(99)
    load_checkpoint(
        run_copy / "checkpoints/step-6", model, build_optimizer(model, small_run().training)
    )
    first = random.random()
    random.seed(0)  # what the run was seeded with; nothing in it draws
    assert random.random() == first


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_tells_the_exit_code(number, code, tmp_path, finished_run, request):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have begun the tests
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))
    task = task_of(Stopping, at=2, number=number)
    stopped = train(small_run(task), tmp_path / "run", console=quiet())
    assert (stopped.status, stopped.step, stopped.exit_code) == ("interrupted", 3, code)
    resume(tmp_path / "run", console=quiet())
    assert have_equal_parameters(tmp_path / "run", finished_run)


def test_a_closed_terminal_is_nothing_to_what_nohup_began(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        task = task_of(Stopping, at=2, number=signal.SIGHUP)
        assert train(small_run(task), tmp_path / "run", console=quiet()).status == "finished"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_outlives_its_terminal(tmp_path):
    """Also what moves on it, the bar, which can be drawn no more."""
    folder = tmp_path / "run"
    sizes = "--length 6 --vocab-size 6 --hidden-size 8 --num-layers 1 --num-eval 8 --batch-size 4"
    budget = f"--max-steps 100000000 --log-every 1 --mixer attention --out {folder}"
    child, terminal = pty.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            words = f"-m polewise train recall {sizes} {budget}".split()
            os.execv(sys.executable, [sys.executable, *words])
        finally:
            os._exit(1)
    os.set_blocking(terminal, False)
    log, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.stat().st_size):
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 1 << 16)
        time.sleep(0.01)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    assert list((folder / "checkpoints").iterdir())


def test_a_second_sigterm_changes_nothing(tmp_path):
    class Twice(Stopping):
        def change(self, step, batch):
            return super().change(step, super().change(step, batch))

    task = task_of(Twice, at=2, number=signal.SIGTERM)
    assert train(small_run(task), tmp_path / "run", console=quiet()).step == 3


def test_a_second_ctrl_c_stops_at_once_and_harms_nothing(tmp_path, finished_run, monkeypatch):
    """The second one comes while a checkpoint takes the place of another."""

    def interrupted(target, write):
        if target.name == "step-4":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        replace_folder(target, write)

    monkeypatch.setattr("polewise.training.checkpoint.replace_folder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(small_run(), tmp_path / "run", console=quiet())
    monkeypatch.undo()
    resume(tmp_path / "run", console=quiet())
    assert have_equal_parameters(tmp_path / "run", finished_run)


# A swap flushes what is new, moves the old away and the new in, and flushes that.
@pytest.mark.parametrize(
    ("operation", "number", "left"),
    [("fsync", n, "old" if n < 4 else "new") for n in (1, 2, 3, 4)]
    + [("rename", n, "old") for n in (1, 2)],
)
def test_ctrl_c_in_the_middle_of_a_swap_leaves_the_old_or_the_new(
    operation, number, left, tmp_path, monkeypatch
):
    target = tmp_path / "model"
    replace_folder(target, lambda path: (path / "weights").write_text("old"))
    do, count = getattr(os, operation), itertools.count(1)

    def interrupt(*arguments):
        if next(count) == number:
            raise KeyboardInterrupt
        do(*arguments)

    monkeypatch.setattr(os, operation, interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(target, lambda path: (path / "weights").write_text("new"))
    monkeypatch.undo()
    assert (target / "weights").read_text() == left
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_evaluation_that_a_stop_left_out_is_made_up_for(tmp_path, finished_run):
    train(small_run(task_of(Stopping, at=2)), tmp_path / "run", console=quiet())
    assert not [r for r in untimed_metrics(tmp_path / "run") if r["kind"] == "eval"]
    resume(tmp_path / "run", console=quiet())
    assert untimed_metrics(tmp_path / "run") == untimed_metrics(finished_run)


class StoppingInEvaluation(RecallTask):
    """Someone sends SIGTERM before the last batch of the first evaluation."""

    asked: ClassVar[list[int]] = []

    def eval_batches(self):
        *first, last = super().eval_batches()
        yield from first
        if not self.asked:
            self.asked.append(os.kill(os.getpid(), signal.SIGTERM))
        yield last


@pytest.mark.parametrize("steps", [{}, {"evaluate_every": 6}], ids=["in the middle", "at the end"])
def test_an_evaluation_that_a_stop_cut_short_is_made_up_for(steps, tmp_path):
    train(small_run(**steps), tmp_path / "whole", console=quiet())
    StoppingInEvaluation.asked.clear()
    task = StoppingInEvaluation(**TASK)
    stopped = train(small_run(task, **steps), tmp_path / "run", console=quiet())
    assert (stopped.status, stopped.metrics) == ("interrupted", {})
    assert not [r for r in untimed_metrics(tmp_path / "run") if r["kind"] == "eval"]
    assert resume(tmp_path / "run", console=quiet()).status == "finished"
    assert untimed_metrics(tmp_path / "run") == untimed_metrics(tmp_path / "whole")
    assert have_equal_parameters(tmp_path / "run", tmp_path / "whole")


def test_where_an_evaluation_fails_the_run_is_saved_and_begins_with_it(tmp_path, finished_run):
    class Failing(RecallTask):
        def eval_batches(self):
            raise ValueError("the held-out part is gone")

    with pytest.raises(ValueError, match="the held-out part is gone"):
        train(small_run(Failing(**TASK)), tmp_path / "run", console=quiet())
    assert (tmp_path / "run/checkpoints/step-3").is_dir()
    resume(tmp_path / "run", console=quiet())
    assert untimed_metrics(tmp_path / "run") == untimed_metrics(finished_run)


def test_made_up_for_and_killed_before_the_next_checkpoint_it_is_logged_once(
    tmp_path, finished_run, monkeypatch
):
    train(small_run(task_of(Stopping, at=2)), tmp_path / "run", console=quiet())
    with monkeypatch.context() as patched:
        patched.setattr(Session, "take_batches", _die)
        with pytest.raises(MemoryError):
            resume(tmp_path / "run", console=quiet())
    assert [r["kind"] for r in untimed_metrics(tmp_path / "run")][-1] == "eval"
    resume(tmp_path / "run", console=quiet())
    assert untimed_metrics(tmp_path / "run") == untimed_metrics(finished_run)


def _die(*_):
    raise MemoryError


def test_stopped_where_its_target_was_reached_a_run_ends_there_too(tmp_path):
    whole = train(small_run(stop_at=0.0), tmp_path / "whole", console=quiet())
    assert (whole.status, whole.step) == ("reached", 3)
    task = task_of(Stopping, at=2)
    stopped = train(small_run(task, stop_at=0.0), tmp_path / "run", console=quiet())
    assert (stopped.status, stopped.step) == ("interrupted", 3)
    again = resume(tmp_path / "run", console=quiet())
    assert (again.status, again.step) == ("reached", 3)
    assert have_equal_parameters(tmp_path / "run", tmp_path / "whole")
    assert untimed_metrics(tmp_path / "run") == untimed_metrics(tmp_path / "whole")
