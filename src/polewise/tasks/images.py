"""Images as sequences, one pixel a step: sequential and permuted MNIST."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from math import prod
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polewise.options import require_at_least, require_memory, require_types
from polewise.tasks.data_sets import find
from polewise.tasks.epochs import epoch_rows, in_batches
from polewise.tasks.measures import class_loss, class_metrics
from polewise.tasks.task import Batch, Metrics, TaskSpec

PERMUTATION_SEED = 92916
"""Seed of the fixed permutation, `numpy.random.RandomState(92916).permutation(length)`: the random
one named in state-spaces/s4. RandomState's stream is frozen, so every numpy gives the same one."""

NUM_CLASSES = 10

_LENGTHS = {"mnist": 784, "digits": 64}

_MOST_IDX_BYTES = 100_000_000  # MNIST's largest file has 47 million


class _Images(NamedTuple):
    pixels: np.ndarray  # (images, length) uint8
    labels: np.ndarray  # (images,) int64


@dataclass(frozen=True, kw_only=True)
class ImagesTask:
    """Name the digit from its pixels, given row by row, one a step.

    `mnist` is 28 x 28 (length 784): the first 55,000 training images train, the last 5,000
    validate, and the 10,000 test images test. `digits` is scikit-learn's 8 x 8 set (length 64),
    which needs no files: the first 1,397 train, 200 validate and the last 200 test.

    Pixels are scaled to mean 0 and deviation 1 over the whole training part.
    """

    source: Literal["mnist", "digits"] = "mnist"
    """The images."""
    permuted: bool = False
    """Apply one fixed random permutation to the pixels of every image (`PERMUTATION_SEED`)."""
    num_train: int | None = None
    """Train with the first `num_train` images only; None takes all."""
    num_eval: int | None = None
    """Evaluate the first `num_eval` images of the held-out part only; None takes all."""
    batch_size: int = 50
    """Images in a batch."""
    part: Literal["valid", "test"] = "valid"
    """The held-out part."""

    headline: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least("batch_size", self.batch_size, 1)
        for name in ("num_train", "num_eval"):
            if getattr(self, name) is not None:
                require_at_least(name, getattr(self, name), 1)
        require_types(self)

    @property
    def spec(self) -> TaskSpec:
        """One real value a step in, ten classes out."""
        return TaskSpec(
            kind="classification",
            length=_LENGTHS[self.source],
            num_features=1,
            num_classes=NUM_CLASSES,
        )

    def prepare(self) -> None:
        """Read the images and check that there are as many as asked for."""
        require_memory("batch_size", 4 * self.batch_size * self.spec.length)
        for name, images in (("num_train", self._train), ("num_eval", self._held_out)):
            wanted = getattr(self, name)
            if not len(images.labels):
                raise ValueError(
                    f"source must have images to train on and to hold out; {self.source} here has "
                    f"too few for {name}."
                )
            if wanted is not None and wanted > len(images.labels):
                raise ValueError(
                    f"{name} must be at most {len(images.labels)} for {self.source}; got {wanted}."
                )

    def fingerprint(self) -> str:
        """Return the SHA-256 of the images and labels that training and evaluation read."""
        digest = hashlib.sha256()
        for images in (self._train, self._held_out):
            digest.update(images.pixels.tobytes())
            digest.update(images.labels.tobytes())
        return digest.hexdigest()

    def train_batches(self, seed: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield batches without end, every image once per epoch in an order drawn from the seed."""
        self.prepare()
        num = self.num_train or len(self._train.labels)
        for step in count(first_step):
            yield self._batch(self._train, epoch_rows([seed], step, self.batch_size, num))

    def eval_batches(self) -> Iterator[Batch]:
        """Yield the held-out images in order."""
        self.prepare()
        num = self.num_eval or len(self._held_out.labels)
        for rows in in_batches(np.arange(num), self.batch_size):
            yield self._batch(self._held_out, rows)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, in nats."""
        return class_loss(logits, batch)

    def metrics(self, logits: Tensor, batch: Batch) -> Metrics:
        """Return `accuracy` and `loss` (nats)."""
        return class_metrics(logits, batch)

    def _batch(self, images: _Images, rows: np.ndarray) -> Batch:
        mean, deviation = self._scale
        pixels = (images.pixels[rows].astype(np.float32) - mean) / deviation
        if self.permuted:
            pixels = pixels[:, self._order]
        return {
            "inputs": torch.from_numpy(pixels).unsqueeze(-1),
            "labels": torch.from_numpy(images.labels[rows]),
        }

    @cached_property
    def _order(self) -> np.ndarray:
        return np.random.RandomState(PERMUTATION_SEED).permutation(self._train.pixels.shape[1])

    @cached_property
    def _scale(self) -> tuple[np.float32, np.float32]:
        pixels = self._train.pixels
        return np.float32(pixels.mean()), np.float32(pixels.std())

    @cached_property
    def _train(self) -> _Images:
        if self.source == "digits":
            return _digits("train")
        return read_mnist(self._mnist_paths[:2], slice(0, 55_000))

    @cached_property
    def _held_out(self) -> _Images:
        if self.source == "digits":
            return _digits(self.part)
        paths = self._mnist_paths[2:] if self.part == "test" else self._mnist_paths[:2]
        first = 55_000 if self.part == "valid" else 0
        return read_mnist(paths, slice(first, None))

    @cached_property
    def _mnist_paths(self) -> list[Path]:
        try:
            return find("mnist")
        except ValueError as error:
            raise ValueError(f"{error} `--source digits` works without files.") from None


def _digits(part: Literal["train", "valid", "test"]) -> _Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError(
            "source 'digits' must come from scikit-learn, which is not installed: "
            "`pip install scikit-learn`."
        ) from None
    pixels, labels = load_digits(return_X_y=True)
    rows = {"train": slice(0, 1397), "valid": slice(1397, 1597), "test": slice(1597, None)}[part]
    return _Images(pixels[rows].astype(np.uint8), labels[rows].astype(np.int64))


def read_mnist(paths: Sequence[Path], rows: slice) -> _Images:
    """Return some rows of a pair of idx files, the images' and the labels'.

    Raises:
        ValueError: a file is not a complete idx file of MNIST's shape, or the two do not match.
    """
    images_path, labels_path = paths
    images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1)
    if images.shape[1:] != (28, 28):
        raise ValueError(f"source must have images of 28 x 28; {images_path}: {images.shape[1:]}.")
    if len(images) != len(labels):
        raise ValueError(
            f"source must have a label for every image; {images_path} has {len(images)} images, "
            f"{labels_path} has {len(labels)} labels."
        )
    if labels.size and labels.max() >= NUM_CLASSES:
        raise ValueError(f"source must have labels from 0 to 9; {labels_path}: {labels.max()}.")
    return _Images(images[rows].reshape(-1, 784), labels[rows].astype(np.int64))


def _read_idx(path: Path, rank: int) -> np.ndarray:
    """Read one idx file: 0, 0, 8 for bytes, the rank; big-endian sizes; then the bytes."""
    try:
        with gzip.open(path) as file:
            content = file.read(_MOST_IDX_BYTES + 1)
        if len(content) > _MOST_IDX_BYTES:
            raise ValueError(f"it has more than {_MOST_IDX_BYTES:,} bytes")
        if content[:4] != bytes([0, 0, 8, rank]):
            raise ValueError(
                f"it must begin with the bytes 0 0 8 {rank}; got {' '.join(map(str, content[:4]))}"
            )
        shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
        if len(content) != 4 + 4 * rank + prod(shape):
            raise ValueError(f"it is {len(content):,} bytes long, which is not what {shape} needs")
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise ValueError(f"source must be a complete idx file; {path}: {error}.") from error
