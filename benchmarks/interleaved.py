"""Systems timed in turns: every round has every system once, in an order that rotates.

What else the machine does then falls on all of them alike, and a ratio is taken inside a round.
Quick systems are called once more just before they are timed: while slow ones run for seconds, a
virtual machine may hand free memory back to its host, and the next one to ask would pay for it.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from filter_systems import System

T = TypeVar("T")

SLOW_SECONDS = 0.25
SLOW_EVERY = 3
"""A system slower than `SLOW_SECONDS` a call takes part in every third round only."""


def measure(systems: list[System], rounds: int) -> dict[str, list[float | None]]:
    """Seconds of each system in each round; None where a slow one did not take part."""
    times: dict[str, list[float | None]] = {system.name: [] for system in systems}
    slow = {system.name for system in systems if _is_slow(system) and _is_slow(system)}
    for number in range(rounds):
        gc.collect()
        for system in in_turn(systems, number):
            takes_part = system.name not in slow or number % SLOW_EVERY == 0
            if system.name not in slow:
                seconds(system.call)
            times[system.name].append(seconds(system.call) if takes_part else None)
        progress(f"round {number + 1} of {rounds}")
    progress("")
    return times


def in_turn(items: Sequence[T], number: int) -> list[T]:
    """The items in the order of a round, which begins with another one every time."""
    turn = number % len(items)
    return [*items[turn:], *items[:turn]]


def _is_slow(system: System) -> bool:
    """Asked twice of what may only have been cold."""
    return seconds(system.call) > SLOW_SECONDS


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    result = call()
    taken = time.perf_counter() - start
    del result
    return taken


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:60}", end="" if text else "\r", file=sys.stderr, flush=True)


def ratio(times: dict[str, list[float | None]], name: str, other: str) -> dict[str, float]:
    """Time of `name` over time of `other`, in the rounds in which both took part."""
    pairs = zip(times[name], times[other], strict=True)
    ratios = [mine / theirs for mine, theirs in pairs if mine is not None and theirs is not None]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
