"""Break training runs on purpose, thousands of times, and see that nothing is lost.

    python -m benchmarks.faults                        # everything: about an hour on two cores
    python -m benchmarks.faults kills --kills 20       # a part, and less of it

kills            a run is killed (SIGKILL) at random moments and resumed until it is done: its
                 weights and its log equal those of a run that nobody touched, every checkpoint is
                 whole, at most one interval of work is lost
operations       the same, killed exactly before each of its file operations in turn
configurations   random configurations: an answer of one line, and no folder left behind; or a run
files            mutated checkpoints, configurations, logs, models, texts and images: an answer of
                 one line, or correct work; never a crash, a hang, or much memory
overhead         what manifests and flushing to the disk cost, beside 15 minutes of training

Every run and every reading happens in a process of its own, forked from one that has imported torch
already, so that a crash of the interpreter is seen and counted. The result is
`benchmarks/results/faults-DATE.json`; tests/faults/ runs small samples of the same functions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from benchmarks.faults.inputs import try_many
from benchmarks.faults.kills import kill_at_operations, kill_at_random_moments
from benchmarks.faults.overhead import measure_overhead
from rich.console import Console
from rich.progress import Progress

RESULTS = Path(__file__).parents[1] / "results"
PARTS = ("kills", "operations", "configurations", "files", "overhead")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; without: all of them")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--inputs", type=int, default=10_000, help="configurations, and files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the JSON; default results/faults-DATE.json")
    options = parser.parse_args()
    # Killed processes leave their semaphores to Python's tracker, which says so at the end.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    parts = options.parts or list(PARTS)
    for part in parts:
        if part not in PARTS:
            parser.error(f"parts must be of {', '.join(PARTS)}; got {part!r}")
    out = options.out or RESULTS / f"faults-{date.today()}.json"
    report = {
        "date": str(date.today()),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seed": options.seed,
    }
    if out.exists():
        report = json.loads(out.read_text()) | report
    with tempfile.TemporaryDirectory() as scratch, Progress(console=Console(stderr=True)) as bar:
        for part in parts:
            folder = Path(scratch) / part
            folder.mkdir()
            totals = {"kills": options.kills, "operations": None, "overhead": None}
            row = bar.add_task(part, total=totals.get(part, options.inputs))

            def step(row: Any = row) -> None:
                bar.advance(row)

            begin = time.perf_counter()
            result: Any
            if part == "kills":
                found = kill_at_random_moments(options.kills, options.seed, folder, step)
                result = dataclasses.asdict(found)
            elif part == "operations":
                found = kill_at_operations(iter(range(1, 10_000)), folder, step)
                result = dataclasses.asdict(found)
            elif part == "overhead":
                result = measure_overhead(folder)
            else:
                result = try_many(part, options.inputs, options.seed, folder, step)
            report[part] = {**result, "took_seconds": round(time.perf_counter() - begin, 1)}
            bar.console.print(part, report[part])
            out.parent.mkdir(exist_ok=True)
            out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
