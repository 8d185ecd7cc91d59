"""The manifest of a folder: the size and the SHA-256 of every file in it, and of itself.

safetensors files have no checksum: a flipped bit in one loads as another number, in silence.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from polewise.training.json_files import read_json_object

MANIFEST = "manifest.json"
_FORMAT = 1


def write_manifest(folder: Path) -> None:
    """Describe the files of a folder, which must hold files only, in its `manifest.json`."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": _hash_file(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    described: dict[str, Any] = {"format": _FORMAT, "files": files}
    described["sha256"] = _hash_of(described)
    (folder / MANIFEST).write_text(_rendered(described), encoding="utf-8")


def has_manifest(folder: Path) -> bool:
    """Whether a folder was written here: those of others have none."""
    return (folder / MANIFEST).exists()


def verify_folder(folder: Path, *, names: Iterable[str] = (), max_bytes: int | None = None) -> None:
    """Check that every file is as it was written.

    Sizes are compared first, so that nothing large is read in vain.

    Args:
        folder: the folder.
        names: files that the manifest must list.
        max_bytes: the most that all files may have together; None for any size.

    Raises:
        ValueError: a file is missing, is not a plain file, or differs; the message names it.
    """
    files = _read_manifest(folder)
    missing = sorted(set(names) - set(files))
    if missing:
        raise ValueError(f"{MANIFEST} does not list {missing[0]}")
    for name, entry in files.items():
        try:
            status = (folder / name).lstat()
        except OSError as error:
            raise ValueError(f"{name} is missing ({error.strerror})") from error
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name} is not a plain file")
        if status.st_size != entry["size"]:
            raise ValueError(
                f"{name} has {status.st_size:,} bytes; it was written with {entry['size']:,}"
            )
    total = sum(entry["size"] for entry in files.values())
    if max_bytes is not None and total > max_bytes:
        raise ValueError(f"its files have {total:,} bytes; those of this model have fewer")
    for name, entry in files.items():
        try:
            found = _hash_file(folder / name)
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror})") from error
        if found != entry["sha256"]:
            raise ValueError(f"{name} is not what was written: its SHA-256 differs")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not has_manifest(folder):
        raise ValueError(
            f"{MANIFEST} is missing: it is incomplete, or from before checkpoints had one"
        )
    described = read_json_object(path)
    if described.get("format") != _FORMAT:
        raise ValueError(
            f"{MANIFEST} must have format {_FORMAT}; got {described.get('format')!r}: "
            "it is from another version of Polewise"
        )
    is_as_rendered = path.read_bytes() == _rendered(described).encode()
    told = described.pop("sha256", None)
    if told != _hash_of(described) or not is_as_rendered:
        raise ValueError(f"{MANIFEST} is not what was written: its SHA-256 differs")
    files = described.get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{MANIFEST} has no files")
    for name, entry in files.items():
        if not name or name != Path(name).name or name in (".", "..", MANIFEST) or "\0" in name:
            raise ValueError(f"{MANIFEST} names {name!r}, which is no file of this folder")
        sealed = isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
        if not sealed or not isinstance(entry.get("size"), int):
            raise ValueError(f"{MANIFEST} does not say size and SHA-256 of {name}")
    return files


def _rendered(described: dict[str, Any]) -> str:
    return json.dumps(described, indent=2) + "\n"


def _hash_of(described: dict[str, Any]) -> str:
    text = json.dumps(described, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
