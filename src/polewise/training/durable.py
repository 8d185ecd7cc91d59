"""Replace folders atomically: a crash leaves the old one or the new one, whole.

A folder is filled beside its place (`.NAME.partial`), gets a manifest, is flushed to the disk with
everything in it, and is renamed into place; the folder it replaces waits as `.NAME.old` until the
new one stands. Rename is atomic, so a process may die at any point.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from polewise.replace_file import flush
from polewise.training.manifest import write_manifest


def replace_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write(path)` fill a folder beside `target`, then put it into place with a manifest.

    Raises:
        OSError: it cannot be written. What was there before still is.
    """
    partial, old = _beside(target, "partial"), _beside(target, "old")
    _discard(partial)
    try:
        partial.mkdir()
        write(partial)
        write_manifest(partial)
        for path in (*partial.iterdir(), partial):
            flush(path)
        if target.exists():
            _discard(old)
            target.rename(old)
        partial.rename(target)
        flush(target.parent)
    except BaseException:
        _discard(partial)
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        if target.exists():
            _discard(old)


def remove_folder(target: Path) -> None:
    """Delete a folder so that no half of it is ever seen in its place."""
    gone = _beside(target, "gone")
    _discard(gone)
    target.rename(gone)
    _discard(gone)


def clear_up(folder: Path, names: str) -> None:
    """Finish what a killed process left in `folder`: only for one who alone writes there.

    Looks at what stood for `names`, a regular expression, and at nothing else. A folder whose
    replacement never came is put back; partial and half deleted ones go.
    """
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        left = re.fullmatch(rf"\.({names})(?:\.[0-9a-f]{{32}})?\.(partial|old|gone)", path.name)
        if left is None:
            continue
        target = path.with_name(left.group(1))
        if left.group(2) == "old" and not target.exists():
            path.rename(target)
        else:
            _discard(path)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}")
