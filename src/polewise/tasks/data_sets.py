"""Where data sets lie, and what to place where when one does not.

A data set is looked for in the folder that `POLEWISE_DATA` names; without it in `data` and
`../shared/data` under the current directory, beside the source checkout, and in
`~/.cache/polewise`, where `polewise data --fetch` puts what it downloads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polewise.did_you_mean import did_you_mean
from polewise.options import require_choice


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One file of a data set."""

    paths: tuple[str, ...]
    """Where it may lie inside a data folder, best first."""
    num_bytes: int
    """Size of the content, unpacked."""
    md5: str
    """Checksum of the content, unpacked."""
    url: str | None = None
    """The public original, if it can be fetched; else the data set's `origin` is the way."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set that a task can be given by name."""

    what: str
    """One line about it."""
    files: tuple[DataFile, ...]
    """Its files."""
    origin: str = ""
    """Where to get by hand what cannot be fetched."""


_UEA = "the UEA archive, timeseriesclassification.com"


def _mnist(name: str, num_bytes: int, md5: str) -> DataFile:
    mirror = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    return DataFile(
        paths=(f"mnist/{name}.gz",), num_bytes=num_bytes, md5=md5, url=f"{mirror}{name}.gz"
    )


def _uea(name: str, *parts: tuple[str, int, str]) -> tuple[DataFile, ...]:
    return tuple(
        DataFile(paths=(f"uea/{name}/{name}_{part}.ts",), num_bytes=num_bytes, md5=md5)
        for part, num_bytes, md5 in parts
    )


DATA_SETS: dict[str, DataSet] = {
    "dickens": DataSet(
        what="10 MB of English novels (Silesia corpus), for `train text --source dickens`",
        files=(
            DataFile(
                paths=("dickens/dickens", "dickens/dickens.zip"),
                num_bytes=10_192_446,
                md5="88334708559f6db57d79096bc0aca07e",
                url="https://sun.aei.polsl.pl/~sdeor/corpus/dickens.bz2",
            ),
        ),
    ),
    "tinyshakespeare": DataSet(
        what="1.1 MB of Shakespeare, for `train text --source tinyshakespeare`",
        files=(
            DataFile(
                paths=("tinyshakespeare/input.txt",),
                num_bytes=1_115_394,
                md5="6fb458f1232090904fb40fe944165e91",
                url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            ),
        ),
    ),
    "enwik8": DataSet(
        what="100 MB of English Wikipedia, for `train text --source enwik8`",
        files=(
            DataFile(
                paths=("enwik8/enwik8", "enwik8/enwik8.zip", "enwik8/enwik8.gz"),
                num_bytes=100_000_000,
                md5="a1fa5ffddb56f4953e226637dabbb36a",
                url="http://mattmahoney.net/dc/enwik8.zip",
            ),
        ),
    ),
    "text8": DataSet(
        what="100 MB of Wikipedia in 27 characters, for `train text --source text8`",
        files=(
            DataFile(
                paths=("text8/text8", "text8/text8.zip", "text8/text8.gz"),
                num_bytes=100_000_000,
                md5="3bea1919949baf155f99411df5fada7e",
                url="http://mattmahoney.net/dc/text8.zip",
            ),
        ),
    ),
    "mnist": DataSet(
        what="70,000 handwritten digits, for `train images --source mnist`",
        files=(
            _mnist("train-images-idx3-ubyte", 47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
            _mnist("train-labels-idx1-ubyte", 60_008, "a25bea736e30d166cdddb491f175f624"),
            _mnist("t10k-images-idx3-ubyte", 7_840_016, "2646ac647ad5339dbf082846283269ea"),
            _mnist("t10k-labels-idx1-ubyte", 10_008, "27ae3e4e09519cfbb04c329615203637"),
        ),
    ),
    "spoken_digits": DataSet(
        what="3,000 spoken digits, 8 kHz (Free Spoken Digit Dataset), for `train spoken_digits`",
        files=(
            DataFile(
                paths=("spoken_digits/fsdd_recordings.tar.gz",),
                num_bytes=23_429_120,
                md5="fd210eba8f852af78f32bfe0eaec305a",
            ),
        ),
        origin="github.com/Jakobovski/free-spoken-digit-dataset, whose folder `recordings` will "
        "also do: --source FOLDER",
    ),
    "d20s": DataSet(
        what="10,000 nested lists, the test set of ListOps, for `train listops --source d20s`",
        files=(
            DataFile(
                paths=("listops/test_d20s.tsv.gz", "listops/test_d20s.tsv"),
                num_bytes=2_804_179,
                md5="a533eeca66c3b8a9ca7ddc47d4e5254b",
            ),
        ),
        origin="github.com/nyu-mll/spinn, the folder of ListOps' data",
    ),
    "japanese_vowels": DataSet(
        what="640 vowels of nine speakers, 7 to 29 steps, for `train series`",
        files=_uea(
            "JapaneseVowels",
            ("TRAIN", 487_971, "9165e3eec783ac6342d658685c864d19"),
            ("TEST", 649_132, "14d15214e3ab6ac39ab2d48901d3e2a3"),
        ),
        origin=_UEA,
    ),
    "basic_motions": DataSet(
        what="80 recordings of a smart watch, 4 motions, for `train series --source basic_motions`",
        files=_uea(
            "BasicMotions",
            ("TRAIN", 227_790, "ebf723e9e78fb3396ab2420cddfb0856"),
            ("TEST", 227_713, "72a1a7bec5ac32a305fe0a6d0a2cefdc"),
        ),
        origin=_UEA,
    ),
    "etth1": DataSet(
        what="two years of an electricity transformer, hourly (ETTh1), for `train forecast`",
        files=(
            DataFile(
                paths=("ett/ETTh1.csv",),
                num_bytes=2_589_657,
                md5="8381763947c85f4be6ac456c508460d6",
                url="https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/ETTh1.csv",
            ),
        ),
    ),
}


def named_folder() -> Path | None:
    """Return the folder that `POLEWISE_DATA` names, if it is set."""
    named = os.environ.get("POLEWISE_DATA")
    return Path(named) if named else None


def place_for(file: DataFile) -> Path:
    """Return where to put a file that was not found."""
    return (named_folder() or Path("data")) / file.paths[0]


def data_folders() -> list[Path]:
    """Return the folders in which data sets are looked for, first to last."""
    if (named := named_folder()) is not None:
        return [named]
    checkout = Path(__file__).resolve().parents[3]
    return [
        Path("data"),
        Path("../shared/data"),
        checkout.parent / "shared" / "data",
        download_folder(),
    ]


def download_folder() -> Path:
    """Return the folder that downloads go to: `POLEWISE_DATA`, or `~/.cache/polewise`."""
    return named_folder() or Path.home() / ".cache" / "polewise"


def how_to_get(name: str) -> str:
    """Return where data set `name` comes from, for a message that says where to place it."""
    origin = DATA_SETS[name].origin
    return f"it comes from {origin}" if origin else f"`polewise data --fetch {name}` downloads it"


def locate(file: DataFile) -> Path | None:
    """Return where `file` lies, or None."""
    for folder in data_folders():
        for path in file.paths:
            if (folder / path).is_file():
                return folder / path
    return None


def named_or_given(source: str, names: Sequence[str], what: str) -> Path:
    """Return the first file of one of the named data sets, or the path that was given instead.

    Raises:
        ValueError: neither is there; the message says where a relative path was looked for, which
            is wherever the command runs.
    """
    if source in names:
        return find(source)[0]
    path = Path(source)
    if not os.path.lexists(path):
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ValueError(
            f"source must be {', '.join(names)} or {what}; there is no file {path}{where}."
            f"{did_you_mean(source, names)}"
        )
    return path


def find(name: str) -> list[Path]:
    """Return the paths of the files of data set `name`.

    Raises:
        ValueError: the name is unknown or a file is missing; the message says what to place where.
    """
    require_choice("source", name, DATA_SETS)
    files = DATA_SETS[name].files
    found = [locate(file) for file in files]
    missing = [file for file, path in zip(files, found, strict=True) if path is None]
    if missing:
        raise ValueError(
            f"source {name!r} must be on disk; place it at {place_for(missing[0])} "
            f"(or set POLEWISE_DATA to the folder that holds {missing[0].paths[0]}; "
            f"{how_to_get(name)})."
        )
    return [path for path in found if path is not None]
