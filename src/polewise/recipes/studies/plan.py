"""How studies are put together: name and question from a function, budgets in steps or seconds."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from polewise.recipes.studies.study import Comparison, Size, Study
from polewise.training import TrainingOptions


def study_of(
    build: Callable[[Size], Study],
    size: Size,
    *comparisons: Comparison,
    mean_over: str = "",
) -> Study:
    """Return the study that `build` builds: it has the function's name and asks its question."""
    return Study(
        name=build.__name__,
        size=size,
        question=question_of(build),
        comparisons=comparisons,
        mean_over=mean_over,
    )


def question_of(build: Callable[[Size], Study]) -> str:
    """Return what a study asks: the first line of its function."""
    return (inspect.getdoc(build) or "").splitlines()[0]


def in_steps(
    max_steps: int, *, evaluate_every: int | None = None, stop_at: float | None = None
) -> TrainingOptions:
    """A budget in steps, evaluated ten times unless said otherwise."""
    every = evaluate_every or max(max_steps // 10, 1)
    return TrainingOptions(
        max_steps=max_steps,
        evaluate_every=every,
        checkpoint_every=every,
        log_every=min(10, every),
        keep_checkpoints=1,
        stop_at=stop_at,
    )


def in_seconds(max_seconds: float, *, evaluate_every: int = 400) -> TrainingOptions:
    """A budget in seconds of training, evaluations not counted."""
    return TrainingOptions(
        max_seconds=max_seconds,
        evaluate_every=evaluate_every,
        checkpoint_every=evaluate_every,
        keep_checkpoints=1,
    )
