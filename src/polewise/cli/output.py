"""What a command answers with: its exit code, and values on one line."""

from __future__ import annotations

from typing import Any

EXIT_FAILED = 1
"""The work failed: training met NaN, the demo did not reach 100 %."""
EXIT_MISTAKE = 2
"""A mistake in the command: one line on stderr, nothing created."""
EXIT_INTERRUPTED = 130
"""Ctrl-C: a run is saved, and so is a state that was asked for."""


def pairs(values: dict[str, Any], *without: str) -> str:
    """Return `name=value name=value ...`, but for the names in `without`."""
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
        if name not in without
    )
