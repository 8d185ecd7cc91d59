"""Errors of training. The command line answers a TrainingError (the run ended early) with exit code
1, the others (no run began) with 2."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


class TrainingError(RuntimeError):
    """A run that cannot go on. What was saved before is kept."""


class NonFiniteError(TrainingError):
    """Training has met NaN or infinity; nothing of it was saved."""


class SaveError(TrainingError):
    """Something could not be written; what was there before is kept."""


class StalledError(TrainingError):
    """The data source gave nothing for too long; the run was saved."""


class LostProcessError(TrainingError):
    """Another process of the run has ended, or no longer answers; the checkpoints are kept."""


class FolderInUseError(ValueError):
    """Another process trains in the folder."""


class FolderTakenError(ValueError):
    """The folder of a new run is there already, and not empty."""


_REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, or have the quota raised",
    errno.EFBIG: "the limit on the size of files is too small; raise it (`ulimit -f`)",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.EROFS: "mount the file system for writing",
    errno.ENOENT: "the folder has gone; put it back",
    errno.ENOTDIR: "the folder has been replaced by a file; put it back",
    errno.ESTALE: "mount the file system again",
    errno.EIO: "look after the disk",
}


@contextmanager
def explained_saving(what: str, folder: Path, then: str = "resume the run") -> Iterator[None]:
    """Turn a failed write into a SaveError that names the folder and the remedy."""
    try:
        yield
    except Exception as error:
        # The tokenizers have no class of error of their own.
        if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:
            raise
        remedy = _REMEDIES.get(_code(error) or 0, "see to the cause")
        reason = getattr(error, "strerror", None) or str(error)
        raise SaveError(
            f"{what} must be written to {folder}, and could not be: {reason}; {remedy}, then "
            f"{then}. What was saved there before is kept."
        ) from error


def _code(error: Exception) -> int | None:
    """Return the error number; code in Rust tells it in words, `(os error 28)`."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"os error (\d+)", str(error))
    return int(told.group(1)) if told else None
