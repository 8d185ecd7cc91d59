"""Replace a file atomically: a crash leaves the old one or the new one, whole."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


def replace_file(target: Path, content: str | bytes) -> None:
    """Write a file beside its place, flush it to the disk, and rename it there.

    Raises:
        OSError: it cannot be written. What was there before still is.
    """
    # A name of its own: two processes may write the same file at once.
    partial = target.with_name(f".{target.name}.{uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # before the rename, or a power cut could leave an empty file
        partial.replace(target)
        with suppress(OSError):  # the file stands, where folders cannot be flushed too
            flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until the file, or the list of names in the folder, is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
