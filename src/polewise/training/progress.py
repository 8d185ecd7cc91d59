"""Where a run stands: all that moves while it trains, besides tensors. Plain numbers, so JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from polewise.options import require_types
from polewise.tasks import Batch
from polewise.training.run import TrainingOptions

_REMEMBERED = 0.98
"""How much of the usual loss stays when a new one comes: a memory of 50 steps."""
_STEPS_TO_LEARN = 50
_SPIKE_DEVIATIONS = 6.0


@dataclass(kw_only=True)
class StepWindow:
    """The steps since the last line of the log."""

    steps: int = 0
    """Steps taken."""
    loss: float = 0.0
    """Sum of their losses."""
    gradient_norm: float = 0.0
    """Sum of the norms of their gradients, before clipping."""
    seconds: float = 0.0
    """Time of those steps that are timed."""
    positions: int = 0
    """Positions that all processes went through in that time."""

    def add(self, loss: float, gradient_norm: float) -> None:
        """Count one step."""
        self.steps += 1
        self.loss += loss
        self.gradient_norm += gradient_norm

    def add_time(self, seconds: float, batches: list[Batch], processes: int) -> None:
        """Count the time of one step, and the positions it went through in all processes."""
        self.seconds += seconds
        for batch in batches:
            self.positions += processes * batch["inputs"].shape[0] * batch["inputs"].shape[1]

    def means(self) -> dict[str, float]:
        """Return the means over the window; nothing where no step was taken."""
        if not self.steps:
            return {}
        values = {
            "loss": self.loss / self.steps,
            "gradient_norm": self.gradient_norm / self.steps,
        }
        if self.seconds:
            values["positions_per_second"] = self.positions / self.seconds
        return values


@dataclass(kw_only=True)
class UsualLoss:
    r"""The loss one would expect: running mean and variance, with a memory of 50 steps.

    A loss is a spike when it lies above the mean by more than 6 deviations and a tenth. The first
    50 are never.
    """

    mean: float = 0.0
    variance: float = 0.0
    steps: int = 0

    def add(self, loss: float) -> float | None:
        """Count a loss; return what was expected if this one is a spike."""
        expected = self.mean
        learnt = self.steps >= _STEPS_TO_LEARN
        apart = max(_SPIKE_DEVIATIONS * sqrt(self.variance), abs(expected) / 10)
        spike = learnt and loss > expected + apart
        self.steps += 1
        weight = max(1 - _REMEMBERED, 1 / self.steps)
        change = loss - self.mean
        self.mean += weight * change
        self.variance = (1 - weight) * (self.variance + weight * change * change)
        return expected if spike else None


@dataclass(kw_only=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    """Steps taken, skipped ones included."""
    seconds: float = 0.0
    """Seconds of training spent."""
    best: float | None = None
    """Best headline metric so far."""
    data_step: int = 0
    """Steps for which data was taken: more than `step` once the run has rolled back."""
    skipped: int = 0
    """Steps skipped because the loss or its gradient was NaN or infinite."""
    skipped_in_a_row: int = 0
    """How many of them came last."""
    rollbacks: int = 0
    """Times the run went back to a checkpoint; each halves the learning rate."""
    lines: int = 0
    """Lines of the log written by then."""
    owes_evaluation: bool = False
    """Whether the run was asked to stop where an evaluation was due, or at its very end."""
    window: StepWindow = field(default_factory=StepWindow)
    """What the next line of the log will average."""
    usual: UsualLoss = field(default_factory=UsualLoss)
    """What a spike of the loss is told by."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        """Return the progress that `dataclasses.asdict` gave.

        Raises:
            ValueError: a value is missing, unknown or not of its type.
        """
        parts = {"window": StepWindow, "usual": UsualLoss}
        built = {
            name: _from_values(parts[name], value) if name in parts else value
            for name, value in values.items()
        }
        return _from_values(cls, built)


def spent_share(progress: Progress, options: TrainingOptions) -> float:
    """Return the share of the budget that is spent, by steps or by seconds, whichever is more."""
    by_steps = progress.step / options.max_steps if options.max_steps else 0.0
    by_seconds = progress.seconds / options.max_seconds if options.max_seconds else 0.0
    return max(by_steps, by_seconds)


def remaining_seconds(progress: Progress, options: TrainingOptions) -> float | None:
    """Return the seconds of training that remain at the rate so far; None before there is one."""
    spent = spent_share(progress, options)
    if spent < 1 and not progress.seconds:  # the first step is not timed
        return None
    return progress.seconds * (1 - spent) / spent if spent > 0 else 0.0


def _from_values(kind: Any, values: Any) -> Any:
    names = sorted(field.name for field in dataclasses.fields(kind))
    if not isinstance(values, dict) or sorted(values) != names:
        got = ", ".join(sorted(values)) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{kind.__name__} must have the values {', '.join(names)}; got {got}")
    built = kind(**values)
    require_types(built)
    for name, value in values.items():
        least = float("-inf") if name in ("best", "mean", "loss") else -1
        if isinstance(value, int | float) and not least < value < float("inf"):
            raise ValueError(f"{name} must be a finite number, as a run leaves it; got {value}")
    return built
