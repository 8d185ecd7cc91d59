"""The questions mixers ask their options, answered in the user's words."""

from __future__ import annotations

from collections.abc import Iterable

from polewise.did_you_mean import did_you_mean


def require_at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}.")


def require_choice(name: str, value: str, choices: Iterable[str]) -> None:
    choices = list(choices)
    if value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(choices)}; got {value!r}."
            f"{did_you_mean(value, choices)}"
        )


def require_multiple(name: str, value: int, of_name: str, of: int) -> None:
    if value % of:
        raise ValueError(f"{name} must be a multiple of {of_name}; got {value} and {of}.")
