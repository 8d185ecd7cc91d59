"""The nearest of the names that would have been right, for a message about a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" with the nearest known name, or nothing."""
    near = difflib.get_close_matches(str(name)[:100], list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
