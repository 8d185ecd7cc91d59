"""Through a fixed set: epoch after epoch, each in an order of its own, or once in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import Any, TypeVar

import numpy as np

from polewise.tasks.task import Batch

Item = TypeVar("Item")
Items = TypeVar("Items", bound=Any)


def epoch_rows(stream: Sequence[int], step: int, batch_size: int, num: int) -> np.ndarray:
    """Return which of `num` rows are the batch of `step`, (batch_size,); each once an epoch.

    The order of an epoch is drawn from `stream` and the epoch's number, so any step may be the
    first. Where `num` is no multiple of `batch_size` a batch reaches into the next epoch.
    """
    wanted = np.arange(step * batch_size, (step + 1) * batch_size)
    rows = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(wanted // num):
        order = _order(tuple(stream), int(epoch), num)
        here = wanted // num == epoch
        rows[here] = order[wanted[here] % num]
    return rows


@lru_cache(maxsize=4)
def _order(stream: tuple[int, ...], epoch: int, num: int) -> np.ndarray:
    """The order of an epoch, drawn once for its batches."""
    return np.random.default_rng([*stream, epoch]).permutation(num)


def in_epochs(
    items: Sequence[Item], seed: int, first_step: int, batch_size: int
) -> Iterator[list[Item]]:
    """Yield batches of `items` without end, each item once an epoch, from that of `first_step`."""
    for step in count(first_step):
        yield [items[row] for row in epoch_rows([seed], step, batch_size, len(items))]


def in_order(sequences: Batch, batch_size: int) -> Iterator[Batch]:
    """Yield all sequences, so many at a time."""
    for rows in in_batches(range(len(sequences["inputs"])), batch_size):
        yield {name: part[rows.start : rows.stop] for name, part in sequences.items()}


def in_batches(items: Items, batch_size: int) -> Iterator[Items]:
    """Yield slices of `items` in order, `batch_size` long; the last may be shorter."""
    for first in range(0, len(items), batch_size):
        yield items[first : first + batch_size]
