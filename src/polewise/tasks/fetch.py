"""Download the public originals of data sets, and check them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import http.client
import io
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from polewise.options import require_choice
from polewise.replace_file import replace_file
from polewise.tasks.data_sets import (
    DATA_SETS,
    DataFile,
    download_folder,
    how_to_get,
    locate,
)

_TIMEOUT_SECONDS = 30.0
_DAMAGE = (OSError, EOFError, RuntimeError, ValueError, zlib.error, zipfile.BadZipFile)
"""What unpacking an archive that is no whole one may raise."""


def fetch_data_set(name: str, *, say: Callable[[str], object]) -> list[Path]:
    """Download what is missing of the data set `name` into `download_folder`; return its files.

    The content is checked, unpacked, against its size and MD5 before anything is put in place.

    Raises:
        ValueError: the name is unknown or has no address, there is no network, or the content is
            not the original.
    """
    require_choice("fetch", name, DATA_SETS)
    data_set = DATA_SETS[name]
    if data_set.origin:
        raise ValueError(
            f"fetch must name a data set that can be downloaded; {name} cannot: {how_to_get(name)}."
        )
    return [_checked(file) or _fetch(file, say) for file in data_set.files]


def _checked(file: DataFile) -> Path | None:
    """Where the file lies already, if it is the original."""
    path = locate(file)
    if path is not None:
        try:
            _require_original(file, unpack(path.read_bytes()), str(path))
        except _DAMAGE as error:
            raise ValueError(f"{error} Delete or replace {path}.") from error
    return path


def _fetch(file: DataFile, say: Callable[[str], object]) -> Path:
    target = download_folder() / file.paths[0]
    say(f"fetching {file.url} ({file.num_bytes:,} bytes unpacked)")
    try:
        with urllib.request.urlopen(str(file.url), timeout=_TIMEOUT_SECONDS) as response:
            # A page of another size is no original; what is packed is hardly larger.
            packed = response.read(file.num_bytes + 2**20)
    except (http.client.HTTPException, OSError) as error:  # URLError is an OSError
        raise ValueError(
            f"fetch needs a network: {file.url} could not be reached ({error}). "
            f"Place the file at {target} by other means."
        ) from None
    try:
        content = unpack(packed)
    except _DAMAGE as error:
        raise ValueError(f"fetch must give a complete archive; {file.url}: {error}.") from error
    _require_original(file, content, f"{file.url}, of which nothing was kept,")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, packed if target.suffix == ".gz" else content)
    except OSError as error:
        raise ValueError(f"fetch must be able to write {target}: {error}.") from error
    return target


def _require_original(file: DataFile, content: bytes, where: str) -> None:
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if len(content) != file.num_bytes or md5 != file.md5:
        raise ValueError(
            f"fetch must give the original of {file.num_bytes:,} bytes, md5 {file.md5}; {where} "
            f"has {len(content):,} bytes, md5 {md5}."
        )


def unpack(packed: bytes) -> bytes:
    """Return the content of a gzip or bzip2 file or of a zip of one member; else the bytes."""
    if packed.startswith(b"\x1f\x8b"):
        return gzip.decompress(packed)
    if packed.startswith(b"BZh"):
        return bz2.decompress(packed)
    if packed.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            return archive.read(archive.namelist()[0])
    return packed
