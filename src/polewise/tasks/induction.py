"""Induction heads: what followed the special token before must follow it again.

    3 7 1 # 4 0 2 2 9 ... 5 #          the answer is 4

The setting is that of Gu & Dao 2023, "Mamba" (Induction Heads): trained at one length, tested at
many. The capability is that of Olsson et al. 2022, "In-context learning and induction heads".
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

from polewise.options import require_at_least, require_memory, require_types
from polewise.tasks.epochs import in_order
from polewise.tasks.measures import class_loss, class_metrics
from polewise.tasks.task import IGNORED, Batch, Metrics, TaskSpec

_SHORTEST = 3  # the special token, its answer, the special token

# Streams of random numbers that never meet: the first word of the seed sequence.
_HELD_OUT, _FRESH = range(2)


@dataclass(frozen=True, kw_only=True)
class InductionTask:
    """Say what followed the special token when it occurred before.

    A sequence is of uniform ordinary tokens. The special token, the last of the vocabulary, stands
    twice: at a uniform place that leaves room for an answer, and at the end, where the answer is
    the token that followed it the first time.

    Every sequence is drawn anew. Loss and accuracy count the last position alone. The headline
    `accuracy` is the mean over `test_lengths`; each length has its own beside it, such as
    `accuracy_1024`. The publication tests up to 1,048,576.
    """

    length: int = 256
    """Tokens of a training sequence."""
    test_lengths: str = "64,256,1024,4096"
    """Lengths to test, separated by commas; longer ones show whether the model generalises."""
    vocab_size: int = 16
    """Tokens, the special one included."""
    num_eval: int = 100
    """Held-out sequences of each length."""
    batch_size: int = 8
    """Sequences in a batch."""
    data_seed: int = 0
    """Chooses the held-out sequences."""

    headline: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least("length", self.length, _SHORTEST)
        require_at_least("vocab_size", self.vocab_size, 3)
        require_at_least("num_eval", self.num_eval, 1)
        require_at_least("batch_size", self.batch_size, 1)
        require_at_least("data_seed", self.data_seed, 0)
        require_types(self)
        if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", self.test_lengths):
            raise ValueError(
                "test_lengths must be lengths separated by commas, like 64,256; got "
                f"{self.test_lengths!r}."
            )
        for length in self._test_lengths:
            if length < _SHORTEST:
                raise ValueError(f"test_lengths must be at least {_SHORTEST}; got {length}.")

    @property
    def spec(self) -> TaskSpec:
        """Tokens in, tokens out."""
        longest = max(self.length, *self._test_lengths)
        return TaskSpec(kind="language", length=longest, vocab_size=self.vocab_size)

    def prepare(self) -> None:
        """Draw the held-out sequences."""
        tokens = self.num_eval * sum(self._test_lengths) + self.batch_size * self.length
        require_memory("num_eval, test_lengths, batch_size and length", 16 * tokens)
        _ = self._held_out

    @property
    def longest_in_training(self) -> int:
        """Length of a training sequence; longer tests keep nothing for a backward pass."""
        return self.length

    def fingerprint(self) -> None:
        """Return None: the options and the seed decide every sequence."""
        return None

    def train_batches(self, seed: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield batches of the training length without end."""
        for step in count(first_step):
            generator = np.random.default_rng([_FRESH, seed, step])
            yield self._draw(generator, self.batch_size, self.length)

    def eval_batches(self) -> Iterator[Batch]:
        """Yield the held-out sequences, length after length; of long ones fewer at a time, as many
        tokens as a batch of training has."""
        for sequences in self._held_out:
            length = sequences["inputs"].shape[1]
            at_once = self.batch_size * self.length // length
            yield from in_order(sequences, min(max(at_once, 1), self.batch_size))

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the last position, in nats."""
        return class_loss(logits[:, -1], {"labels": batch["labels"][:, -1]})

    def metrics(self, logits: Tensor, batch: Batch) -> Metrics:
        """Return `accuracy` of all and of the batch's length, and `loss` (nats)."""
        measures = class_metrics(logits[:, -1], {"labels": batch["labels"][:, -1]})
        return {
            "accuracy": measures["accuracy"],
            f"accuracy_{batch['labels'].shape[1]}": measures["accuracy"],
            "loss": measures["loss"],
        }

    @property
    def _test_lengths(self) -> list[int]:
        return [int(length) for length in self.test_lengths.split(",")]

    @cached_property
    def _held_out(self) -> list[Batch]:
        return [
            self._draw(
                np.random.default_rng([_HELD_OUT, self.data_seed, length]), self.num_eval, length
            )
            for length in self._test_lengths
        ]

    def _draw(self, generator: np.random.Generator, num: int, length: int) -> Batch:
        special = self.vocab_size - 1
        inputs = generator.integers(0, special, size=(num, length))
        rows, first = np.arange(num), generator.integers(0, length - 2, size=num)
        inputs[rows, first] = inputs[:, -1] = special
        labels = np.full_like(inputs, IGNORED)
        labels[:, -1] = inputs[rows, first + 1]
        return {"inputs": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}
