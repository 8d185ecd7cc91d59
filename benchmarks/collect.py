"""Gather finished runs into one results file and print its table.

    python benchmarks/collect.py runs/recall-128 runs/dickens-focus --name 2026-11-20-cpu

The file, `benchmarks/results/NAME.json`, holds for every run its whole configuration, the
machine, every evaluation and the training speed, so that each figure in the documentation
can be traced to the options that gave it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def read_run(folder: Path) -> dict:
    """What a run folder says of itself."""
    config = json.loads((folder / "config.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "train"]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    weights = folder / "model" / "model.safetensors"
    return {
        "run": folder.name,
        "config": config,
        "parameters": count_parameters(weights),
        "steps": evaluations[-1]["step"],
        "seconds": evaluations[-1]["seconds"],
        "positions_per_second": statistics.median(
            line["positions_per_second"] for line in training
        ),
        "evaluations": evaluations,
    }


def count_parameters(weights: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    with weights.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            entries = 1
            for side in tensor["shape"]:
                entries *= side
            total += entries
    return total


def table(runs: list[dict]) -> str:
    """One row a run, in Markdown: the last evaluation."""
    rows = [
        "| run | mixer | parameters | steps | seconds | positions/s | last evaluation |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        last = {
            name: value
            for name, value in run["evaluations"][-1].items()
            if name not in ("kind", "step", "seconds")
        }
        figures = ", ".join(f"{name} {value:.4g}" for name, value in last.items())
        rows.append(
            f"| {run['run']} | {run['config']['model']['mixer']} | {run['parameters']:,} "
            f"| {run['steps']} | {run['seconds']:.0f} | {run['positions_per_second']:.0f} "
            f"| {figures} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--name", required=True, help="name of the results file")
    options = parser.parse_args()
    runs = [read_run(folder) for folder in options.runs]
    path = RESULTS / f"{options.name}.json"
    path.write_text(json.dumps(runs, indent=1) + "\n")
    print(table(runs))
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
