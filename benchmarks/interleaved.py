"""Filters timed in turns, those that are slow less often.

Quick systems are called once more just before they are timed: while slow ones run for seconds, a
virtual machine may hand free memory back to its host, and the next one to ask would pay for it.
"""

from __future__ import annotations

from filter_systems import System
from shared import in_rounds, ratios, seconds, spread

SLOW_SECONDS = 0.25
SLOW_EVERY = 3
"""A system slower than `SLOW_SECONDS` a call takes part in every third round only."""


def measure(systems: list[System], rounds: int) -> dict[str, list[float | None]]:
    """Seconds of each system in each round; None where a slow one did not take part."""
    times: dict[str, list[float | None]] = {system.name: [] for system in systems}
    slow = {system.name for system in systems if _is_slow(system) and _is_slow(system)}
    for number, system in in_rounds(systems, rounds):
        takes_part = system.name not in slow or number % SLOW_EVERY == 0
        if system.name not in slow:
            seconds(system.call)
        times[system.name].append(seconds(system.call) if takes_part else None)
    return times


def _is_slow(system: System) -> bool:
    """Asked twice of what may only have been cold."""
    return seconds(system.call) > SLOW_SECONDS


def ratio(times: dict[str, list[float | None]], name: str, other: str) -> dict[str, float]:
    """Time of `name` over time of `other`, in the rounds in which both took part."""
    return spread(ratios(times[name], times[other]))
