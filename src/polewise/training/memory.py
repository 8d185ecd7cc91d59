"""Memory that one step frees is used again by the next."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's numbers of what `mallopt` can set


def keep_freed_memory() -> bool:
    """Tell the C library to keep what this process frees instead of returning it to the system.

    Every step of training frees the same large tensors and takes them again. Left alone, glibc
    returns them and maps new ones, which the system clears page by page, 4 KiB at a time; from 32
    MB a tensor on it does so always. The price of keeping: the process stays as large as it once
    was.

    Returns:
        Whether it listened: glibc does, other C libraries are left alone.

    Source: `mallopt(3)`, M_TRIM_THRESHOLD and M_MMAP_MAX.
    """
    mallopt = _of_the_c_library("mallopt")
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))


def release_freed_memory() -> None:
    """Return what was kept, once: between one run and the next in the same process."""
    trim = _of_the_c_library("malloc_trim")
    if trim is not None:
        trim(0)


def _of_the_c_library(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
