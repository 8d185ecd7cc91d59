"""What a run measured, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """One measure of a run over its steps."""

    name: str
    """The measure."""
    steps: np.ndarray
    """Steps at which it was taken."""
    seconds: np.ndarray
    """Seconds of training spent by then."""
    values: np.ndarray
    """The measure itself."""


def learning_curve(
    records: Iterable[Mapping[str, Any]], kind: Literal["train", "eval"], name: str
) -> LearningCurve:
    """Return one measure from the lines of `metrics.jsonl`.

    Raises:
        ValueError: no line holds it; the message lists what there is.
    """
    of_kind = [record for record in records if record["kind"] == kind]
    lines = [record for record in of_kind if name in record]
    if not lines:
        known = sorted({key for record in of_kind for key in record} - {"kind", "step", "seconds"})
        raise ValueError(f"name must be a measure of {kind} ({', '.join(known)}); got {name!r}.")
    return LearningCurve(
        name=name,
        steps=np.array([line["step"] for line in lines]),
        seconds=np.array([line["seconds"] for line in lines], dtype=float),
        values=np.array([line[name] for line in lines], dtype=float),
    )
