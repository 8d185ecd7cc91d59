"""What of a study is done, what is left, and how long that will take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from rich.console import Console

from polewise.recipes.studies.results import Results
from polewise.recipes.studies.study import Study, Trial
from polewise.recipes.studies.trial_run import has_outcome, processes, read_row
from polewise.training import RunFolder
from polewise.training.display import format_seconds, print_line


@dataclass
class Ledger:
    """The runs of one call of `run_study`, those of its results file, and those of its folder."""

    study: Study
    out: Path
    results: Results
    only: str
    console: Console
    failed: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    work_done: float = 0.0

    @classmethod
    def open(cls, study: Study, out: Path, results: Results, only: str, console: Console) -> Ledger:
        """Begin with what the results file has, and take in what the folder has beside it.

        Raises:
            ValueError: `only` matches no run.
        """
        study.require_match(only)
        ledger = cls(study, out, results, only, console)
        if outdated := results.outdated:
            ledger.say(
                f"{len(outdated)} rows of {results.path} have other options than the study has now "
                f"and will be dropped, such as {outdated[0]}"
            )
        ledger._take_in_finished_runs()
        return ledger

    def _take_in_finished_runs(self) -> None:
        """Those of another call, or of this one before its results were written."""
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


def _work(trial: Trial) -> float:
    """How much a run is, in units that only compare runs of one study."""
    comparison, training = trial.comparison, trial.run.training
    if comparison.expected_seconds is not None:
        return trial.share * comparison.expected_seconds
    if training.max_seconds is not None:
        return training.max_seconds
    spec = trial.run.task.spec
    return float(training.max_steps or 0) * trial.run.task.batch_size * spec.length
