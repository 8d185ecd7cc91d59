"""Files and folders that are whole, the old one or the new one, whatever happens meanwhile.

A folder is filled beside its place (`.NAME.partial`), gets a manifest, is flushed to the disk with
everything in it, and is renamed into place; the folder it replaces waits as `.NAME.old` until the
new one stands. Rename is atomic, so a process may die at any point.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from polewise.training.manifest import write_manifest


def replace_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write(path)` fill a folder beside `target`, then put it into place with a manifest.

    Raises:
        OSError: it cannot be written. What was there before still is.
    """
    partial, old = _beside(target, "partial"), _beside(target, "old")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        write(partial)
        write_manifest(partial)
        for path in (*partial.iterdir(), partial):
            flush(path)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        partial.rename(target)
        flush(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def remove_folder(target: Path) -> None:
    """Delete a folder so that no half of it is ever seen in its place."""
    gone = _beside(target, "gone")
    shutil.rmtree(gone, ignore_errors=True)
    target.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def replace_file(target: Path, text: str) -> None:
    """Write a text file beside its place, flush it, and rename it there."""
    partial = _beside(target, "partial")
    try:
        partial.write_text(text, encoding="utf-8")
        flush(partial)
        partial.rename(target)
        flush(target.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here for the same folder."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def clear_up(folder: Path, names: str) -> None:
    """Finish what a killed process left in `folder`: only for one who alone writes there.

    Looks at what stood for `names`, a regular expression, and at nothing else. A folder whose
    replacement never came is put back; partial and half deleted ones go.
    """
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        left = re.fullmatch(rf"\.({names})\.(partial|old|gone)", path.name)
        if left is None:
            continue
        target = path.with_name(left.group(1))
        if left.group(2) == "old" and not target.exists():
            path.rename(target)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until the file, or the list of names in the folder, is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}")
