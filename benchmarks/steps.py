"""A training step of every system of a study, side by side in one process: its time, its memory.

A budget in seconds wants a quiet machine for hours, and belongs to that machine and that day. This
takes minutes, and says what the same budget would buy each system now: seconds of a core for a step
(forward, backward, AdamW) in rounds that alternate between the systems, how many steps each makes
while Focus makes one, and the most that tensors take up at once during a step.

    python benchmarks/steps.py table2
    python benchmarks/steps.py table2 table4 --rounds 20 --output try.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from polewise.recipes.studies import STUDIES, Comparison, build_study
from polewise.training import build_model, compute_logits, keep_freed_memory
from polewise.training.optimizer import build_optimizer
from shared import in_rounds, machine, now, ratios, read_parts, results_file, versions, write

FOCUS = "focus"


def steps_of(comparison: Comparison) -> dict[str, Callable[[], None]]:
    """What trains each system by one step, always on the same batch."""
    task, options = comparison.task, comparison.training
    task.prepare()
    batch = next(iter(task.train_batches(0)))

    def step_of(model: torch.nn.Module) -> Callable[[], None]:
        optimizer = build_optimizer(model, options)

        def step() -> None:
            task.loss(compute_logits(model, batch), batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
            optimizer.step()
            optimizer.zero_grad()

        return step

    torch.manual_seed(0)
    return {
        system.name: step_of(build_model(task.spec, system.model)) for system in comparison.systems
    }


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Core seconds of every system in every round, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number, name in in_rounds(list(steps), rounds + 1):
        began = time.process_time()
        steps[name]()
        if number:
            times[name].append(time.process_time() - began)
    return times


def most_alive(step: Callable[[], None]) -> int:
    """The most bytes of tensors that a step makes and holds at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def measure_comparison(comparison: Comparison, rounds: int) -> list[dict[str, Any]]:
    steps = steps_of(comparison)
    times = measure(steps, rounds)
    return [
        {
            "system": name,
            "core_seconds": seconds,
            "steps_to_one_of_focus": statistics.median(ratios(times[FOCUS], seconds)),
            "most_alive_bytes": most_alive(steps[name]),
        }
        for name, seconds in times.items()
    ]


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"{title}\n\n| system | step, core s | steps to one of Focus | tensors at most, MiB |")
    print("|---|---|---|---|")
    for row in sorted(rows, key=lambda row: -row["steps_to_one_of_focus"]):
        print(
            f"| {row['system']} | {statistics.median(row['core_seconds']):.3f} "
            f"({min(row['core_seconds']):.3f}) | {row['steps_to_one_of_focus']:.2f} "
            f"| {row['most_alive_bytes'] / 2**20:.0f} |"
        )
    print()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "studies", nargs="+", choices=STUDIES, metavar="STUDY",
        help=f"whose first comparison, at its cpu size, is measured: {', '.join(STUDIES)}",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=10, help="rounds (default 10)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default 1)")
    parser.add_argument("--output", type=Path, help="JSON (default results/steps-DATE.json)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    output = results_file("steps", options.output)
    facts = {
        "date": now(), "hardware": machine(), "threads": options.threads, "versions": versions()
    }  # fmt: skip
    report: dict[str, Any] = read_parts(output, ["studies"]) or {"studies": {}}
    for name in options.studies:
        comparison = build_study(name, "cpu").comparisons[0]
        rows = measure_comparison(comparison, options.rounds)
        report["studies"][name] = {"comparison": comparison.name, **facts, "rows": rows}
        write(output, report)
        show(f"{name}, {comparison.name}", rows)
    print(f"median (least); written to {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
