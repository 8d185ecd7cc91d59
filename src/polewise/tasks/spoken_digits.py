"""Spoken digits as raw audio: which digit was said? The Free Spoken Digit Dataset, 8 kHz."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import wave
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polewise.options import (
    require_at_least,
    require_choice,
    require_memory,
    require_types,
)
from polewise.tasks.byte_source import open_bytes
from polewise.tasks.data_sets import named_or_given
from polewise.tasks.epochs import in_batches, in_epochs
from polewise.tasks.measures import class_loss, class_metrics
from polewise.tasks.task import Batch, Metrics, TaskSpec

SAMPLE_RATE_HZ = 8000
NUM_CLASSES = 10

# The numbers of a speaker's recordings of a digit: the official test part, and our validation.
_TEST, _VALID = range(5), range(5, 10)


class Recording(NamedTuple):
    """One spoken digit."""

    digit: int
    speaker: str
    number: int
    samples: np.ndarray
    """(samples,) int16."""


@dataclass(frozen=True, kw_only=True)
class SpokenDigitsTask:
    """Name the digit that was spoken, from raw samples.

    Every speaker said each digit many times. The official split tests on the recordings 0 to 4 of
    each; we validate on 5 to 9 and train on the rest (2,400 of 3,000). All speakers are in every
    part then. With `test_speaker` the test is all of that speaker, whom training and validation
    never hear; the mean over all speakers is the figure to report.

    Recordings are cut at `length` and padded with zeros on the right to the longest of their batch,
    their `lengths` beside them. Samples are scaled to mean 0 and deviation 1 over the whole
    training part.
    """

    source: str = "spoken_digits"
    """`spoken_digits`, the data set, or the path of a folder or .tar.gz of wav files named
    DIGIT_SPEAKER_NUMBER.wav."""
    test_speaker: str | None = None
    """Test on this speaker alone; None takes the official split."""
    length: int = 8192
    """Most samples of an input, 8000 a second. 2,983 of the 3,000 recordings fit in 8192."""
    samples_per_step: int = 1
    """Samples that are read in one step; `length` is a multiple of it. 8 make an eighth of the
    steps."""
    batch_size: int = 16
    """Recordings in a batch."""
    part: Literal["valid", "test"] = "valid"
    """The held-out part."""

    headline: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_at_least("length", self.length, 1)
        require_at_least("samples_per_step", self.samples_per_step, 1)
        require_at_least("batch_size", self.batch_size, 1)
        require_types(self)
        if self.length % self.samples_per_step:
            raise ValueError(
                f"length must be a multiple of samples_per_step, {self.samples_per_step}; "
                f"got {self.length}."
            )
        if not self.source:
            raise ValueError("source must be `spoken_digits` or a path; got ''.")

    @property
    def spec(self) -> TaskSpec:
        """Samples in, ten classes out."""
        return TaskSpec(
            kind="classification",
            length=self.length // self.samples_per_step,
            num_features=self.samples_per_step,
            num_classes=NUM_CLASSES,
        )

    def prepare(self) -> None:
        """Read the recordings and check that every part has some."""
        require_memory("batch_size and length", 4 * self.batch_size * self.length)
        if self.test_speaker is not None:
            speakers = sorted({recording.speaker for recording in self._recordings})
            require_choice("test_speaker", self.test_speaker, speakers)
        for part in ("train", self.part):
            if not self._parts[part]:
                raise ValueError(
                    f"source must have recordings for every part; {self.source} has "
                    f"{len(self._recordings)} in all and none for {part}."
                )

    def fingerprint(self) -> str:
        """Return the SHA-256 of all recordings and what they are of."""
        digest = hashlib.sha256()
        for digit, speaker, number, samples in self._recordings:
            digest.update(f"{digit}_{speaker}_{number}:{len(samples)}".encode())
            digest.update(samples.tobytes())
        return digest.hexdigest()

    def train_batches(self, seed: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield batches without end, every recording once per epoch in an order of the seed."""
        self.prepare()
        for some in in_epochs(self._parts["train"], seed, first_step, self.batch_size):
            yield self._batch(some)

    def eval_batches(self) -> Iterator[Batch]:
        """Yield the held-out recordings in order."""
        self.prepare()
        for some in in_batches(self._parts[self.part], self.batch_size):
            yield self._batch(some)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, in nats."""
        return class_loss(logits, batch)

    def metrics(self, logits: Tensor, batch: Batch) -> Metrics:
        """Return `accuracy` and `loss` (nats)."""
        return class_metrics(logits, batch)

    def _batch(self, recordings: list[Recording]) -> Batch:
        mean, deviation = self._scale
        ends = [min(len(recording.samples), self.length) for recording in recordings]
        steps = [-(-end // self.samples_per_step) for end in ends]
        longest = max(steps) * self.samples_per_step
        inputs = np.zeros((len(recordings), longest), dtype=np.float32)
        for row, end, recording in zip(inputs, ends, recordings, strict=True):
            row[:end] = (recording.samples[:end] - mean) / deviation
        return {
            "inputs": torch.from_numpy(inputs).unflatten(1, (-1, self.samples_per_step)),
            "labels": torch.tensor([recording.digit for recording in recordings]),
            "lengths": torch.tensor(steps),
        }

    @cached_property
    def _scale(self) -> tuple[np.float32, np.float32]:
        samples = np.concatenate([recording.samples for recording in self._parts["train"]])
        return np.float32(samples.mean()), np.float32(max(samples.std(), 1.0))

    @cached_property
    def _parts(self) -> dict[str, list[Recording]]:
        parts: dict[str, list[Recording]] = {"train": [], "valid": [], "test": []}
        for recording in self._recordings:
            if self.test_speaker is None:
                is_test = recording.number in _TEST
            else:
                is_test = recording.speaker == self.test_speaker
            held_out = "test" if is_test else "valid" if recording.number in _VALID else None
            parts[held_out or "train"].append(recording)
        return parts

    @cached_property
    def _recordings(self) -> list[Recording]:
        what = "a folder or .tar.gz of wav files"
        return read_recordings(named_or_given(self.source, ["spoken_digits"], what))


def read_recordings(path: Path) -> list[Recording]:
    """Return the recordings of a folder or of a .tar or .tar.gz archive, in the order of names.

    What is not named *.wav is left out.

    Raises:
        ValueError: the archive is broken or there are none; a file's name is there twice or not
            DIGIT_SPEAKER_NUMBER.wav, or it is no complete mono 16-bit wav of 8000 Hz.
    """
    files: dict[str, bytes] = {}
    for name, content in _files_of_folder(path) if path.is_dir() else _files_of_archive(path):
        if name in files:
            raise ValueError(f"source must have every recording once; {path} has two {name}.")
        files[name] = content
    if not files:
        raise ValueError(f"source must hold wav files; {path} has none.")
    return [_read_wav(name, files[name]) for name in sorted(files)]


def _files_of_folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in path.glob("*.wav"):
        try:
            if not file.is_file():
                raise OSError("it is a folder, a pipe or a device")
            yield file.name, file.read_bytes()
        except OSError as error:
            raise ValueError(f"source must be readable; {file}: {error}.") from error


def _files_of_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    source = open_bytes(path)
    try:
        with tarfile.open(fileobj=io.BytesIO(source.read(0, len(source)).tobytes())) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name.endswith(".wav") else None
                if file is not None:
                    yield Path(member.name).name, file.read()
    except (tarfile.TarError, EOFError, OSError, LookupError, RecursionError, zlib.error) as error:
        raise ValueError(
            f"source must be a whole archive of wav files; {path}: {error}."
        ) from error


def _read_wav(name: str, content: bytes) -> Recording:
    named = re.fullmatch(r"(\d)_([^_]+)_(\d{1,9})\.wav", name)
    if named is None:
        raise ValueError(f"source must have files named DIGIT_SPEAKER_NUMBER.wav; got {name}.")
    try:
        with wave.open(io.BytesIO(content)) as file:
            form = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
            announced, samples = file.getnframes(), file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"source must have complete wav files; {name}: {error}.") from error
    if form != (1, 16, SAMPLE_RATE_HZ):
        raise ValueError(
            f"source must have wav files of 1 channel, 16 bit and {SAMPLE_RATE_HZ} Hz; {name} has "
            f"{form[0]}, {form[1]} and {form[2]}."
        )
    if not announced or len(samples) != 2 * announced:
        raise ValueError(
            f"source must have complete wav files; {name} announces {announced} samples and has "
            f"{len(samples) // 2}."
        )
    digit, speaker, number = named.groups()
    return Recording(int(digit), speaker, int(number), np.frombuffer(samples, dtype="<i2"))
