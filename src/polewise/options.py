"""Checks that all options share; each message names the option and the value."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from polewise.did_you_mean import did_you_mean

_TYPES: dict[type, dict[str, Any]] = {}


def require_types(options: Any) -> None:
    """Raise ValueError unless every field of a dataclass has a value of its annotated type."""
    kind = type(options)
    if kind not in _TYPES:
        _TYPES[kind] = typing.get_type_hints(kind)
    for field in dataclasses.fields(options):
        require_type(field.name, getattr(options, field.name), _TYPES[kind][field.name])


def require_type(name: str, value: Any, hint: Any) -> None:
    """Raise ValueError unless `value` fits the annotation `hint`."""
    if not _has_type(value, hint):
        if typing.get_origin(hint) is Literal:
            require_choice(name, value, typing.get_args(hint))
        shown = getattr(hint, "__name__", None) if isinstance(hint, type) else None
        shown = shown or str(hint).replace("typing.", "")
        raise ValueError(f"{name} must be of type {shown}; got {_shortened(value)}.")


def require_at_least(name: str, value: int, least: int) -> None:
    """Raise ValueError unless the option `name` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {_shortened(value)}.")


def require_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ValueError, with the nearest choice, unless `value` is one of `choices`."""
    choices = list(choices)
    if not _is_among(value, choices):
        known = [str(choice) for choice in choices]
        raise ValueError(
            f"{name} must be one of {', '.join(known)}; got {_shortened(value)}."
            f"{did_you_mean(value, known)}"
        )


def from_json(kind: Any, values: Mapping[str, Any]) -> Any:
    """Return the dataclass `kind` with these options, read from JSON, which has no tuples.

    Raises:
        ValueError: an option that it does not have, and the nearest is suggested; or a value that
            it refuses.
    """
    try:
        hints = typing.get_type_hints(kind)
    except NameError:  # of the user's, with names that only a type checker sees
        hints = {}
    known = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            raise ValueError(
                f"{kind.__name__} must have known options; got {name!r}.{did_you_mean(name, known)}"
            )
    return kind(**{name: with_tuples(value, hints.get(name)) for name, value in values.items()})


def with_tuples(value: Any, hint: Any) -> Any:
    """Return `value` with a tuple for each list where the annotation `hint` has a tuple."""
    if isinstance(value, list):
        for kind in _choices(hint):
            if typing.get_origin(kind) is tuple:
                hints = _hints_of_items(kind, len(value))
                if len(hints) == len(value):
                    return tuple(map(with_tuples, value, hints))
    return value


def require_multiple(name: str, value: int, of_name: str, of: int) -> None:
    """Raise ValueError unless one option is a multiple of another, or of a number."""
    if value % of:
        others = "" if of_name == str(of) else f" and {of}"
        raise ValueError(f"{name} must be a multiple of {of_name}; got {value}{others}.")


class TooLargeError(ValueError):
    """What is asked for can never fit into this machine's memory."""


def require_memory(names: str, num_bytes: int) -> None:
    """Raise TooLargeError if so many bytes can never fit into this machine's memory.

    `names` are the options that ask for them. It is an estimate from below: what passes may still
    be too much.
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes > physical:
        raise TooLargeError(
            f"{names} must fit into memory; they need at least {_in_gigabytes(num_bytes)} and this "
            f"machine has {_in_gigabytes(physical)}."
        )


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a value fits an annotation; what is not known here is left to its owner."""
    origin = typing.get_origin(hint)
    if hint is Any:  # itself a class, which isinstance refuses
        return True
    if origin is Literal:
        return _is_among(value, typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return any(_has_type(value, choice) for choice in _choices(hint))
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        hints = _hints_of_items(hint, len(value))
        return len(hints) == len(value) and all(map(_has_type, value, hints))
    if origin is list:
        return isinstance(value, list) and all(
            _has_type(item, each) for item in value for each in typing.get_args(hint)
        )
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        return fits and (isinstance(value, float) or abs(value) < 2**1000)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if isinstance(hint, type):
        return isinstance(value, hint)
    return True


def _is_among(value: Any, choices: Iterable[Any]) -> bool:
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _choices(hint: Any) -> tuple[Any, ...]:
    """The kinds of a union; of anything else itself."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _hints_of_items(hint: Any, length: int) -> tuple[Any, ...]:
    """What the items of a tuple of that length have to be: `tuple[int, ...]` has any length."""
    hints = typing.get_args(hint)
    return (hints[0],) * length if hints[1:] == (Ellipsis,) else hints


def _shortened(value: Any) -> str:
    try:
        shown = repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        shown = "a number of thousands of digits"
    return shown if len(shown) <= 100 else f"{shown[:100]}..."


def _in_gigabytes(num_bytes: int) -> str:
    tenths = num_bytes * 10 // 10**9  # an integer of any size
    return f"{tenths // 10:,}.{tenths % 10} GB"
