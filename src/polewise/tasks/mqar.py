"""Multi-query associative recall: many keys with their values, then each key once more.

    k1 v1 k2 v2 ... kN vN . . k2 . . . k1 . ...          at every key the model must say its value

A sequence is drawn as in Arora et al. 2023, "Zoology" (HazyResearch/zoology,
`zoology/data/multiquery_ar.py`). Of several loads each has as many steps as the others; there the
smallest has five times as many.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from polewise.options import require_at_least, require_memory, require_types
from polewise.tasks.epochs import in_order
from polewise.tasks.task import IGNORED, Batch, Metrics, TaskSpec

FILLER = 0
"""Token between the queries."""

# Streams of random numbers that never meet: the first word of the seed sequence.
_HELD_OUT, _FRESH = range(2)


@dataclass(frozen=True, kw_only=True)
class MqarTask:
    r"""Multi-query associative recall.

    A sequence of L tokens with N pairs begins with N different keys, each with a value of its own.
    The rest is cut in slots of two tokens; each key stands once more, at the first token of a slot.
    Slots are drawn without replacement, slot i with a weight of $i^{a - 1}$: for small a most
    queries come soon, some very late. Keys are the lower half of the vocabulary without 0, values
    the upper half.

    Every sequence is drawn anew. Loss and accuracy count the queries alone. The headline
    `accuracy` is the mean over all cells of `test_on`; each cell has its own beside it, such as
    `accuracy_256_64`.
    """

    train_on: str = "64:4,128:8,256:16,256:32,256:64"
    """Cells to train on, each as length:pairs. A batch is of one cell, all in turn."""
    test_on: str = "64:4,64:8,64:16,128:32,256:64"
    """Cells to test on, each as length:pairs."""
    vocab_size: int = 8192
    """Tokens; even, larger than the longest length."""
    gap_power: float = 0.01
    """The a of the queries' places: 1 is uniform, small values put most of them early."""
    random_filler: bool = False
    """Random tokens between the queries instead of 0."""
    num_eval: int = 500
    """Held-out sequences of each cell."""
    batch_size: int = 64
    """Sequences in a batch."""
    data_seed: int = 0
    """Chooses the held-out sequences."""

    headline: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least("vocab_size", self.vocab_size, 4)
        require_at_least("num_eval", self.num_eval, 1)
        require_at_least("batch_size", self.batch_size, 1)
        require_at_least("data_seed", self.data_seed, 0)
        require_types(self)
        if self.vocab_size % 2:
            raise ValueError(
                f"vocab_size must be even (as many keys as values); got {self.vocab_size}."
            )
        if not 0 < self.gap_power <= 1:
            raise ValueError(f"gap_power must lie above 0 and be at most 1; got {self.gap_power}.")
        for name in ("train_on", "test_on"):
            for length, pairs in _cells(name, getattr(self, name)):
                if length % 2 or pairs < 1 or 4 * pairs > length:
                    raise ValueError(
                        f"{name} must have even lengths of at least 4 tokens a pair, and a pair at "
                        f"least; got {length}:{pairs}."
                    )
                if self.vocab_size <= length:
                    raise ValueError(
                        f"vocab_size must be larger than every length; got {self.vocab_size} for "
                        f"{length} in {name}."
                    )

    @property
    def spec(self) -> TaskSpec:
        """Tokens in, tokens out."""
        cells = _cells("train_on", self.train_on) + _cells("test_on", self.test_on)
        longest = max(length for length, _ in cells)
        return TaskSpec(kind="language", length=longest, vocab_size=self.vocab_size)

    def prepare(self) -> None:
        """Draw the held-out sequences."""
        keys = max(self.batch_size, self.num_eval) * self.vocab_size
        held_out = sum(self.num_eval * length for length, _ in _cells("test_on", self.test_on))
        require_memory("test_on, num_eval, batch_size and vocab_size", 16 * held_out + 8 * keys)
        _ = self._held_out

    def fingerprint(self) -> None:
        """Return None: the options and the seed decide every sequence."""
        return None

    def train_batches(self, seed: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield batches without end, cell after cell."""
        cells = _cells("train_on", self.train_on)
        for step in count(first_step):
            generator = np.random.default_rng([_FRESH, seed, step])
            yield self._draw(generator, self.batch_size, *cells[step % len(cells)])

    def eval_batches(self) -> Iterator[Batch]:
        """Yield the held-out sequences, cell after cell."""
        for cell in self._held_out:
            yield from in_order(cell, self.batch_size)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over the queries, in nats."""
        asked = batch["labels"] != IGNORED
        return functional.cross_entropy(logits[asked], batch["labels"][asked])

    def metrics(self, logits: Tensor, batch: Batch) -> Metrics:
        """Return `accuracy` of all and of the batch's cell, and `loss` (nats)."""
        labels = batch["labels"]
        asked = labels != IGNORED
        pairs = int(asked[0].sum())
        # Every sequence counts alike, so every cell does.
        right = int(((logits.argmax(-1) == labels) & asked).sum())
        accuracy = (right / pairs, len(labels))
        total = functional.cross_entropy(logits[asked], labels[asked], reduction="sum")
        return {
            "accuracy": accuracy,
            f"accuracy_{labels.shape[1]}_{pairs}": accuracy,
            "loss": (total, asked.sum()),
        }

    @cached_property
    def _held_out(self) -> list[Batch]:
        cells = _cells("test_on", self.test_on)
        return [
            self._draw(
                np.random.default_rng([_HELD_OUT, self.data_seed, number]), self.num_eval, *cell
            )
            for number, cell in enumerate(cells)
        ]

    def _draw(self, generator: np.random.Generator, num: int, length: int, pairs: int) -> Batch:
        half = self.vocab_size // 2
        keys = 1 + generator.random((num, half - 1)).argsort(1)[:, :pairs]
        values = half + generator.random((num, half)).argsort(1)[:, :pairs]
        slots = (length - 2 * pairs) // 2
        weight = np.arange(1, slots + 1) ** (self.gap_power - 1)
        # The largest of u^(1/w), in order, are weighted draws without replacement, in order.
        drawn = (np.log(generator.random((num, slots))) / weight).argsort(1)[:, ::-1][:, :pairs]
        places = 2 * pairs + 2 * drawn

        inputs = np.full((num, length), FILLER, dtype=np.int64)
        if self.random_filler:
            inputs = generator.integers(0, self.vocab_size, size=(num, length))
        inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = keys, values
        labels = np.full((num, length), IGNORED, dtype=np.int64)
        np.put_along_axis(inputs, places, keys, axis=1)
        np.put_along_axis(labels, places, values, axis=1)
        return {"inputs": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}


def _cells(name: str, text: str) -> list[tuple[int, int]]:
    """Return the (length, pairs) of "64:4,128:8"."""
    if not re.fullmatch(r"\d{1,9}:\d{1,9}(,\d{1,9}:\d{1,9})*", text):
        raise ValueError(
            f"{name} must be written as length:pairs,... like 64:4,128:8; got {text!r}."
        )
    return [(int(cell.split(":")[0]), int(cell.split(":")[1])) for cell in text.split(",")]
