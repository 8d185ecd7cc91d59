"""Runs side by side, each in a process of its own with one thread."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from rich.console import Console

from polewise.options import TooLargeError
from polewise.recipes.studies.ledger import Ledger
from polewise.recipes.studies.study import Trial
from polewise.recipes.studies.trial_run import has_outcome, run_trial
from polewise.training.errors import FolderInUseError, TrainingError
from polewise.training.stopping import StopRequest, stop_requests

MISTAKE = 2
"""How a process ends whose folder, options or data will not do."""
CANNOT_GO_ON = 74
"""How one ends that could not write or got no data, as no other could."""
IN_USE = 75
"""How one ends whose run another study was quicker to begin."""


def run_side_by_side(
    ledger: Ledger, jobs: int, deadline: float | None, stop: StopRequest
) -> int | None:
    """Run what is missing, `jobs` at a time; return the signal that asked to stop.

    Whatever ends this early, Ctrl-C twice or a folder that will not do, stops the processes too:
    each saves its run.
    """
    children: dict[int, tuple[BaseProcess, Trial]] = {}
    try:
        return _run(children, ledger, jobs, deadline, stop)
    finally:
        for process, _ in children.values():
            process.terminate()
        for process, _ in children.values():
            process.join()


def _run(
    children: dict[int, tuple[BaseProcess, Trial]],
    ledger: Ledger,
    jobs: int,
    deadline: float | None,
    stop: StopRequest,
) -> int | None:
    asked: int | None = None
    while True:
        if asked is None:
            late = deadline is not None and time.monotonic() >= deadline
            asked = signal.SIGTERM if late else stop.signal
        if asked is not None:
            for process, _ in children.values():
                process.terminate()
        for slot in range(jobs):
            if asked is None and slot not in children and (trial := ledger.next()) is not None:
                ledger.running.append(trial.name)
                children[slot] = start(trial, ledger.path(trial), slot), trial
        if not children:
            return asked
        wait([process.sentinel for process, _ in children.values()], timeout=1.0)
        for slot, (process, trial) in list(children.items()):
            if process.is_alive():
                continue
            del children[slot]
            ledger.running.remove(trial.name)
            if has_outcome(trial, ledger.path(trial)):
                ledger.record(trial)
            elif process.exitcode == CANNOT_GO_ON:
                raise TrainingError(f"{trial.name} could not go on; its message is above.")
            elif process.exitcode == MISTAKE:
                raise ValueError(f"{trial.name} could not begin or go on; its message is above.")
            elif asked is None and process.exitcode != IN_USE:
                ledger.fail(trial, f"its process ended with code {process.exitcode}")


def start(trial: Trial, path: Path, slot: int) -> BaseProcess:
    """Start a run in a process of one thread; on a machine with GPUs, each slot has its own."""
    changed = {"OMP_NUM_THREADS": "1"}
    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(gpus)]
        changed["CUDA_VISIBLE_DEVICES"] = names[slot % gpus]
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        # Spawned: a fork would inherit the threads of OpenMP, half alive.
        process = multiprocessing.get_context("spawn").Process(
            target=_run_quietly, args=(trial.without_data(), path), daemon=True
        )
        process.start()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return process


def _run_quietly(trial: Trial, path: Path) -> None:
    torch.set_num_threads(1)
    with stop_requests():  # while nothing trains, a request to stop waits for the next step
        try:
            asked = run_trial(trial, path, Console(quiet=True))
        except FolderInUseError:
            sys.exit(IN_USE)
        except TrainingError as error:
            print(f"{trial.name}: {error}", file=sys.stderr)
            sys.exit(CANNOT_GO_ON)
        except ValueError as error:
            print(f"{trial.name}: {error}", file=sys.stderr)
            # Others may fit where one is too large.
            sys.exit(1 if isinstance(error, TooLargeError) else MISTAKE)
        except KeyboardInterrupt:  # the second Ctrl-C
            sys.exit(128 + signal.SIGINT)
    if asked is not None:
        sys.exit(128 + asked)
