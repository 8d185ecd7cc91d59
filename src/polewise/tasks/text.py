"""Byte-level language modelling of any file."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from math import log
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from polewise.options import require_at_least, require_memory, require_types
from polewise.tasks.byte_source import ByteSource, MemoryBytes, fingerprint, open_bytes
from polewise.tasks.data_sets import DATA_SETS, named_or_given
from polewise.tasks.epochs import in_batches
from polewise.tasks.measures import token_loss, token_metrics
from polewise.tasks.task import IGNORED, Batch, Metrics, TaskSpec

NUM_BYTES = 256
"""The vocabulary: every byte value."""

_NAMED = ("dickens", "tinyshakespeare", "enwik8", "text8")

Part = Literal["train", "valid", "test"]


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """Predict the next byte of a text.

    The text is cut in order: the first 90 % for training, 5 % for validation, 5 % for the test.
    For enwik8 and text8 (100,000,000 bytes) that is the standard 90M / 5M / 5M. Tiny Shakespeare
    has its usual 90 / 10 and no test part.

    Training windows start anywhere, drawn from the seed and the step. The evaluation runs through
    the held-out part in windows that follow one another without overlap, so every byte of it is
    predicted exactly once; the input of the first is the last byte before the part.
    """

    source: str = "embedded"
    """`embedded` (Python's own manual, about half a megabyte, in every Python), a data set's name
    (`dickens`, `tinyshakespeare`, `enwik8`, `text8`), or the path of any file."""
    length: int = 256
    """Bytes of a window."""
    batch_size: int = 16
    """Windows in a batch."""
    eval_bytes: int = 0
    """Held-out bytes to evaluate, from the beginning of the part; 0 takes all of it."""
    part: Literal["valid", "test"] = "valid"
    """The held-out part."""

    headline: ClassVar[str] = "bits_per_byte"
    higher_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_at_least("length", self.length, 1)
        require_at_least("batch_size", self.batch_size, 1)
        require_at_least("eval_bytes", self.eval_bytes, 0)
        require_types(self)
        if not self.source:
            raise ValueError("source must be `embedded`, a data set's name or a path; got ''.")
        if self.part == "test" and not self.has_test:
            raise ValueError("part must be 'valid' for tinyshakespeare, which has no test part.")

    @property
    def has_test(self) -> bool:
        """Whether there is a test part."""
        return self.source != "tinyshakespeare"

    @property
    def spec(self) -> TaskSpec:
        """Bytes in, bytes out."""
        return TaskSpec(kind="language", length=self.length, vocab_size=NUM_BYTES)

    def prepare(self) -> None:
        """Open the text and check that every part is long enough."""
        require_memory("batch_size and length", 8 * self.batch_size * self.length)
        first, last = self._bounds("train")
        if last - first <= self.length:
            raise ValueError(
                f"length must be less than the training part of {self.source}, nine tenths of it "
                f"({last - first} bytes); got {self.length}. Take a longer text or shorter windows."
            )
        first, last = self._bounds(self.part)
        if last <= first:
            raise ValueError(
                f"source must leave at least one byte to evaluate; {self.source} has "
                f"{len(self._text)} bytes in all."
            )

    def fingerprint(self) -> str:
        """Return a hash of the text's size and content; above 256 MiB, of parts of it."""
        return fingerprint(self._text)

    def train_batches(self, seed: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield random windows of the training part without end."""
        self.prepare()
        _, last = self._bounds("train")
        for step in count(first_step):
            generator = np.random.default_rng([seed, step])
            starts = generator.integers(0, last - self.length, size=self.batch_size)
            rows = [self._text.read(start, start + self.length + 1) for start in starts.tolist()]
            windows = torch.from_numpy(np.stack(rows).astype(np.int64))
            yield {"inputs": windows[:, :-1].contiguous(), "labels": windows[:, 1:].contiguous()}

    def eval_batches(self) -> Iterator[Batch]:
        """Yield the held-out windows in order; the last one is padded on the right."""
        self.prepare()
        first, last = self._held_out_bounds()
        starts = range(first, last, self.length)
        for some in in_batches(starts, self.batch_size):
            rows = [self._window(start, min(start + self.length, last)) for start in some]
            yield {
                "inputs": torch.stack([inputs for inputs, _ in rows]),
                "labels": torch.stack([labels for _, labels in rows]),
            }

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy per byte, in nats."""
        return token_loss(logits, batch)

    def metrics(self, logits: Tensor, batch: Batch) -> Metrics:
        """Return `bits_per_byte` and `accuracy` of the next byte."""
        measures = token_metrics(logits, batch)
        nats, num_bytes = measures["loss"]
        return {"bits_per_byte": (nats / log(2), num_bytes), "accuracy": measures["accuracy"]}

    def held_out_text(self) -> bytes:
        """Return the bytes that the evaluation predicts."""
        self.prepare()
        first, last = self._held_out_bounds()
        return self._text.read(first, last).tobytes()

    def compressor_bits_per_byte(self) -> float:
        """Return the size of the held-out text under `xz -9`, in bits per byte.

        The compressor sees nothing but that text: it has no training part to learn from, and its
        container costs some 60 bytes.
        """
        text = self.held_out_text()
        return 8 * len(lzma.compress(text, preset=9)) / len(text)

    def _window(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        inputs = torch.zeros(self.length, dtype=torch.int64)
        labels = torch.full((self.length,), IGNORED)
        text = torch.from_numpy(self._text.read(start - 1, stop).astype(np.int64))
        inputs[: stop - start], labels[: stop - start] = text[:-1], text[1:]
        return inputs, labels

    def _bounds(self, part: Part) -> tuple[int, int]:
        """Return the first byte of a part and the byte after its last."""
        length = len(self._text)
        nine_tenths, nineteen_twentieths = length * 9 // 10, length * 19 // 20
        if not self.has_test:
            nineteen_twentieths = length
        return {
            "train": (0, nine_tenths),
            "valid": (nine_tenths, nineteen_twentieths),
            "test": (nineteen_twentieths, length),
        }[part]

    def _held_out_bounds(self) -> tuple[int, int]:
        first, last = self._bounds(self.part)
        return first, min(last, first + self.eval_bytes) if self.eval_bytes else last

    @cached_property
    def _text(self) -> ByteSource:
        if self.source == "embedded":
            return MemoryBytes(_embedded_text())
        path = named_or_given(self.source, ["embedded", *_NAMED], "a file")
        text = open_bytes(path)
        if self.source in _NAMED:
            (file,) = DATA_SETS[self.source].files
            if len(text) != file.num_bytes:
                raise ValueError(
                    f"source {self.source} must have {file.num_bytes:,} bytes; {path} has "
                    f"{len(text):,}. To learn from it as it is, give its path."
                )
        return text


def _embedded_text() -> bytes:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)).encode()
