"""Locks: one process at a time, where the file system has locks. One ends with whoever holds it."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

_ATTEMPTS = 10


class LockedError(Exception):
    """Another process holds the lock; the message says which."""


def lock(path: Path) -> TextIO:
    """Return the file at `path`, made if need be, locked and signed; closing it lets go.

    Where the file system has no locks everybody gets it.

    Raises:
        LockedError: another process holds it.
        OSError: the file cannot be opened for writing.
    """
    file = path.open("a+")
    try:
        _take(file)
    except BlockingIOError as error:
        with file:
            file.seek(0)
            holder = file.read(100).strip() or "another process"
        raise LockedError(holder) from error
    with suppress(OSError):  # a full disk costs no more than the signature
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}\n".encode())
    return file


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock at `path`."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such file, or no locks
        pass
    return False


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Wait until no other process is in here for the same folder; False where nothing says so, on a
    file system without locks."""
    opened, alone = os.open(folder, os.O_RDONLY), False
    try:
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
            alone = True
        yield alone
    finally:
        os.close(opened)


def _take(file: TextIO) -> None:
    """Raise BlockingIOError where another process holds it. Whoever only looks (`is_locked`) holds
    it for a moment, which is waited for."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt == _ATTEMPTS:
                raise
            time.sleep(0.01)
        except OSError:
            return  # a file system without locks
