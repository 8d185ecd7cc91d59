"""Forecasting: from the last hours of a series, its next hours. ETTh1, or a file of yours.

ETTh1, its split and its scaling are those of Zhou et al. 2021, "Informer".
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from polewise.options import require_at_least, require_memory, require_types
from polewise.tasks.data_sets import named_or_given
from polewise.tasks.epochs import in_batches
from polewise.tasks.task import Batch, Metrics, TaskSpec

_ETTH1_ROWS = 20 * 30 * 24
"""The hours that the published split uses: 12, 4 and 4 months of 30 days."""

_ETTH1_COLUMNS = 7


@dataclass(frozen=True, kw_only=True)
class ForecastTask:
    """Predict the next `horizon` rows of a table from the `length` rows before.

    The rows are cut in order: 12 of 20 months train, 4 validate and 4 test (8,640, 2,880 and 2,880
    hours of ETTh1, whose last 3,020 are not used; of another file 60, 20 and 20 %). The rows to
    predict lie all in one part; what is read may lie in the part before. Columns are scaled to mean
    0 and deviation 1 over the training part, and the errors are in those units.

    Training windows start anywhere, drawn from the seed and the step. The evaluation takes every
    window in order, the last as well.
    """

    source: str = "etth1"
    """`etth1`, or the path of a .csv file: a line of names, then a row for each step whose first
    column (the date) is not read and whose last is the target."""
    horizon: int = 96
    """Rows to predict. The published ones are 96, 192, 336 and 720."""
    length: int = 336
    """Rows to read."""
    univariate: bool = False
    """Read and predict the last column alone (ETTh1: the oil temperature), not all."""
    subtract_last: bool = False
    """Give every window, and what is to be predicted, as differences from the last row read; the
    errors do not change by that. Levels drift, so it makes the task easier."""
    eval_stride: int = 1
    """Rows from one evaluated window to the next; 1 takes all, which is the published measure."""
    batch_size: int = 32
    """Windows in a batch."""
    part: Literal["valid", "test"] = "valid"
    """The held-out part."""

    headline: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_at_least("horizon", self.horizon, 1)
        require_at_least("length", self.length, 1)
        require_at_least("eval_stride", self.eval_stride, 1)
        require_at_least("batch_size", self.batch_size, 1)
        require_types(self)
        if not self.source:
            raise ValueError("source must be `etth1` or a path; got ''.")

    @property
    def spec(self) -> TaskSpec:
        """Rows in, the next rows out."""
        if self.univariate:
            columns = 1
        else:
            columns = _ETTH1_COLUMNS if self.source == "etth1" else self._table.shape[1]
        return TaskSpec(
            kind="forecast", length=self.length, num_features=columns, horizon=self.horizon
        )

    def prepare(self) -> None:
        """Read the table and check that a window fits into every part."""
        require_memory("batch_size and length", 4 * self.batch_size * self.length)
        if self.source == "etth1" and self._table.shape != (_ETTH1_ROWS, _ETTH1_COLUMNS):
            raise ValueError(
                f"source must be all of ETTh1; it has {self._table.shape[0]:,} rows of the "
                f"{_ETTH1_ROWS:,} that are used, with {self._table.shape[1]} columns of 7."
            )
        first, last = self._bounds("train")
        if last - first < self.length + self.horizon:
            raise ValueError(
                f"length and horizon must fit into the {last - first:,} rows to train; got "
                f"{self.length} and {self.horizon}."
            )
        if not np.isfinite(self._scaled).all():
            raise ValueError(
                "source must hold numbers that fit into float32 once scaled by the mean and "
                "deviation of the rows to train; got some that overflow."
            )
        first, last = self._bounds(self.part)
        if last - first < self.horizon:
            raise ValueError(
                f"horizon must be at most the {last - first:,} rows to evaluate; got "
                f"{self.horizon}."
            )

    def fingerprint(self) -> str:
        """Return the SHA-256 of the rows that are used."""
        return hashlib.sha256(self._table.tobytes()).hexdigest()

    def train_batches(self, seed: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield random windows of the training part without end."""
        self.prepare()
        _, last = self._bounds("train")
        for step in count(first_step):
            generator = np.random.default_rng([seed, step])
            least, past = self.length, last - self.horizon + 1
            yield self._batch(generator.integers(least, past, size=self.batch_size))

    def eval_batches(self) -> Iterator[Batch]:
        """Yield the windows of the held-out part in order."""
        self.prepare()
        first, last = self._bounds(self.part)
        starts = np.arange(first, last - self.horizon + 1, self.eval_stride)
        for some in in_batches(starts, self.batch_size):
            yield self._batch(some)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error, in scaled units."""
        return functional.mse_loss(logits, batch["labels"])

    def metrics(self, logits: Tensor, batch: Batch) -> Metrics:
        """Return `mse` and `mae` over all windows, rows and columns, in scaled units."""
        error = logits - batch["labels"]
        return {
            "mse": (error.square().sum(), error.numel()),
            "mae": (error.abs().sum(), error.numel()),
        }

    def _batch(self, starts: np.ndarray) -> Batch:
        """Return the windows whose first row to predict are `starts`."""
        read = self._scaled[starts[:, None] + np.arange(-self.length, 0)]
        to_predict = self._scaled[starts[:, None] + np.arange(self.horizon)]
        if self.subtract_last:
            read, to_predict = read - read[:, -1:], to_predict - read[:, -1:]
        return {"inputs": torch.from_numpy(read), "labels": torch.from_numpy(to_predict)}

    def _bounds(self, part: Literal["train", "valid", "test"]) -> tuple[int, int]:
        """Return the first row of a part and the row after its last."""
        rows = len(self._table)
        ends = {"train": rows * 6 // 10, "valid": rows * 8 // 10, "test": rows}
        return {
            "train": (0, ends["train"]),
            "valid": (ends["train"], ends["valid"]),
            "test": (ends["valid"], ends["test"]),
        }[part]

    @cached_property
    def _scaled(self) -> np.ndarray:
        table = self._table[:, -1:] if self.univariate else self._table
        train = table[slice(*self._bounds("train"))]
        with np.errstate(over="ignore", invalid="ignore"):  # `prepare` says so
            deviation, mean = train.std(0), train.mean(0)
            scaled = (table - mean) / np.where(deviation > 0, deviation, 1)
            # A deviation that overflows would make everything 0.
            return np.where(np.isfinite(deviation), scaled, np.nan).astype(np.float32)

    @cached_property
    def _table(self) -> np.ndarray:
        path = named_or_given(self.source, ["etth1"], "a .csv file")
        return read_table(path)[: _ETTH1_ROWS if self.source == "etth1" else None]


def read_table(path: Path) -> np.ndarray:
    """Return the numbers of a .csv file, (rows, columns) float64, without the first column and
    without empty lines.

    Raises:
        ValueError: the file cannot be read or has no numbers, or a line is not as long as the first
            or has something else than finite numbers; the message names the line.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is a folder, a pipe or a device")
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"source must be a readable .csv file; {path}: {error}.") from error
    columns = len(rows[0][1]) if rows else 1
    table = np.empty((max(len(rows) - 1, 0), columns - 1))
    for number, (line, row) in enumerate(rows[1:]):
        try:
            if len(row) != columns:
                raise ValueError(f"it has {len(row)} columns and the first line {columns}")
            table[number] = [float(value) for value in row[1:]]
            if not np.isfinite(table[number]).all():
                raise ValueError("a number is not finite")
        except ValueError as error:
            raise ValueError(
                f"source must be a table of numbers; {path}, line {line}: {error}."
            ) from error
    if not table.size:
        raise ValueError(
            f"source must have rows and columns of numbers, separated by commas; {path} has none."
        )
    return table
