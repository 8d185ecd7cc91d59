"""Selective copying: repeat the tokens that matter, in order, and forget the rest.

    . . 5 . . . 2 . 9 . . # # #          at the first # the answer is 5, then 2, then 9

The setting is that of Gu & Dao 2023, "Mamba" (Selective Copying), with the layout of
state-spaces/s4's copying data (`src/dataloaders/datasets/copying.py`, `variable`).
"""

from __future__ import annotations

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
from polewise.tasks.measures import token_loss, token_metrics
from polewise.tasks.task import IGNORED, Batch, Metrics, TaskSpec

NOISE = 0
"""Token to be forgotten."""

# Streams of random numbers that never meet: the first word of the seed sequence.
_HELD_OUT, _FRESH = range(2)


@dataclass(frozen=True, kw_only=True)
class SelectiveCopyTask:
    """Repeat `num_tokens` tokens that stand anywhere among noise.

    Of the `vocab_size` tokens 0 is noise and the last is the marker; the rest are data. The data
    tokens are uniform and stand at places drawn without replacement from the first `length`
    positions, in order; noise fills the others. Then come `num_tokens` markers, and the answer at
    the i-th marker is the i-th data token. The gaps differ from sequence to sequence, so no fixed
    filter can solve it.

    Every sequence is drawn anew. Loss and accuracy count the markers alone.
    """

    length: int = 4096
    """Tokens of data and noise. The model's input has `num_tokens` markers more."""
    num_tokens: int = 16
    """Data tokens."""
    vocab_size: int = 16
    """Tokens, noise and the marker included."""
    num_eval: int = 200
    """Held-out sequences."""
    batch_size: int = 64
    """Sequences in a batch."""
    data_seed: int = 0
    """Chooses the held-out sequences."""

    headline: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least("length", self.length, 1)
        require_at_least("num_tokens", self.num_tokens, 1)
        require_at_least("vocab_size", self.vocab_size, 4)
        require_at_least("num_eval", self.num_eval, 1)
        require_at_least("batch_size", self.batch_size, 1)
        require_at_least("data_seed", self.data_seed, 0)
        require_types(self)
        if self.num_tokens > self.length:
            raise ValueError(
                f"num_tokens must be at most length, {self.length}; got {self.num_tokens}."
            )

    @property
    def spec(self) -> TaskSpec:
        """Tokens in, tokens out."""
        length = self.length + self.num_tokens
        return TaskSpec(kind="language", length=length, vocab_size=self.vocab_size)

    def prepare(self) -> None:
        """Draw the held-out sequences."""
        sequences = self.num_eval + self.batch_size
        require_memory("num_eval, batch_size and length", 24 * sequences * self.spec.length)
        _ = self._held_out

    def fingerprint(self) -> None:
        """Return None: the options and the seed decide every sequence."""
        return None

    def train_batches(self, seed: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield batches without end."""
        for step in count(first_step):
            yield self._draw(np.random.default_rng([_FRESH, seed, step]), self.batch_size)

    def eval_batches(self) -> Iterator[Batch]:
        """Yield the held-out sequences."""
        yield from in_order(self._held_out, self.batch_size)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over the markers, in nats."""
        return token_loss(*self._at_markers(logits, batch))

    def metrics(self, logits: Tensor, batch: Batch) -> Metrics:
        """Return `accuracy` and `loss` (nats) over the markers."""
        return token_metrics(*self._at_markers(logits, batch))

    def _at_markers(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
        """The few positions that are asked for, of many that are not."""
        return logits[:, self.length :], {"labels": batch["labels"][:, self.length :]}

    @cached_property
    def _held_out(self) -> Batch:
        return self._draw(np.random.default_rng([_HELD_OUT, self.data_seed]), self.num_eval)

    def _draw(self, generator: np.random.Generator, num: int) -> Batch:
        data = generator.integers(1, self.vocab_size - 1, size=(num, self.num_tokens))
        # The smallest of random numbers stand at places drawn without replacement.
        order = generator.random((num, self.length)).argpartition(self.num_tokens - 1, axis=1)
        places = np.sort(order[:, : self.num_tokens], axis=1)

        inputs = np.full((num, self.spec.length), NOISE, dtype=np.int64)
        np.put_along_axis(inputs, places, data, axis=1)
        inputs[:, self.length :] = self.vocab_size - 1
        labels = np.full_like(inputs, IGNORED)
        labels[:, self.length :] = data
        return {"inputs": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}
