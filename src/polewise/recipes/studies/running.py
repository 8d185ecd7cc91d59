"""Run what is missing of a study, one run after another or several side by side."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils import gather_object
from rich.console import Console

from polewise.options import require_at_least
from polewise.recipes.studies.results import Results
from polewise.recipes.studies.study import Study, Trial
from polewise.recipes.studies.trial_run import has_outcome, processes, read_row, run_trial
from polewise.training import RunFolder
from polewise.training.display import format_seconds, print_line
from polewise.training.errors import FolderInUseError, TrainingError
from polewise.training.stopping import StopRequest, stop_requests

_IN_USE = 75
"""How a process ends whose run another study was quicker to begin."""
_CANNOT_GO_ON = 74
"""How a process ends that could not write or got no data, as no other could."""
_MOST_HOURS = 100_000


@dataclass(frozen=True, kw_only=True)
class StudyOutcome:
    """How a call of `run_study` ended."""

    status: Literal["ended", "interrupted", "out of time"]
    """Every run has been tried; someone asked to stop; `max_hours` are over."""
    results: Path
    """The results file."""
    num_done: int
    """Runs of the study that are done by now."""
    num_left: int
    """Runs that are not done, among those that `only` asks for."""
    failed: tuple[str, ...] = ()
    """Runs that broke off, for want of memory say. The next call goes on with them."""
    signal: int | None = None
    """The signal that asked to stop."""


def run_study(
    study: Study,
    *,
    out: Path,
    results: Path,
    only: str = "*",
    max_hours: float | None = None,
    jobs: int = 1,
    console: Console | None = None,
) -> StudyOutcome:
    """Run what is missing, and write the results file after every run.

    A run is missing unless the results file or its folder says that it is done, with the options
    it has now. Ctrl-C and SIGTERM save the run in progress; the next call goes on with it.

    Args:
        study: the study.
        out: folder of the run folders, one per run.
        results: the results file; what is in it already stays.
        only: pattern of run names, such as `*/focus/*`; a whole name runs that one run, whether or
            not its rate is the best.
        max_hours: stop after so many hours, saving the run in progress.
        jobs: runs side by side, each in a process of its own with one thread. 1 runs in this
            process, with all threads, also under `accelerate launch`.
        console: where to say what happens.

    Raises:
        ValueError: `only` matches no run, data are missing, a folder holds something else, or
            `jobs` or `max_hours` will not do.
        SaveError, StalledError: as for `train`; what was done before is kept.
    """
    _require_fair(study, jobs)
    ledger = _Ledger(study, out, Results(study, results), only, console or Console())
    _require_alike(ledger, jobs)
    _require_data(ledger)
    if max_hours is not None and not 0 <= max_hours <= _MOST_HOURS:
        raise ValueError(f"max_hours must be between 0 and {_MOST_HOURS:,}; got {max_hours}.")
    deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
    with stop_requests() as stop:
        if jobs == 1:
            with _stops_at(deadline):
                asked = _run_one_after_another(ledger, stop)
        else:
            asked = _run_side_by_side(ledger, jobs, deadline, stop)
    late = deadline is not None and time.monotonic() >= deadline
    left = len(ledger.left()) + len(ledger.to_come())
    return StudyOutcome(
        status="ended" if asked is None else "out of time" if late else "interrupted",
        results=results,
        num_done=len(ledger.results.rows),
        num_left=left,
        failed=tuple(ledger.failed),
        signal=None if late else asked,
    )


@dataclass
class _Ledger:
    """What is done, what is left, and how long that will take."""

    study: Study
    out: Path
    results: Results
    only: str
    console: Console
    failed: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    work_done: float = 0.0

    def __post_init__(self) -> None:
        names = [trial.name for trial in self.study.trials()]
        if not any(fnmatchcase(name, self.only) for name in names):
            raise ValueError(
                f"only must match a run of {self.study.name}, such as {names[0]}; got "
                f"{self.only!r}. `polewise study {self.study.name} --list` lists them."
            )
        if outdated := self.results.outdated:
            self.say(
                f"{len(outdated)} rows of {self.results.path} have other options than the study "
                f"has now and will be dropped, such as {outdated[0]}"
            )
        # Runs that another call has finished, or this one before its results were written.
        known = set(self.results.rows)
        for trial in self.study.trials():
            if trial.name not in known and has_outcome(trial, self.path(trial)):
                self.results.add(read_row(self.study, trial, self.path(trial)))
        if found := sorted(set(self.results.rows) - known):
            self.say(f"{len(found)} runs of {self.out} were done already, such as {found[0]}")
            if processes().is_main_process:
                self.results.write()

    def path(self, trial: Trial) -> Path:
        return self.out / trial.name

    def left(self) -> list[Trial]:
        """Runs that are asked for, missing, and whose rate is known by now."""
        measured = self.results.measured()
        exact = [trial for trial in self.study.trials() if trial.name == self.only]
        if exact:
            return [trial for trial in exact if trial.name not in measured]
        return [
            trial
            for trial in self.study.open_trials(measured)
            if fnmatchcase(trial.name, self.only)
        ]

    def to_come(self) -> list[Trial]:
        """Stand-ins for runs that are asked for and whose rate is not known yet."""
        if any(trial.name == self.only for trial in self.study.trials()):
            return []
        coming = self.study.trials_to_come(self.results.measured())
        return [trial for trial in coming if fnmatchcase(trial.name, self.only)]

    def next(self) -> Trial | None:
        """Return the next run to begin with; one that another process trains is left to it."""
        tried = {*self.failed, *self.running}
        for trial in self.left():
            if trial.name not in tried and not RunFolder(self.path(trial)).is_in_use():
                return trial
        return None

    def record(self, trial: Trial) -> None:
        """Take in a run that is done, write the results, and say how far it all is."""
        row = read_row(self.study, trial, self.path(trial))
        self.results.add(row)
        if not processes().is_main_process:
            return
        self.results.write()
        self.work_done += _work(trial)
        headline = trial.comparison.task.headline
        what = (
            f"{headline.replace('_', ' ')} {row['metrics'][headline]:.4g}"
            if row["status"] == "done"
            else "diverged"
        )
        left = [*self.left(), *self.to_come()]
        rate = (time.monotonic() - self.began) / self.work_done
        remaining = format_seconds(rate * sum(map(_work, left)))
        self.say(f"{trial.name}: {what}. {len(left)} to do, about {remaining}")

    def fail(self, trial: Trial, why: str) -> None:
        """Put down that a run broke off, and leave it to the next call."""
        self.failed.append(trial.name)
        self.say(f"{trial.name}: broke off: {why}")

    def say(self, line: str) -> None:
        if processes().is_main_process:
            print_line(self.console, line)


def _run_one_after_another(ledger: _Ledger, stop: StopRequest) -> int | None:
    """Run in this process, or in all those that `accelerate launch` started."""
    while (asked := _agreed(stop.signal)) is None and (trial := _next_of_all(ledger)) is not None:
        try:
            asked = run_trial(trial, ledger.path(trial), ledger.console)
        except FolderInUseError:
            if processes().num_processes > 1:
                raise
            continue  # another process was quicker by a moment
        except (RuntimeError, MemoryError) as error:
            # A disk that is full ends all; a system that needs more memory than is here, itself.
            if isinstance(error, TrainingError) or processes().num_processes > 1:
                raise
            ledger.fail(trial, str(error) or type(error).__name__)
            continue
        if asked is not None:
            return asked
        ledger.record(trial)
    return asked


def _run_side_by_side(
    ledger: _Ledger, jobs: int, deadline: float | None, stop: StopRequest
) -> int | None:
    """Run in processes of their own, `jobs` at a time."""
    children: dict[int, tuple[BaseProcess, Trial]] = {}
    asked: int | None = None
    while True:
        if asked is None and deadline is not None and time.monotonic() >= deadline:
            asked = signal.SIGTERM
        elif asked is None:
            asked = stop.signal
        if asked is not None:
            for process, _ in children.values():
                process.terminate()
        for slot in range(jobs):
            if asked is None and slot not in children and (trial := ledger.next()) is not None:
                ledger.running.append(trial.name)
                children[slot] = _start(trial, ledger.path(trial), slot), trial
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
            elif process.exitcode == _CANNOT_GO_ON:
                for other, _ in children.values():
                    other.terminate()
                for other, _ in children.values():
                    other.join()
                raise TrainingError(f"{trial.name} could not go on; its message is above.")
            elif asked is None and process.exitcode != _IN_USE:
                ledger.fail(trial, f"its process ended with code {process.exitcode}")


def _start(trial: Trial, path: Path, slot: int) -> BaseProcess:
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
            target=_run_quietly, args=(_without_data(trial), path), daemon=True
        )
        process.start()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return process


def _without_data(trial: Trial) -> Trial:
    """The same run, its task without what it has read: open files do not go to another process."""
    comparison = trial.comparison
    return replace(trial, comparison=replace(comparison, task=replace(comparison.task)))


def _run_quietly(trial: Trial, path: Path) -> None:
    torch.set_num_threads(1)
    with stop_requests():  # while nothing trains, a request to stop waits for the next step
        try:
            run_trial(trial, path, Console(quiet=True))
        except FolderInUseError:
            sys.exit(_IN_USE)
        except TrainingError as error:
            print(f"{trial.name}: {error}", file=sys.stderr)
            sys.exit(_CANNOT_GO_ON)
        except ValueError as error:
            sys.exit(f"{trial.name}: {error}")


@contextmanager
def _stops_at(deadline: float | None) -> Iterator[None]:
    """Ask this process to stop when the time has come, as a scheduler would."""
    if deadline is None:
        yield
        return
    seconds = max(deadline - time.monotonic(), 0.0)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _agreed(asked: int | None) -> int | None:
    """Return what any of the processes was asked; they must all decide alike."""
    if processes().num_processes == 1:
        return asked
    return next((each for each in gather_object([asked]) if each is not None), None)


def _next_of_all(ledger: _Ledger) -> Trial | None:
    """Return the next run as the main process sees it: it alone reads what others add meanwhile."""
    trial = ledger.next()
    if processes().num_processes == 1:
        return trial
    name = gather_object([None if trial is None else trial.name])[0]
    return next((each for each in ledger.study.trials() if each.name == name), None)


def _work(trial: Trial) -> float:
    """How much a run is, in units that only compare runs of one study."""
    comparison, training = trial.comparison, trial.run.training
    if comparison.expected_seconds is not None:
        return trial.share * comparison.expected_seconds
    if training.max_seconds is not None:
        return training.max_seconds
    spec = trial.run.task.spec
    return float(training.max_steps or 0) * trial.run.task.batch_size * spec.length


def _require_data(ledger: _Ledger) -> None:
    """Raise ValueError where a run would find its data missing, before hours of others."""
    coming = {trial.comparison.name: trial for trial in (*ledger.left(), *ledger.to_come())}
    for trial in coming.values():
        _without_data(trial).comparison.task.prepare()


def _require_fair(study: Study, jobs: int) -> None:
    gpus = torch.cuda.device_count()
    places = gpus or _usable_cores()
    require_at_least("jobs", jobs, 1)
    timed = [each.name for each in study.comparisons if each.training.max_seconds is not None]
    if timed and jobs > places:
        what = "GPUs" if gpus else "cores"
        raise ValueError(
            f"jobs must be at most {places}, the {what} that this process may use: {timed[0]} has "
            f"a budget in seconds, which runs that share one would not have equally; got {jobs}."
        )


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _require_alike(ledger: _Ledger, jobs: int) -> None:
    """Raise ValueError where runs would have more, or less, than those they are compared with:
    batches, or threads where the budget is in seconds."""
    threads = 1 if jobs > 1 else torch.get_num_threads()
    coming = [trial.comparison for trial in (*ledger.left(), *ledger.to_come())]
    names = {each.name for each in coming}
    timed = {each.name for each in coming if each.training.max_seconds is not None}
    for row in ledger.results.rows.values():
        together = row.get("num_processes", 1)
        if row["comparison"] in names and together != processes().num_processes:
            raise ValueError(
                f"each run must be trained by {together} process(es), as those of "
                f"{row['comparison']} in {ledger.results.path} were, for each draws batches of its "
                f"own; got {processes().num_processes}. Start as many, or choose another --out."
            )
        machine = row["environment"].get("vector_instructions")  # older rows do not say
        here = torch.backends.cpu.get_cpu_capability()
        if row["comparison"] in timed and machine not in (None, here):
            raise ValueError(
                f"a budget in seconds buys other steps on another machine: those of "
                f"{row['comparison']} in {ledger.results.path} had {machine}, this one has {here}. "
                "Choose another --out."
            )
        before = row["environment"]["num_threads"]
        if row["comparison"] in timed and before != threads:
            how = "--jobs 2" if before == 1 else "--jobs 1"
            raise ValueError(
                f"jobs must give every run {before} thread(s), as those of {row['comparison']} in "
                f"{ledger.results.path} had, for their budget is in seconds; got {threads}. Choose "
                f"{how} with OMP_NUM_THREADS={before}, or another --out."
            )
