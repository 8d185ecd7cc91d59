"""What a command answers with: its exit code, and values on one line."""

from __future__ import annotations

import signal
from typing import Any

from polewise.training.display import format_number

EXIT_FAILED = 1
"""The work failed: training met NaN, the demo did not reach 100 %, a file could not be written, or
memory ran out."""
EXIT_MISTAKE = 2
"""A mistake in the command: one line on stderr, nothing created."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, where it ends a command as Ctrl-C does."""


def exit_code(stop: KeyboardInterrupt) -> int:
    """130 for Ctrl-C, 143 for SIGTERM: a run is saved, and so is a state that was asked for."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def pairs(values: dict[str, Any], *without: str) -> str:
    """Return `name=value name=value ...`, but for the names in `without`."""
    return " ".join(
        f"{name}={format_number(value)}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
        if name not in without
    )
