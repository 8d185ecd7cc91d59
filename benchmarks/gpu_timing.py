"""Time and memory of calls on a GPU."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

import torch

HEAD_START = 4_000_000
"""Cycles, some two milliseconds, for which a device waits before a call is timed: what it takes
Python to launch the call's kernels is no time of theirs."""


def peak_bytes(call: Callable[[], object]) -> int:
    """Beyond what was there before, in the second call (the first one tunes)."""
    call()
    free()
    if not torch.cuda.is_available():
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(
    systems: dict[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, list[float]]:
    """Seconds of every system in every round, by events on the device, after two warm-up calls.

    A system that cannot do it, for want of memory or of a kernel, is named and left out.
    """
    times: dict[str, list[float]] = {}
    for name, call in systems.items():
        try:
            call()
            call()
            times[name] = []
        except RuntimeError as error:
            print(f"left out: {name}: {str(error).splitlines()[0]}", flush=True)
    names = list(times)
    for number in range(rounds):
        turn = number % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            times[name].append(_seconds(systems[name], device))
    return times


def _seconds(call: Callable[[], object], device: str) -> float:
    if device == "cpu":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(HEAD_START)
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def spread(seconds: list[float]) -> dict[str, float]:
    return {
        "ms": 1e3 * statistics.median(seconds), "ms_low": 1e3 * min(seconds),
        "ms_high": 1e3 * max(seconds),
    }  # fmt: skip


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()
