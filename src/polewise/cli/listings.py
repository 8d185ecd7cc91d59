"""The commands that list what there is to choose from."""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, fields
from typing import Annotated

from tyro.conf import Positional, arg

from polewise.mixers import MIXERS, mixer_option_types
from polewise.options import require_choice


def mixers(name: Annotated[Positional[str], arg(metavar="NAME")] = "") -> int:
    """List the mixers, or the options of one with their defaults.

    For example:
      polewise mixers
      polewise mixers focus

    Args:
        name: A mixer.
    """
    if name:
        require_choice("mixer", name, MIXERS)
    for mixer in [name] if name else MIXERS:
        summary = (MIXERS[mixer].__doc__ or "").strip().splitlines()
        print(f"{mixer:24} {summary[0] if summary else ''}")
        if name:
            known = {field.name: field for field in fields(MIXERS[mixer])}
            for option in mixer_option_types(mixer):
                print(f"  --set {option}={_default(known[option])}")
    return 0


def _default(option: Field) -> str:
    """What an option is unless it is given, as a command takes it; its type if it has to be."""
    if option.default_factory is not MISSING:
        value = option.default_factory()
    elif option.default is not MISSING:
        value = option.default
    else:
        return str(getattr(option.type, "__name__", option.type)).upper()
    return value if isinstance(value, str) else json.dumps(value, default=str)


def data(fetch: str | None = None) -> int:
    """List the data sets: which are found, and what to place where for the others.

    For example:
      polewise data
      polewise data --fetch enwik8

    Args:
        fetch: Download the public original of this data set and check it.
    """
    from polewise.tasks.data_sets import DATA_SETS, data_folders, how_to_get, locate, place_for
    from polewise.tasks.fetch import fetch_data_set

    if fetch is not None:
        for path in fetch_data_set(fetch, say=print):
            print(f"placed {path}")
        return 0
    print("looked in: " + ", ".join(str(folder) for folder in data_folders()))
    print("embedded         found: Python's own manual, for `train text`")
    print("digits           found with scikit-learn: 8 x 8 digits, for `train images`")
    for name, data_set in DATA_SETS.items():
        found = [locate(file) for file in data_set.files]
        if all(found):
            where = str(found[0] if len(found) == 1 else found[0].parent)  # type: ignore[union-attr]
            print(f"{name:16} found: {where}")
        else:
            missing = [
                str(place_for(file))
                for file, path in zip(data_set.files, found, strict=True)
                if path is None
            ]
            print(f"{name:16} missing: place {', '.join(missing)}; {how_to_get(name)}")
        print(f"{'':16} {data_set.what}")
    return 0
