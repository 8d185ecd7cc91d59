"""Multivariate series of unequal lengths, one class each: sets of the UEA archive."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polewise.options import require_at_least, require_types
from polewise.tasks.data_sets import find
from polewise.tasks.epochs import in_batches, in_epochs
from polewise.tasks.measures import class_loss, class_metrics
from polewise.tasks.task import Batch, Metrics, TaskSpec

_SPECS = {
    "japanese_vowels": TaskSpec(kind="classification", length=29, num_features=12, num_classes=9),
    "basic_motions": TaskSpec(kind="classification", length=100, num_features=6, num_classes=4),
}

_VALID_EVERY = 5


class Series(NamedTuple):
    """One case."""

    values: np.ndarray
    """(time, channels) float32."""
    label: int
    """The class, its place in the file's list of classes."""


@dataclass(frozen=True, kw_only=True)
class SeriesTask:
    """Name the class of a series of several channels.

    `japanese_vowels`: which of nine men said "ae", from 12 cepstral coefficients in 7 to 29 frames
    (270 cases to train, 370 to test; Kudo, Toyama & Shimbo 1999). `basic_motions`: standing,
    walking, running or badminton, from 6 channels of a watch in 100 steps (40 and 40).

    The archive's own split. Every fifth case of a class in the training file validates and does not
    train: 216 and 54 for the vowels, 32 and 8 for the motions. Series are padded with zeros on the
    right to the longest of the set, their `lengths` beside them. Every channel is scaled to mean 0
    and deviation 1 over the training part.
    """

    source: Literal["japanese_vowels", "basic_motions"] = "japanese_vowels"
    """The set."""
    batch_size: int = 32
    """Series in a batch."""
    part: Literal["valid", "test"] = "valid"
    """The held-out part."""

    headline: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least("batch_size", self.batch_size, 1)
        require_types(self)

    @property
    def spec(self) -> TaskSpec:
        """Channels in, classes out."""
        return _SPECS[self.source]

    def prepare(self) -> None:
        """Read the series and check that they are those of the set."""
        spec = self.spec
        for part in ("train", self.part):
            if not self._parts[part]:
                raise ValueError(
                    f"source must have series for every part; {self.source} has none for {part}."
                )
            for series in self._parts[part]:
                length, channels = series.values.shape
                if channels != spec.num_features or length > spec.length:
                    raise ValueError(
                        f"source must have {spec.num_features} channels and at most {spec.length} "
                        f"steps; {self.source} has a series of {channels} and {length}."
                    )

    def fingerprint(self) -> str:
        """Return the SHA-256 of the training file and the test file."""
        digest = hashlib.sha256()
        for path in self._paths:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def train_batches(self, seed: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield batches without end, every series once per epoch in an order of the seed."""
        self.prepare()
        for some in in_epochs(self._parts["train"], seed, first_step, self.batch_size):
            yield self._batch(some)

    def eval_batches(self) -> Iterator[Batch]:
        """Yield the held-out series in order."""
        self.prepare()
        for some in in_batches(self._parts[self.part], self.batch_size):
            yield self._batch(some)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, in nats."""
        return class_loss(logits, batch)

    def metrics(self, logits: Tensor, batch: Batch) -> Metrics:
        """Return `accuracy` and `loss` (nats)."""
        return class_metrics(logits, batch)

    def _batch(self, several: list[Series]) -> Batch:
        mean, deviation = self._scale
        inputs = np.zeros((len(several), self.spec.length, len(mean)), dtype=np.float32)
        for row, series in zip(inputs, several, strict=True):
            row[: len(series.values)] = (series.values - mean) / deviation
        return {
            "inputs": torch.from_numpy(inputs),
            "labels": torch.tensor([series.label for series in several]),
            "lengths": torch.tensor([len(series.values) for series in several]),
        }

    @cached_property
    def _scale(self) -> tuple[np.ndarray, np.ndarray]:
        steps = np.concatenate([series.values for series in self._parts["train"]])
        return steps.mean(0), np.maximum(steps.std(0), np.float32(1e-6))

    @cached_property
    def _parts(self) -> dict[str, list[Series]]:
        classes = self.spec.num_classes or 0
        train, test = (read_ts(path, num_classes=classes) for path in self._paths)
        parts: dict[str, list[Series]] = {"train": [], "valid": [], "test": test}
        seen: Counter[int] = Counter()
        for series in train:
            seen[series.label] += 1
            is_valid = seen[series.label] % _VALID_EVERY == 0
            parts["valid" if is_valid else "train"].append(series)
        return parts

    @cached_property
    def _paths(self) -> list[Path]:
        return find(self.source)


def read_ts(path: Path, *, num_classes: int) -> list[Series]:
    """Return the series of a file in the archive's `.ts` form.

    Lines that begin with # are comments and those with @ say what follows; after @data a line is a
    case: channels separated by ":", their values by ",", and the class last.

    Raises:
        ValueError: the file is not of that form, has not `num_classes` classes, has values that are
            missing or have times of their own, or the channels of a case differ in length; the
            message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"source must be readable; {path}: {error}.") from error
    facts: dict[str, list[str]] = {}
    several: list[Series] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            if "@data" in facts:
                several.append(_read_case(line, _classes(facts, num_classes)))
            else:
                name, *words = line.split()
                facts[name.lower()] = words
        except ValueError as error:
            raise ValueError(
                f"source must be in the archive's .ts form; {path}, line {number}: {error}."
            ) from error
    if not several:
        raise ValueError(f"source must be in the archive's .ts form; {path} has no cases.")
    return several


def _classes(facts: dict[str, list[str]], num_classes: int) -> list[str]:
    if facts.get("@timestamps", ["false"]) != ["false"]:
        raise ValueError("values have times of their own")
    given, *classes = facts.get("@classlabel") or ["false"]
    if given != "true" or len(classes) != num_classes:
        raise ValueError(f"@classLabel must be true and {num_classes} classes")
    return classes


def _read_case(line: str, classes: list[str]) -> Series:
    *channels, label = line.strip().split(":")
    if label not in classes:
        raise ValueError(f"the class is {label!r} and not one of {', '.join(classes)}")
    columns = [np.array(channel.split(","), dtype=np.float32) for channel in channels]
    if len({len(column) for column in columns}) != 1:
        raise ValueError("channels have different lengths, or there are none")
    values = np.stack(columns, axis=1)
    if not np.isfinite(values).all():
        raise ValueError("a value is missing")
    return Series(values, classes.index(label))
