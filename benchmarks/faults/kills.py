"""Runs that are killed, at random moments or before each of their file operations, and resumed."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmarks.faults.processes import started
from rich.console import Console
from safetensors.torch import load_file

from polewise.tasks import RecallTask
from polewise.training import ModelOptions, Run, RunFolder, TrainingOptions, resume, train
from polewise.training.checkpoint import list_checkpoints, verify_checkpoint

KILLED_RUN = Run(
    task=RecallTask(length=6, vocab_size=6, num_eval=8, batch_size=4),
    model=ModelOptions(mixer="attention", hidden_size=8, num_layers=1, dropout=0.1),
    training=TrainingOptions(
        max_steps=12, log_every=3, evaluate_every=4, checkpoint_every=2, accumulate=2
    ),
)
"""The run that is killed: small, and saving most of the time, so that kills hit the saving."""


def train_or_resume(folder: str, kill_at: int | None = None) -> None:
    """Train `KILLED_RUN` in `folder`, or go on with it; die before file operation `kill_at`."""
    torch.set_num_threads(1)
    if kill_at is not None:
        _die_before_operation(kill_at, folder)
    console = Console(quiet=True)
    if Path(folder).exists():
        resume(folder, console=console)
    else:
        train(KILLED_RUN, folder, console=console)


_OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


def _die_before_operation(number: int, folder: str) -> None:
    """Have the process killed before it does its so manieth thing to a file under `folder`."""
    left = [number]
    parts = (folder, str(Path(folder).with_name(f".{Path(folder).name}.")))

    def count(event: str, arguments: tuple) -> None:
        if event in _OPERATIONS and str(arguments[0]).startswith(parts):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


@dataclasses.dataclass
class Kills:
    """What became of the killed runs."""

    kills: int = 0
    hit_a_checkpoint: int = 0
    hit_a_model: int = 0
    before_the_first_checkpoint: int = 0
    most_steps_lost: int = 0
    runs: int = 0


def kill_at_random_moments(
    count: int, seed: int, folder: Path, step: Callable[[], object] = lambda: None
) -> Kills:
    """Kill runs `count` times in all; resume each until it is done, and check what is left.

    Raises:
        AssertionError: a run ended otherwise than one that nobody touched, a checkpoint is
            damaged, or more than one interval of work was lost.
    """
    chance = random.Random(seed)
    whole = folder / "whole"
    for place in (folder / "first", whole):  # the first one waits for the imports
        begin = time.perf_counter()
        with started(train_or_resume, str(place)) as process:
            process.join()
        seconds = time.perf_counter() - begin
    found = Kills()
    while found.kills < count:
        victim = folder / f"killed-{found.runs}"
        done = False
        while not done:
            with started(train_or_resume, str(victim)) as process:
                process.join(chance.uniform(0, seconds) if found.kills < count else None)
                done = process.exitcode == 0
                if not done:
                    process.kill()
            if not done:
                process.join()
                if process.exitcode == 0:  # it came to its end before the signal came to it
                    done = True
                    continue
                assert process.exitcode == -signal.SIGKILL, f"resume ended with {process.exitcode}"
                done = _is_complete(victim)  # killed between its last act and its end
                found.kills += 1
                _look_at_killed(victim, found)
                step()
        _require_equal(whole, victim)
        shutil.rmtree(victim)
        found.runs += 1
    return found


def kill_at_operations(
    numbers: Iterator[int], folder: Path, step: Callable[[], object] = lambda: None
) -> Kills:
    """Kill one run before each of these file operations; resume it and check what is left.

    Stops at the first number that a run does not reach.
    """
    whole = folder / "whole"
    with started(train_or_resume, str(whole)) as process:
        process.join()
    found = Kills()
    for number in numbers:
        victim = folder / f"killed-at-{number}"
        with started(train_or_resume, str(victim), number) as process:
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, process.exitcode
        found.kills += 1
        _look_at_killed(victim, found)
        if not _is_complete(victim):
            with started(train_or_resume, str(victim)) as process:
                process.join()
                assert process.exitcode == 0, f"resume ended with {process.exitcode}"
        _require_equal(whole, victim)
        shutil.rmtree(victim)
        found.runs += 1
        step()
    return found


def _look_at_killed(folder: Path, found: Kills) -> None:
    """Check what a killed process left, and note what it was killed at."""
    if not folder.exists():
        found.before_the_first_checkpoint += 1
        return
    checkpoints = list_checkpoints(folder / "checkpoints")
    for path in checkpoints:
        verify_checkpoint(path)
    left = [path.name for path in folder.rglob(".*") if path.is_dir()]
    found.hit_a_checkpoint += any(name.startswith(".step-") for name in left)
    found.hit_a_model += any(name.startswith(".model") for name in left)
    logged = max((record["step"] for record in RunFolder(folder).read_metrics()), default=0)
    saved = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
    found.before_the_first_checkpoint += not checkpoints
    found.most_steps_lost = max(found.most_steps_lost, logged - saved)
    assert logged - saved <= KILLED_RUN.training.checkpoint_every, (logged, saved)


def _is_complete(folder: Path) -> bool:
    return (folder / "checkpoints" / f"step-{KILLED_RUN.training.max_steps}").is_dir()


def _require_equal(whole: Path, other: Path) -> None:
    for name in ("model", "model-last"):
        a, b = (load_file(folder / name / "model.safetensors") for folder in (whole, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), f"{other}: {name} differs"
    logs = [
        [
            {k: v for k, v in record.items() if k not in ("seconds", "positions_per_second")}
            for record in RunFolder(folder).read_metrics()
        ]
        for folder in (whole, other)
    ]
    assert logs[0] == logs[1], f"{other}: the log differs"
