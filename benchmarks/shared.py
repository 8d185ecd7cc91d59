"""What the benchmarks have in common: turns, progress, spreads, memory, the machine, a file."""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from polewise.replace_file import replace_file

T = TypeVar("T")

RESULTS = Path(__file__).parent / "results"


def in_rounds(items: Sequence[T], rounds: int, what: str = "") -> Iterator[tuple[int, T]]:
    """Every item once a round, with the round's number, in an order that rotates: what else the
    machine does then falls on all of them alike, and a ratio is taken inside a round."""
    for number in range(rounds):
        gc.collect()
        turn = number % max(len(items), 1)
        for item in (*items[turn:], *items[:turn]):
            yield number, item
        progress(f"{what}round {number + 1} of {rounds}")
    progress("")


def seconds(call: Callable[[], object]) -> float:
    """Of one call, what it returns freed after it."""
    start = time.perf_counter()
    result = call()
    taken = time.perf_counter() - start
    del result
    return taken


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:60}", end="" if text else "\r", file=sys.stderr, flush=True)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def brief(value: dict[str, float], form: str) -> str:
    """A spread in words."""
    return f"{value['median']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def ratios(left: Sequence[float | None], right: Sequence[float | None]) -> list[float]:
    """Round by round, where both took part."""
    pairs = zip(left, right, strict=True)
    return [mine / theirs for mine, theirs in pairs if mine is not None and theirs is not None]


def resident(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most since it was watched."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def start_watching_memory() -> int:
    """Bytes in use, from where `VmHWM` counts anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def machine() -> dict[str, object]:
    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
    facts: dict[str, object] = {
        "cpu": name, "cores": os.cpu_count(), "system": platform.system()
    }  # fmt: skip
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["memory_gib"] = round(memory / 2**30, 1)
    return facts


def versions(*packages: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages or ("polewise", "torch", "numpy", "numba"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def results_file(benchmark: str, given: Path | None) -> Path:
    """Where the results go: the file that was given, or one of this day."""
    target = given or RESULTS / f"{benchmark}-{now()[:10]}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def read_parts(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """What a file of this day already has of the parts of a benchmark."""
    before = json.loads(path.read_text()) if path.exists() else {}
    return {name: before[name] for name in names if name in before}


def write(path: Path, report: dict[str, Any]) -> None:
    replace_file(path, json.dumps(report, indent=1) + "\n")
