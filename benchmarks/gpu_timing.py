"""Time and memory of calls on a GPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch

from shared import in_rounds, spread

CYCLES = 2e9
"""Of a GPU in a second, about."""


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

    A system that cannot do it, for want of memory or of a kernel, is named and left out. One that
    launches more than a thousand kernels a call fills the queue: its gaps count.
    """
    times: dict[str, list[float]] = {}
    launches: dict[str, float] = {}
    for name, call in systems.items():
        try:
            call()
            begin = time.perf_counter()
            call()
            launches[name] = time.perf_counter() - begin
            times[name] = []
        except Exception as error:  # the compiler's own have no base but this
            print(f"left out: {name}: {one_line(error)}", flush=True)
    for _, name in in_rounds(list(times), rounds):
        times[name].append(_seconds(systems[name], device, launches[name]))
    return times


def _seconds(call: Callable[[], object], device: str, launch: float) -> float:
    """Of one call. A device waits until Python has launched all of it, which took `launch` before:
    the gaps between launches are no time of the kernels."""
    if device == "cpu":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(int(CYCLES * (1e-3 + 2 * launch)))
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def in_ms(seconds: list[float]) -> dict[str, float]:
    """Their spread, as columns of a table."""
    taken = spread(seconds)
    return {
        "ms": 1e3 * taken["median"],
        "ms_low": 1e3 * taken["low"],
        "ms_high": 1e3 * taken["high"],
    }


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()
