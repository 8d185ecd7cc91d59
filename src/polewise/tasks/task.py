"""What a task is: batches, a loss and a metric, for a model it knows nothing about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isnan
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor

Batch = dict[str, Tensor]
"""One batch. Its entries:

* `inputs`: (batch, length) int64 tokens, or (batch, length, features) float32 values.
* `labels`: (batch, length) int64, aligned: `labels[:, t]` is the target of position t and -100
  is ignored; (batch,) int64 for a classification; (batch, horizon, features) float32 for a
  forecast.
* `lengths` (optional): (batch,) int64, the real length of each row; the rest is right padding.
"""

Metrics = dict[str, tuple[Tensor | float, Tensor | int]]
"""Named measures of one batch as (sum, count); over many batches a measure is sum / count."""

Key = TypeVar("Key")

IGNORED = -100
"""The label that counts for nothing."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What a model must know to take part: the shape of a task's inputs and outputs."""

    kind: Literal["language", "classification", "forecast"]
    """One prediction per position, one class per sequence, or the steps that come next."""
    length: int
    """Positions of an input."""
    vocab_size: int | None = None
    """Tokens, for token inputs."""
    num_features: int | None = None
    """Values per position, for real-valued inputs."""
    num_classes: int | None = None
    """Classes, for a classification."""
    horizon: int | None = None
    """Steps to predict, for a forecast."""


class Task(Protocol):
    """A problem to learn. Implementations are frozen dataclasses of options.

    Beside what is here, a task may have `part` ("valid" or "test", the held-out part that it
    evaluates), `has_test` where not every choice of data has a test part, and
    `longest_in_training` where tests are longer than what is trained on.

    A task is deterministic: what `train_batches` yields at step i depends on the options, the
    seed and i alone, so that training resumes at any step with the batches it would have had.
    """

    @property
    def spec(self) -> TaskSpec:
        """Shape of inputs and outputs; known from the options alone where no file decides it."""
        ...

    @property
    def batch_size(self) -> int:
        """Rows of a training batch."""
        ...

    @property
    def headline(self) -> str:
        """Name of the metric that decides which model is best."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger headline metric is a better one."""
        ...

    def prepare(self) -> None:
        """Find the data and check that it suffices.

        Raises:
            ValueError: the data is missing or too small; the message says what to do.
        """
        ...

    def fingerprint(self) -> str | None:
        """Return what identifies the data, so that a run resumes on what it began with; None where
        the options decide it."""
        ...

    def train_batches(self, seed: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield training batches without end, beginning with that of `first_step`."""
        ...

    def eval_batches(self) -> Iterable[Batch]:
        """Yield the held-out batches: the same ones at every call."""
        ...

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean training loss of a batch, a scalar; in nats, or of a forecast the mean
        squared error."""
        ...

    def metrics(self, logits: Tensor, batch: Batch) -> Metrics:
        """Return the measures of a held-out batch as (sum, count)."""
        ...


def on_test_part(task: Any) -> Any:
    """Return the same task on its test part; None where it is not on its validation part, or has
    no other."""
    if getattr(task, "part", None) != "valid" or not getattr(task, "has_test", True):
        return None
    return replace(task, part="test")


def reaches(task: Task, value: float, target: float) -> bool:
    """Whether a headline metric is as good as a target."""
    return value == target or is_better(task, value, target)


def is_better(task: Task, value: float, than: float) -> bool:
    """Whether a headline metric is better than another."""
    return value > than if task.higher_is_better else value < than


def best_of(tried: Mapping[Key, tuple[float, int]], *, higher_is_better: bool) -> Key | None:
    """Return the key of the best (headline metric, steps), among equals that of the fewest steps.

    NaN counts for nothing; None if nothing else is there.
    """
    sign = -1 if higher_is_better else 1
    finite = {key: each for key, each in tried.items() if not isnan(each[0])}
    return min(finite, key=lambda key: (sign * finite[key][0], finite[key][1]), default=None)
