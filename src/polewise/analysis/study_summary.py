"""What the rows of a study say together: mean and spread over seeds, and what is missing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from polewise.tasks import best_of

Row = Mapping[str, Any]
"""A run in a results file: see `polewise.recipes.studies.results`."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A measure over the seeds of a system."""

    values: tuple[float, ...]
    """One per seed, at least one."""

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    def describe(self, measure: str) -> str:
        """Return the mean, and lowest to highest where there are several."""
        text = format_measure(measure, self.mean)
        if len(self.values) > 1:
            low, high = (format_measure(measure, each(self.values)) for each in (min, max))
            text += f" ({low} to {high})"
        return text


@dataclass(frozen=True, kw_only=True)
class SystemSummary:
    """What a system has reached in a comparison, at one rate."""

    system: str
    """Its name."""
    grid: dict[float, float | None]
    """Headline metric of each rate that was tried; None where the run diverged."""
    learning_rate: float | None
    """The best of them; None if there is none."""
    is_chosen: bool = True
    """Whether the grid chose that rate. Else a short grid chose another, or is not complete, and
    these runs were asked for by name."""
    runs: tuple[Row, ...]
    """The runs of the whole budget at that rate that came to its end, one per seed."""
    num_diverged: int = 0
    """How many others there were: their loss or last figure is NaN or infinite."""
    missing: str = ""
    """What has not been run yet; empty if nothing."""

    def spread(self, measure: str, part: str = "metrics") -> Spread | None:
        """Return a metric over the seeds; None where there is none."""
        parts = [row.get(part) or {} for row in self.runs]
        values = [each[measure] for each in parts if measure in each]
        return Spread(values=tuple(values)) if values else None

    def median(self, name: str) -> float | None:
        """Return the median of a value of the runs, such as `steps`; None where one lacks it."""
        values = [row.get(name) for row in self.runs]
        known = [value for value in values if value is not None]
        return statistics.median(known) if known and len(known) == len(values) else None


def is_of_cost(comparison: Mapping[str, Any]) -> bool:
    """Whether it shows what a step takes, and learns nothing."""
    return comparison.get("subject") == "cost"


def summarize(comparison: Mapping[str, Any], rows: list[Row]) -> list[SystemSummary]:
    """Return what every system of a comparison has reached at the rate that its grid chose, and at
    others where a short grid was overruled: the best first, those of which a seed diverged after
    the others, those without runs last."""
    mine = [row for row in rows if row["comparison"] == comparison["name"]]
    by_system = {
        name: [row for row in mine if row["system"] == name] for name in comparison["systems"]
    }
    summaries = [_summarize_system(comparison, *each) for each in by_system.items()]
    overruled = [
        other
        for summary in summaries
        for other in _other_rates(comparison, summary, by_system[summary.system])
    ]
    headline, sign = comparison["headline"], -1 if comparison["higher_is_better"] else 1

    def first(summary: SystemSummary) -> float:
        """What it reached with seed 0."""
        values = [row["metrics"][headline] for row in summary.runs if row["seed"] == 0]
        return sign * values[0] if values else math.inf

    finalists = comparison.get("num_finalists")
    summaries = sorted(summaries, key=first)
    for number, summary in enumerate(summaries):
        goes_on = finalists is None or (number < finalists and bool(summary.runs))
        missing = _missing(comparison, summary, is_finalist=goes_on)
        summaries[number] = replace(summary, missing=missing)

    def place(summary: SystemSummary) -> tuple[bool, bool, float]:
        spread, diverged = summary.spread(headline), summary.num_diverged > 0
        value = math.inf if spread is None else sign * spread.mean
        return spread is None and not diverged, diverged, value

    return sorted([*summaries, *overruled], key=place)


def format_measure(measure: str, value: float) -> str:
    """Return a value in the unit in which people read it: accuracies in percent, with as many
    digits as tell them from all."""
    if "accuracy" not in measure:
        return f"{value:.3f}"
    if not value < 1:
        return f"{100 * value:.1f} %"
    shown = (f"{100 * value:.{digits}f}" for digits in (1, 2, 3, 4))
    return next((each for each in shown if float(each) < 100), "100.0") + " %"


def _summarize_system(comparison: Mapping[str, Any], name: str, rows: list[Row]) -> SystemSummary:
    headline = comparison["headline"]
    share, rates = comparison["grid_share"], comparison["learning_rates"]
    tried = {
        row["learning_rate"]: row
        for row in rows
        if row["seed"] == 0 and row["share"] == share and row["learning_rate"] in rates
    }
    grid = {
        rate: row["metrics"][headline] if row["status"] == "done" else None
        for rate, row in tried.items()
    }
    finite = {
        rate: (value, tried[rate]["steps"]) for rate, value in grid.items() if value is not None
    }
    best = best_of(finite, higher_is_better=comparison["higher_is_better"])
    return _whole_runs(best, rows, system=name, grid=grid)


def _other_rates(
    comparison: Mapping[str, Any], chosen: SystemSummary, rows: list[Row]
) -> list[SystemSummary]:
    """Whole runs at rates that a grid of shorter ones did not choose."""
    if comparison["grid_share"] == 1:
        return []  # all of the grid is whole
    others = {row["learning_rate"] for row in rows if row["share"] == 1} - {chosen.learning_rate}
    return [
        _whole_runs(rate, rows, system=chosen.system, grid=chosen.grid, is_chosen=False)
        for rate in sorted(others)
    ]


def _whole_runs(rate: float | None, rows: list[Row], **known: Any) -> SystemSummary:
    """What the runs of the whole budget at a rate have come to."""
    whole = [row for row in rows if row["learning_rate"] == rate and row["share"] == 1]
    done = tuple(row for row in whole if row["status"] == "done")
    return SystemSummary(
        learning_rate=rate, runs=done, num_diverged=len(whole) - len(done), **known
    )


def _missing(comparison: Mapping[str, Any], summary: SystemSummary, *, is_finalist: bool) -> str:
    rates, missing = len(comparison["learning_rates"]), []
    if len(summary.grid) < rates:
        missing.append(f"{rates - len(summary.grid)} of {rates} rates")
    seeds = comparison["num_seeds"] if is_finalist else 1
    seen = len(summary.runs) + summary.num_diverged
    if summary.learning_rate is not None and seen < seeds:
        missing.append(f"{seeds - seen} of {seeds} seeds")
    return ", ".join(missing)
