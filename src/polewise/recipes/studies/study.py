"""A study: a question, and every run that answers it.

    study        a question
    comparison   one task, one budget, the systems that learn it
    system       a name and a model
    trial        one run: system, learning rate, seed

Every system of a comparison gets the same data, budget and learning rates. Phase 1 trains each at
every rate of the grid with seed 0; phase 2 trains it at its best rate with the other seeds, or
the best few systems only. The best rate is that of the best headline metric on validation data,
among equals that of the fewest steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import isnan
from typing import Any, Literal, NamedTuple

from polewise.did_you_mean import did_you_mean
from polewise.options import require_at_least
from polewise.tasks import best_of
from polewise.training import ModelOptions, Run, TrainingOptions

Size = Literal["cpu", "gpu"]
Subject = Literal["learning", "cost"]
"""What runs are made for: what is learned, or what a step takes."""


class Measured(NamedTuple):
    """What a run that is done has reached."""

    value: float
    """The headline metric on validation data; NaN for a run that diverged."""
    steps: int
    """The steps it took."""


@dataclass(frozen=True, kw_only=True)
class System:
    """What learns: a name, unique in its comparison, and a model."""

    name: str
    """Name in tables and folders."""
    model: ModelOptions
    """The model."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One task that several systems learn on equal terms."""

    name: str
    """Name in tables and folders, unique in its study."""
    task: Any
    """The task: one of `polewise.tasks.TASKS`."""
    systems: tuple[System, ...]
    """Who takes part."""
    training: TrainingOptions
    """The budget and everything else but learning rate and seed, the same for all."""
    learning_rates: tuple[float, ...]
    """The grid, the same for all."""
    num_seeds: int = 1
    """Runs at the best rate, seeds 0, 1, ..."""
    num_finalists: int | None = None
    """Systems that get more than seed 0: so many, the best with seed 0. None: all."""
    grid_share: float = 1.0
    """Budget of a run of the grid, as a share of the whole. At 1 the grid's run at the best rate
    is also the run of seed 0."""
    expected_seconds: float | None = None
    """Seconds of one core for a whole run, evaluations included, to plan by; None where nobody has
    measured them."""
    subject: Subject = "learning"
    """What its runs show. A report leaves out what runs of cost have learned; where a study has no
    others, it names each by its length."""
    note: str = ""
    """What a reader of the table must know."""

    def __post_init__(self) -> None:
        for name in (self.name, *(system.name for system in self.systems)):
            if not name or set(name) & set("/*?[]") or name != name.strip("."):
                raise ValueError(f"name must be a plain folder name; got {name!r}.")
        _require_distinct("systems", [system.name for system in self.systems])
        _require_distinct("learning_rates", [f"{rate:g}" for rate in self.learning_rates])
        require_at_least("num_seeds", self.num_seeds, 1)
        if self.num_finalists is not None and not 0 < self.num_finalists <= len(self.systems):
            raise ValueError(
                f"num_finalists must lie in [1, {len(self.systems)}], the systems; got "
                f"{self.num_finalists}."
            )
        if not 0 < self.grid_share <= 1:
            raise ValueError(f"grid_share must lie in (0, 1]; got {self.grid_share}.")

    @property
    def num_trials(self) -> int:
        """Runs of both phases, of all systems."""
        firsts = 0 if self.grid_share == 1 else 1
        further = (self.num_finalists or len(self.systems)) * (self.num_seeds - 1)
        return len(self.systems) * (len(self.learning_rates) + firsts) + further

    @property
    def total_seconds(self) -> float | None:
        """What both phases of all systems take, by `expected_seconds`."""
        if self.expected_seconds is None:
            return None
        grid = len(self.systems) * len(self.learning_rates)
        share = grid * self.grid_share + self.num_trials - grid
        return share * self.expected_seconds


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a study."""

    comparison: Comparison
    """What it is part of."""
    system: System
    """Who learns."""
    learning_rate: float
    """At which rate."""
    seed: int
    """With which seed."""
    share: float
    """Share of the comparison's budget."""

    @property
    def name(self) -> str:
        """The run's name in its study, a path: COMPARISON/SYSTEM/rate-R-seed-S."""
        short = "-short" if self.share < 1 else ""
        run = f"rate-{self.learning_rate:g}-seed-{self.seed}{short}"
        return f"{self.comparison.name}/{self.system.name}/{run}"

    @property
    def run(self) -> Run:
        """The run, complete."""
        training, share = self.comparison.training, self.share
        steps, seconds = training.max_steps, training.max_seconds
        return Run(
            task=self.comparison.task,
            model=self.system.model,
            training=replace(
                training,
                learning_rate=self.learning_rate,
                seed=self.seed,
                max_steps=None if steps is None else max(round(share * steps), 1),
                max_seconds=None if seconds is None else share * seconds,
            ),
        )

    def without_data(self) -> Trial:
        """Return the same run, its task without what it has read: open files do not go to another
        process."""
        comparison = replace(self.comparison, task=replace(self.comparison.task))
        return replace(self, comparison=comparison)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question and the comparisons that answer it, at one size."""

    name: str
    """Its name on the command line."""
    size: Size
    """cpu: at most three hours on two cores in all. gpu: as large as a GPU allows."""
    question: str
    """What it asks, in a sentence."""
    comparisons: tuple[Comparison, ...]
    """In the order in which they are run."""
    mean_over: str = ""
    """Pattern of the comparisons whose mean says more than each, such as one for every speaker."""

    def __post_init__(self) -> None:
        _require_distinct("comparisons", [each.name for each in self.comparisons])

    @property
    def num_trials(self) -> int:
        """Runs in all."""
        return sum(each.num_trials for each in self.comparisons)

    @property
    def total_seconds(self) -> float | None:
        """Seconds of one core for all runs, by `expected_seconds`; None where one is not known."""
        seconds = [each.total_seconds for each in self.comparisons]
        known = [each for each in seconds if each is not None]
        return sum(known) if len(known) == len(seconds) else None

    def trials(self) -> Iterator[Trial]:
        """Yield every run that may ever be needed: the grid, and all seeds at every rate."""
        for comparison in self.comparisons:
            yield from grid_trials(comparison)
            for rate in comparison.learning_rates:
                for system in comparison.systems:
                    yield from seed_trials(comparison, system, rate)

    def require_match(self, only: str) -> None:
        """Check that a pattern matches the name of a run.

        Raises:
            ValueError: none; the nearest name is suggested.
        """
        names = [trial.name for trial in self.trials()]
        if not any(fnmatchcase(name, only) for name in names):
            raise ValueError(
                f"only must match a run of {self.name}, such as {names[0]}; got "
                f"{only!r}.{did_you_mean(only, names)}"
            )

    def open_trials(self, measured: Mapping[str, Measured]) -> list[Trial]:
        """Return the runs that are missing and whose rate is known by now, in their order.

        Args:
            measured: the runs that are done, by name.
        """
        trials: list[Trial] = []
        for comparison in self.comparisons:
            trials.extend(grid_trials(comparison))
            further: list[Trial] = []
            chosen = finalists(comparison, measured) or set()
            for system in comparison.systems:
                rate = best_rate(comparison, system, measured)
                if rate is not None:
                    seeds = seed_trials(comparison, system, rate)
                    further.extend(t for t in seeds if t.seed == 0 or system.name in chosen)
            trials.extend(sorted(further, key=lambda trial: trial.seed))
        return [trial for trial in trials if trial.name not in measured]

    def trials_to_come(self, measured: Mapping[str, Measured]) -> list[Trial]:
        """Return a stand-in, at the first rate, for every run whose rate or system is not known
        yet."""
        trials: list[Trial] = []
        for comparison in self.comparisons:
            rate = comparison.learning_rates[0]
            knows = finalists(comparison, measured) is not None
            for number, system in enumerate(comparison.systems):
                seeds = seed_trials(comparison, system, rate)
                waits = not _has_grid(comparison, system, measured)
                # Seed 0 waits for the grid alone, further seeds also for who goes on.
                further = waits
                if comparison.num_finalists is not None:
                    further = not knows and number < comparison.num_finalists
                trials.extend(t for t in seeds if (waits if t.seed == 0 else further))
        return trials


def grid_trials(comparison: Comparison) -> list[Trial]:
    """Return the runs of phase 1: every system at every rate."""
    return [
        Trial(
            comparison=comparison,
            system=system,
            learning_rate=rate,
            seed=0,
            share=comparison.grid_share,
        )
        for rate in comparison.learning_rates
        for system in comparison.systems
    ]


def seed_trials(comparison: Comparison, system: System, rate: float) -> list[Trial]:
    """Return the runs of phase 2 for a system, if `rate` is its best."""
    first = 1 if comparison.grid_share == 1 else 0
    return [
        Trial(comparison=comparison, system=system, learning_rate=rate, seed=seed, share=1.0)
        for seed in range(first, comparison.num_seeds)
    ]


def best_rate(
    comparison: Comparison, system: System, measured: Mapping[str, Measured]
) -> float | None:
    """Return the rate of the best run of the grid, among equals that of the fewest steps.

    None while one is missing, or if all diverged.
    """
    if not _has_grid(comparison, system, measured):
        return None
    done = {t.learning_rate: measured[t.name] for t in _grid_of(comparison, system)}
    return best_of(done, higher_is_better=comparison.task.higher_is_better)


def finalists(comparison: Comparison, measured: Mapping[str, Measured]) -> set[str] | None:
    """Return the names of the systems that get further seeds; None while that is not known."""
    if comparison.num_finalists is None:
        return {system.name for system in comparison.systems}
    firsts: dict[str, float] = {}
    for system in comparison.systems:
        if not _has_grid(comparison, system, measured):
            return None
        rate = best_rate(comparison, system, measured)
        if rate is None:
            continue  # it diverged at every rate
        first = Trial(comparison=comparison, system=system, learning_rate=rate, seed=0, share=1.0)
        if first.name not in measured:
            return None
        if not isnan(measured[first.name].value):
            firsts[system.name] = measured[first.name].value
    best = sorted(firsts, key=firsts.__getitem__, reverse=comparison.task.higher_is_better)
    return set(best[: comparison.num_finalists])


def _grid_of(comparison: Comparison, system: System) -> list[Trial]:
    return [trial for trial in grid_trials(comparison) if trial.system.name == system.name]


def _has_grid(comparison: Comparison, system: System, measured: Mapping[str, Measured]) -> bool:
    return all(trial.name in measured for trial in _grid_of(comparison, system))


def _require_distinct(name: str, values: list[str]) -> None:
    twice = sorted({value for value in values if values.count(value) > 1})
    if not values or twice:
        raise ValueError(f"{name} must be distinct, at least one; got {twice or 'none'}.")
