"""The bytes of a text, read where they are asked for."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import stat
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

_BLOCK = 2**20
_MOST_BLOCKS = 256
"""A fingerprint looks at so many blocks of a file at most, evenly spread: all of it up to that."""

MOST_UNPACKED_BYTES = 2 * 2**30
"""An archive is unpacked in memory; one that holds more is refused."""


class ByteSource(Protocol):
    """Bytes that can be read anywhere."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the bytes from `start` to before `stop`, uint8."""
        ...


class MemoryBytes:
    """Bytes in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = np.frombuffer(content, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._content)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._content[start:stop]


class FileBytes:
    """A file of any size, never read whole.

    It is read by position, not mapped into memory: where a mapped file is cut short by someone else
    the interpreter dies. A file that is deleted or replaced stays readable as it was.

    Raises:
        ValueError: from any method, when the file was changed in place or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        self._began_as = self._identity()

    def __len__(self) -> int:
        return self._began_as[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        if self._identity() != self._began_as:
            raise ValueError(
                f"source must not change while it is read; {self.path} was changed: it had "
                f"{len(self):,} bytes and has {self._identity()[0]:,}. Start again with a copy."
            )
        content = np.empty(stop - start, dtype=np.uint8)
        done = 0
        while done < len(content):  # the system may give less at once than it is asked for
            try:
                got = os.preadv(self._file.fileno(), [content[done:].data], start + done)
            except OSError as error:
                raise ValueError(f"source must be readable; {self.path}: {error}.") from error
            if not got:
                raise ValueError(
                    f"source must not change while it is read; {self.path} ended at byte "
                    f"{start + done:,} of {len(self):,}."
                )
            done += got
        return content

    def _identity(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def open_bytes(path: Path) -> ByteSource:
    """Return the bytes of a file; those of the single member if it is an archive by its name
    (.zip, .gz, .bz2, .xz).

    Raises:
        ValueError: it is not a plain file, is empty, or is an archive that cannot be unpacked.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ValueError("it is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is a pipe or a device")
        if status.st_size == 0:
            raise ValueError("it is empty")
        suffix = path.suffix.lower()
        if suffix == ".zip":
            return MemoryBytes(_unzip(path))
        if suffix in _OPENERS:
            with _OPENERS[suffix](path) as file:
                return MemoryBytes(_read_all(file))
        if suffix in (".zst", ".7z", ".rar"):
            raise ValueError("unpack it and name the file")
        return FileBytes(path)
    except (
        OSError, EOFError, RuntimeError, ValueError,
        zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    ) as error:  # fmt: skip
        raise ValueError(f"source must be readable; {path}: {error}.") from error


def _unzip(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        if len(members) != 1:
            raise ValueError(f"it must be an archive of one file and holds {len(members)}")
        with archive.open(members[0]) as file:
            return _read_all(file)


def _read_all(file: IO[bytes]) -> bytes:
    content = file.read(MOST_UNPACKED_BYTES + 1)
    if len(content) > MOST_UNPACKED_BYTES:
        raise ValueError(
            f"it holds more than {MOST_UNPACKED_BYTES // 2**30} GiB; unpack it and name the file"
        )
    if not content:
        raise ValueError("it is empty")
    return content


def fingerprint(source: ByteSource) -> str:
    size = len(source)
    digest = hashlib.sha256(str(size).encode())
    blocks = min(-(-size // _BLOCK), _MOST_BLOCKS)
    for block in range(blocks):
        start = block * max(size - _BLOCK, 0) // max(blocks - 1, 1)
        digest.update(source.read(start, min(start + _BLOCK, size)).tobytes())
    return digest.hexdigest()
