"""Run what is missing of a study, one run after another or several side by side."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from accelerate.utils import gather_object
from rich.console import Console

from polewise.options import TooLargeError
from polewise.recipes.studies.equal_terms import require_alike, require_places
from polewise.recipes.studies.ledger import Ledger
from polewise.recipes.studies.results import Results
from polewise.recipes.studies.side_by_side import run_side_by_side
from polewise.recipes.studies.study import Study, Trial
from polewise.recipes.studies.trial_run import processes, run_trial
from polewise.tasks import on_test_part
from polewise.training.errors import FolderInUseError, TrainingError
from polewise.training.stopping import StopRequest, stop_requests

_MOST_HOURS = 100_000


@dataclass(frozen=True, kw_only=True)
class StudyOutcome:
    """How a call of `run_study` ended."""

    status: Literal["ended", "interrupted", "out of time"]
    """Nothing more could be begun; someone asked to stop; `max_hours` are over."""
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

    @property
    def exit_code(self) -> int:
        """For a command: 0 done, 1 where a run broke off, 128 + N stopped by signal N."""
        return int(bool(self.failed)) if self.signal is None else 128 + self.signal


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
    require_places(study, jobs)
    if max_hours is not None and not 0 <= max_hours <= _MOST_HOURS:
        raise ValueError(f"max_hours must be between 0 and {_MOST_HOURS:,}; got {max_hours}.")
    ledger = Ledger.open(study, out, Results(study, results), only, console or Console())
    require_alike(ledger, jobs)
    _require_data(ledger)
    deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
    with stop_requests() as stop:
        if jobs == 1:
            with _stops_at(deadline):
                asked = _run_one_after_another(ledger, stop)
        else:
            asked = run_side_by_side(ledger, jobs, deadline, stop)
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


def _run_one_after_another(ledger: Ledger, stop: StopRequest) -> int | None:
    """Run in this process, or in all those that `accelerate launch` started."""
    while (asked := _agreed(stop.signal)) is None and (trial := _next_of_all(ledger)) is not None:
        try:
            asked = run_trial(trial, ledger.path(trial), ledger.console)
        except FolderInUseError:
            if processes().num_processes > 1:
                raise
            continue  # another process was quicker by a moment
        except (RuntimeError, MemoryError, TooLargeError) as error:
            # A disk that is full ends all; a system that needs more memory than is here, itself.
            if isinstance(error, TrainingError) or processes().num_processes > 1:
                raise
            ledger.fail(trial, str(error) or type(error).__name__)
            continue
        if asked is not None:
            return asked
        ledger.record(trial)
    return asked


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


def _next_of_all(ledger: Ledger) -> Trial | None:
    """Return the next run as the main process sees it: it alone reads what others add meanwhile."""
    trial = ledger.next()
    if processes().num_processes == 1:
        return trial
    name = gather_object([None if trial is None else trial.name])[0]
    return next((each for each in ledger.study.trials() if each.name == name), None)


def _require_data(ledger: Ledger) -> None:
    """Raise ValueError where a run would find its data missing, before hours of others."""
    trials = sorted((*ledger.left(), *ledger.to_come()), key=lambda trial: trial.share)
    coming = {trial.comparison.name: trial for trial in trials}  # a whole one, if any
    for trial in coming.values():
        task = trial.without_data().comparison.task
        task.prepare()
        if trial.share == 1 and (test := on_test_part(task)) is not None:
            test.prepare()
