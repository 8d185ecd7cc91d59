"""Associative recall: after many key-value pairs, what belonged to this key?

    k1 v1 k2 v2 ... => k ?          a fresh dictionary in every sequence

The distribution is that of the Hyena paper's experiments (Poli et al. 2023; HazyResearch/safari,
`src/dataloaders/synthetics.py`).
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
from torch.nn import functional

from polewise.options import require_at_least, require_memory, require_types
from polewise.tasks.epochs import epoch_rows, in_batches
from polewise.tasks.measures import token_loss, token_metrics
from polewise.tasks.task import IGNORED, Batch, Metrics, TaskSpec

NOOP = 0
"""Token of ".", the smallest of the vocabulary in string order; used for padding."""

_MAX_DRAWS_WITHOUT_PROGRESS = 100

# Streams of random numbers that never meet: the first word of the seed sequence.
_HELD_OUT, _FIXED, _FRESH, _ORDER = range(4)


@dataclass(frozen=True, kw_only=True)
class RecallTask:
    """Associative recall over `length` tokens of key-value pairs.

    Of the `vocab_size` tokens two are special ("." and "=>"), half of the rest are keys and half
    values. Every sequence draws a value for each key (uniform, values may repeat), then
    `length / 2` pairs with a uniform key, then "=>" and a query key, uniform among those that
    occurred. The model reads these `length + 2` tokens and must say the value.

    The training loss is over every position, as in the published runs, or with `answer_only` over
    the last; the metric is the accuracy of the last position alone. Because every key recurs about
    every `vocab_size - 2` tokens, a long recall with a small vocabulary needs no long memory:
    compare with `window_ceiling`.
    """

    length: int = 128
    """Tokens of key-value pairs; even. The model's input has two more."""
    vocab_size: int = 30
    """Tokens, the two special ones included; even."""
    num_train: int | None = None
    """Training sequences, distinct and fixed; None draws fresh ones at every step. The published
    runs have 2000."""
    num_eval: int = 500
    """Held-out sequences, distinct; none of them is in a fixed training set."""
    batch_size: int = 32
    """Sequences in a batch."""
    unique_keys: bool = False
    """Every key occurs at most once, so that the answer may lie anywhere. Needs `length / 2` keys,
    that is, a vocabulary of at least `length + 2`. Then only the last of all positions can be
    predicted: see `answer_only`."""
    answer_only: bool = False
    """Train on the answer alone, not on every position. Where keys occur once nothing else
    can be predicted, and its loss drowns the answer's."""
    align_to: int | None = None
    """Chunk length of a chunked mixer: pads with "." on the left to a multiple of it, so that the
    query never stands alone in the last chunk. None pads nothing."""
    data_seed: int = 0
    """Chooses the held-out sequences and the fixed training set."""

    headline: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least("length", self.length, 2)
        require_at_least("vocab_size", self.vocab_size, 4)
        require_at_least("num_eval", self.num_eval, 1)
        require_at_least("batch_size", self.batch_size, 1)
        require_at_least("data_seed", self.data_seed, 0)
        if self.num_train is not None:
            require_at_least("num_train", self.num_train, 1)
        if self.align_to is not None:
            require_at_least("align_to", self.align_to, 1)
        require_types(self)
        if self.length % 2:
            raise ValueError(f"length must be even (keys and values alternate); got {self.length}.")
        if self.vocab_size % 2:
            raise ValueError(
                f"vocab_size must be even (as many keys as values); got {self.vocab_size}."
            )
        if self.unique_keys and self.num_pairs > self.num_keys:
            raise ValueError(
                f"vocab_size must be at least {self.length + 2} for unique_keys at length "
                f"{self.length} ({self.num_pairs} keys); got {self.vocab_size}."
            )

    @property
    def num_keys(self) -> int:
        """Keys in the vocabulary; there are as many values."""
        return self.vocab_size // 2 - 1

    @property
    def num_pairs(self) -> int:
        """Key-value pairs in a sequence."""
        return self.length // 2

    @property
    def padding(self) -> int:
        """Tokens put before the pairs by `align_to`."""
        return 0 if self.align_to is None else -(self.length + 2) % self.align_to

    @property
    def spec(self) -> TaskSpec:
        """Tokens in, tokens out."""
        return TaskSpec(
            kind="language",
            length=self.padding + self.length + 2,
            vocab_size=self.vocab_size,
        )

    def window_ceiling(self, window: int) -> float:
        r"""Return the accuracy open to a model that sees only the last `window` tokens.

        $$ 1 - \left(\frac{K - 1}{K}\right)^{(M - 2) / 2} $$

        for K keys and a window of M tokens that ends at the query, "=>" and the query included; 1
        when the window holds the whole input. With `unique_keys` it is the window's share of the
        pairs. A model that guesses where it does not see scores slightly more.
        """
        require_at_least("window", window, 0)
        pairs = max(window - 2, 0) / 2
        if pairs >= self.num_pairs:
            return 1.0
        if self.unique_keys:
            return pairs / self.num_pairs
        return 1.0 - ((self.num_keys - 1) / self.num_keys) ** pairs

    def prepare(self) -> None:
        """Draw the held-out set and the fixed training set."""
        sequences = self.num_eval + (self.num_train or 0)
        numbers = sequences * self.length + self.batch_size * (self.spec.length + self.vocab_size)
        require_memory("num_eval, num_train, batch_size, length and vocab_size", 8 * numbers)
        _ = self._held_out, self._fixed

    def fingerprint(self) -> None:
        """Return None: the options and the seed decide every sequence."""
        return None

    def train_batches(self, seed: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield batches without end; labels are the next token, at every position or the last."""
        for step in count(first_step):
            if self._fixed is None:
                generator = np.random.default_rng([_FRESH, seed, step])
                sequences = self._draw(generator, self.batch_size)
            else:
                rows = epoch_rows([_ORDER, seed], step, self.batch_size, len(self._fixed))
                sequences = self._fixed[rows]
            yield self._batch(sequences, last_only=self.answer_only)

    def eval_batches(self) -> Iterator[Batch]:
        """Yield the held-out sequences; only the last position has a label."""
        for some in in_batches(self._held_out[: self.num_eval], self.batch_size):
            yield self._batch(some, last_only=True)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over the labelled positions, in nats."""
        return token_loss(logits, batch)

    def metrics(self, logits: Tensor, batch: Batch) -> Metrics:
        """Return `accuracy` and `loss` (nats) over the labelled positions."""
        return token_metrics(logits, batch)

    def _draw(self, generator: np.random.Generator, num: int) -> np.ndarray:
        """Return `num` sequences, (num, length + 3): pairs, "=>", query, answer.

        Tokens in string order: "." is 0, then keys, then values, and "=>" is the last.
        """
        keys, pairs = self.num_keys, self.num_pairs
        values = generator.integers(1 + keys, 1 + 2 * keys, size=(num, keys))
        if self.unique_keys:
            drawn = generator.random((num, keys)).argsort(axis=1)[:, :pairs]
        else:
            drawn = generator.integers(0, keys, size=(num, pairs))
        rows = np.arange(num)
        occurred = np.zeros((num, keys), dtype=bool)
        occurred[rows[:, None], drawn] = True
        # Redrawing a uniform query until it occurred is one uniform draw among those that did.
        query = np.where(occurred, generator.random((num, keys)), -1.0).argmax(axis=1)

        sequences = np.empty((num, self.length + 3), dtype=np.int64)
        sequences[:, 0 : self.length : 2] = 1 + drawn
        sequences[:, 1 : self.length : 2] = values[rows[:, None], drawn]
        sequences[:, self.length] = self.vocab_size - 1
        sequences[:, self.length + 1] = 1 + query
        sequences[:, self.length + 2] = values[rows, query]
        return sequences

    def _draw_distinct(self, name: str, num: int, stream: int, taken: set[bytes]) -> np.ndarray:
        """Return `num` sequences, all different and none of them in `taken`."""
        generator = np.random.default_rng([stream, self.data_seed])
        seen = set(taken)
        kept: list[np.ndarray] = []
        idle = 0
        while len(kept) < num:
            before = len(kept)
            for sequence in self._draw(generator, min(num, 4096)):
                if len(kept) < num and sequence.tobytes() not in seen:
                    seen.add(sequence.tobytes())
                    kept.append(sequence)
            idle = idle + 1 if len(kept) == before else 0
            if idle == _MAX_DRAWS_WITHOUT_PROGRESS:
                apart = f" besides the {len(taken)} to train" if taken else ""
                raise ValueError(
                    f"{name} must be at most the number of different sequences of length "
                    f"{self.length} over {self.vocab_size} tokens{apart}; got {num}, found "
                    f"{len(kept)}."
                )
        return np.stack(kept)

    @cached_property
    def _fixed(self) -> np.ndarray | None:
        if self.num_train is None:
            return None
        return self._draw_distinct("num_train", self.num_train, _FIXED, set())

    @cached_property
    def _held_out(self) -> np.ndarray:
        taken = set() if self._fixed is None else {row.tobytes() for row in self._fixed}
        return self._draw_distinct("num_eval", self.num_eval, _HELD_OUT, taken)

    def _batch(self, sequences: np.ndarray, *, last_only: bool) -> Batch:
        inputs = functional.pad(
            torch.from_numpy(sequences[:, :-1].copy()), (self.padding, 0), value=NOOP
        )
        labels = torch.full_like(inputs, IGNORED)
        first = inputs.shape[1] - 1 if last_only else self.padding
        labels[:, first:] = torch.from_numpy(sequences[:, first - self.padding + 1 :].copy())
        return {"inputs": inputs, "labels": labels}
