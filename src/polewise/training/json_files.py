"""JSON files that may be damaged or malicious."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

_MOST_BYTES = 4 * 2**20


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ValueError: it is not a plain file of reasonable size (4 MiB) that holds one JSON object.
            NaN and infinity are not JSON.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a plain file")
        if status.st_size > _MOST_BYTES:
            raise ValueError(f"it has {status.st_size:,} bytes, more than {_MOST_BYTES:,}")
        values = json.loads(path.read_bytes(), parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"{path.name} must be JSON; it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} must be JSON that can be read; {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} must hold one JSON object; got a {type(values).__name__}")
    return values


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
