"""The results file of a study: one JSON, rewritten whole after every run.

    study, size, question
    comparisons     name, headline, systems, learning rates, seeds, budget, note, subject
    mean_over       those of them whose mean is reported
    environments    versions and machines, each once
    rows            one per run that is done: options, cost, metrics, curve, command

What is missing follows from `comparisons` and `rows`. A row counts as long as its options are still
those of the study and its model has as many parameters as it would have now; so a study goes on
from its results file alone, on another machine too.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from polewise.recipes.studies.study import Comparison, Measured, Study
from polewise.recipes.studies.trial_run import is_as_large, is_of
from polewise.replace_file import replace_file
from polewise.training.durable import clear_up
from polewise.training.errors import explained_saving
from polewise.training.locks import alone_in

FORMAT = 1
_COMPARISON = (
    "name", "note", "headline", "higher_is_better", "systems", "learning_rates", "num_seeds",
    "grid_share", "max_steps", "max_seconds", "stop_at",
)  # fmt: skip
_ROW = (
    "run", "comparison", "system", "learning_rate", "seed", "share", "status", "configuration",
    "curve", "command",
)  # fmt: skip
_MACHINE = ("processor", "num_cores", "gpus", "num_threads", "versions", "git_commit")


class Results:
    """The rows of a study, and the file they are in."""

    def __init__(self, study: Study, path: Path) -> None:
        self.study, self.path = study, path
        self.rows: dict[str, dict[str, Any]] = {}
        self.outdated: list[str] = []
        """Rows that the file had and that are not of the study as it is now; the next writing drops
        them."""
        self._of_others: dict[str, dict[str, Any]] = {}
        """Such rows that came since, of another process, whose study may be the newer one: kept."""
        self.read()
        self.outdated, self._of_others = list(self._of_others), {}

    def read(self) -> None:
        """Take in the rows of the file that are not known yet: its own, or another process's."""
        if not self.path.exists():
            return
        trials = {trial.name: trial for trial in self.study.trials()}
        found = read_results(self.path)
        if (found["study"], found["size"]) != (self.study.name, self.study.size):
            raise ValueError(
                f"results must be those of study {self.study.name}, size {self.study.size}; "
                f"{self.path} holds those of {found['study']}, size {found['size']}."
            )
        for row in found["rows"]:
            name = row["run"]
            row.pop("of_another_study", None)
            if name in self.rows:
                continue
            trial = trials.get(name)
            if (
                trial is not None
                and is_of(row["configuration"], trial.run)
                and is_as_large(row.get("parameters"), trial.run)
            ):
                self.rows[name] = row
            elif name not in self.outdated:
                self._of_others[name] = row

    def measured(self) -> dict[str, Measured]:
        """Return what every run that is done has reached, by name."""
        headlines = {each.name: each.task.headline for each in self.study.comparisons}
        return {
            name: Measured(row["metrics"][headlines[row["comparison"]]], row["steps"])
            if row["status"] == "done"
            else Measured(math.nan, 0)
            for name, row in self.rows.items()
        }

    def add(self, row: dict[str, Any]) -> None:
        """Take in a run that is done."""
        self.rows[row["run"]] = row

    def write(self) -> None:
        """Replace the file, whole or not at all, with the rows that others have added meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with alone_in(self.path.parent) as alone:
            if alone:
                clear_up(self.path.parent, re.escape(self.path.name))
            self.read()
            with explained_saving("the results", self.path, "run the study again"):
                replace_file(self.path, json.dumps(self._describe(), indent=1) + "\n")

    def _describe(self) -> dict[str, Any]:
        order = [trial.name for trial in self.study.trials() if trial.name in self.rows]
        known = self._of_others | self.rows
        environments: list[Any] = []
        rows = []
        for name in dict.fromkeys((*order, *known)):
            row = dict(known[name])
            if name not in self.rows:
                row["of_another_study"] = True  # not what `comparisons` describe
            environment = row.pop("environment")
            if environment not in environments:
                environments.append(environment)
            rows.append({**row, "environment": environments.index(environment)})
        return {
            "format": FORMAT,
            "study": self.study.name,
            "size": self.study.size,
            "question": self.study.question,
            "comparisons": [_describe(each) for each in self.study.comparisons],
            "mean_over": self.study.mean_over,
            "environments": environments,
            "rows": rows,
        }


def read_results(path: Path) -> dict[str, Any]:
    """Return a results file, every row with its own environment.

    Raises:
        ValueError: it is not the results file of a study.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']} is not {FORMAT}")
        _require("the file", values, "study", "size", "question", "comparisons", "rows")
        headlines = {}
        for comparison in values["comparisons"]:
            _require("a comparison", comparison, *_COMPARISON)
            _require_kind("learning_rates", comparison["learning_rates"], list)
            headlines[comparison["name"]] = comparison["headline"]
        for row in values["rows"]:
            _require_kind("environment", row["environment"], int)
            if row["environment"] < 0:
                raise ValueError("environment must be the number of one")
            row["environment"] = values["environments"][row["environment"]]
            _require_row(row, headlines)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f"results must be the results file of a study; {path}: {error!r}."
        ) from error
    return values


def _require_row(row: Any, headlines: dict[str, str]) -> None:
    _require("a row", row, *_ROW)
    _require(f"the machine of {row['run']}", row["environment"], *_MACHINE)
    _require_kind("curve", row["curve"], list)
    for point in row["curve"]:
        _require("a point of a curve", point, "step")
    _require_kind("parameters", row.get("parameters"), int | None)
    if row["status"] == "done":
        _require(row["run"], row, "metrics", "steps")
        _require_kind("steps", row["steps"], int)
        # A row of another version of the study may be of a comparison that is no more.
        if headline := headlines.get(row["comparison"]):
            _require(f"metrics of {row['run']}", row["metrics"], headline)
        _require_kind("metrics", row["metrics"], dict)
        for name, value in row["metrics"].items():
            _require_kind(name, value, int | float)


def _require_kind(name: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {getattr(kind, '__name__', kind)}, not {value!r:.60}")


def _require(what: str, part: Any, *names: str) -> None:
    if not isinstance(part, dict):
        raise ValueError(f"{what} must be an object")
    if missing := [name for name in names if name not in part]:
        raise ValueError(f"{what} must have {missing[0]!r}")


def _describe(comparison: Comparison) -> dict[str, Any]:
    training = comparison.training
    return {
        "name": comparison.name,
        "note": comparison.note,
        "headline": comparison.task.headline,
        "higher_is_better": comparison.task.higher_is_better,
        "systems": [system.name for system in comparison.systems],
        "learning_rates": list(comparison.learning_rates),
        "num_seeds": comparison.num_seeds,
        "num_finalists": comparison.num_finalists,
        "grid_share": comparison.grid_share,
        "max_steps": training.max_steps,
        "max_seconds": training.max_seconds,
        "stop_at": training.stop_at,
        "subject": comparison.subject,
    }
