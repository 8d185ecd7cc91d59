"""The filters from a single step to a million: calls, lengths, memory, errors. Parts of
`filters.py`."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from filter_systems import (
    FLOOR,
    System,
    Work,
    attention_systems,
    average_systems,
    forward_and_backward,
    loop_systems,
    make_work,
    other_systems,
    our_systems,
    scan_systems,
    torchlpc_systems,
)
from interleaved import measure
from polewise.ops import associative_filter, direct_form_filter, normal_form_filter
from shared import in_rounds, progress, resident, seconds, start_watching_memory

LENGTHS = [1, 16, 256, 1024, 4096, 16384, 65536, 262144, 1048576]
DIM = 64
CALLS = 300
"""Calls whose mean is one sample of `calls`."""
MEMORY_RUNS = 5
FORMS = ("direct", "normal")
RADII = [0.9, 0.999, 0.99999]
ERROR_LENGTHS = [1024, 32768, 1048576]
FROM_OURS = "torchlpc, from our layout"

# Longest sequence for each group: beyond, a call takes seconds or gigabytes.
PEERS: list[tuple[Callable[[Work], Iterator[System]], int]] = [
    (torchlpc_systems, 65536),
    (other_systems, 1048576),
    (average_systems, 65536),
    (scan_systems, 16384),
    (attention_systems, 16384),
    (loop_systems, 4096),
]


def lengths(options: argparse.Namespace, has_torchlpc: bool) -> list[dict[str, Any]]:
    """Rows of one system at one length: milliseconds, and the rate of bytes over the copy's."""
    rows = []
    for length in LENGTHS:
        work = make_work(1, length, DIM, options.bin_length, options.seed)
        systems = list(our_systems(work))
        for group, longest in PEERS:
            if length <= longest and (has_torchlpc or group is not torchlpc_systems):
                systems += group(work)
        progress(f"length {length}")
        times = measure(systems, options.rounds)
        rates = rates_over_copy(systems, times)
        for system in systems:
            taken = sorted(t for t in times[system.name] if t is not None)
            rows.append(
                {
                    "length": length, "dim": DIM, "system": system.name, "note": system.note,
                    "median_ms": 1e3 * statistics.median(taken), "low_ms": 1e3 * taken[0],
                    "high_ms": 1e3 * taken[-1], "rate_over_copy": rates.get(system.name),
                }
            )  # fmt: skip
        del work, systems
    return rows


def rates_over_copy(
    systems: list[System], times: dict[str, list[float | None]]
) -> dict[str, float]:
    """Bytes a second over those of a copy into memory that is there, where bytes are known."""
    rates = {}
    for system in systems:
        if system.moved is not None:
            taken = statistics.median(t for t in times[system.name] if t is not None)
            rates[system.name] = system.moved / taken
    copy = rates["out.copy_(x)"]
    return {name: rate / copy for name, rate in rates.items()}


def calls(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Microseconds of one call with a single step of 64 channels."""
    work = make_work(1, 1, DIM, options.bin_length, options.seed)
    x, a, bin_length = work.x, work.a, work.bin_length
    state, mix = torch.zeros(1, DIM, 2), torch.ones(DIM, 2)
    poles = (work.decay, work.angle)
    systems: dict[str, Callable[[], object]] = {
        "x.clone()": x.clone,
        "direct form": lambda: direct_form_filter(x, a, bin_length),
        "direct form, with state": lambda: direct_form_filter(x, a, bin_length, state=state),
        "normal form": lambda: normal_form_filter(x, *poles, bin_length),
        "normal form, with state and mix": lambda: normal_form_filter(
            x, *poles, bin_length, mix=mix, state=state
        ),
        "direct form, forward + backward": forward_and_backward(
            lambda x, a: direct_form_filter(x, a, bin_length)[0], (x, a), work.grad
        ),
        "normal form, forward + backward": forward_and_backward(
            lambda *t: normal_form_filter(*t, bin_length)[0], (x, *poles), work.grad
        ),
    }

    def repeat(call: Callable[[], object]) -> None:
        for _ in range(CALLS):
            call()

    samples: dict[str, list[float]] = {name: [] for name in systems}
    for number, name in in_rounds(list(systems), options.rounds + 1):
        with torch.set_grad_enabled("backward" in name):
            taken = seconds(partial(repeat, systems[name]))
        if number:  # the first round warms up
            samples[name].append(1e6 * taken / CALLS)
    return [
        {
            "system": name, "median_us": statistics.median(taken), "low_us": min(taken),
            "high_us": max(taken),
        }
        for name, taken in samples.items()
    ]  # fmt: skip


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The most that forward and backward hold beside inputs, outputs and gradients."""
    rows = []
    for form in FORMS:
        command = [
            sys.executable, __file__, form, str(options.batch), str(options.length),
            str(options.dim), str(options.bin_length), str(options.threads),
        ]  # fmt: skip
        runs = [
            json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            for _ in range(MEMORY_RUNS)
        ]
        extra = [run["extra"] for run in runs]
        rows.append(
            {
                "system": f"{form} form, forward + backward",
                "input_mib": runs[0]["input"] / 2**20,
                "extra_mib": statistics.median(extra) / 2**20, "low_mib": min(extra) / 2**20,
                "high_mib": max(extra) / 2**20,
                "of_input": statistics.median(extra) / runs[0]["input"],
            }
        )  # fmt: skip
    return rows


def extra_here(
    form: str, batch: int, length: int, dim: int, bin_length: int, threads: int
) -> dict[str, int]:
    """In this process, from where the kernel's high-water mark counts anew."""
    torch.set_num_threads(threads)

    def step(work: Work) -> tuple[torch.Tensor, ...]:
        poles = [work.a] if form == "direct" else [work.decay, work.angle]
        leaves = [t.requires_grad_() for t in (work.x, *poles)]
        run = direct_form_filter if form == "direct" else normal_form_filter
        y, _ = run(*leaves, work.bin_length)
        return (y, *torch.autograd.grad(y, leaves, work.grad))

    step(make_work(batch, 2 * bin_length, dim, bin_length, 0))  # compiles
    work = make_work(batch, length, dim, bin_length, 0)
    before = start_watching_memory()
    results = step(work)
    wanted = sum(result.nbytes for result in results)
    return {"extra": resident("VmHWM") - before - wanted, "input": work.x.nbytes}


def errors(options: argparse.Namespace) -> list[dict[str, Any]]:
    """How far float32 is from float64, by the norm, as sequences and memories grow."""
    rows = []
    for radius in RADII:
        for length in ERROR_LENGTHS:
            progress(f"radius {radius}, length {length}")
            generator = torch.Generator().manual_seed(options.seed)
            work = make_work(1, length, DIM, options.bin_length, options.seed)
            angle = 0.1 + 2.9 * torch.rand(1, 1, DIM, generator=generator)
            a = torch.stack([-2 * radius * angle.cos(), torch.full_like(angle, radius**2)], -1)
            q, k, v = torch.randn(3, 1, length, 4, 8, generator=generator)
            runs: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
                # Where its poles move the direct form may grow: one bin.
                "direct form": (partial(direct_form_filter, bin_length=length), (work.x, a)),
                "normal form": (
                    partial(normal_form_filter, bin_length=options.bin_length),
                    (work.x, torch.full_like(work.decay, radius), work.angle),
                ),
                "filtered products": (
                    associative_filter, (q, k, v, torch.full((1, length, 4), radius))
                ),
            }  # fmt: skip
            for name, (run, inputs) in runs.items():
                results = [
                    with_gradients(run, [t.to(dtype) for t in inputs])
                    for dtype in (torch.float32, torch.float64)
                ]
                y, *gradients = [
                    float((got.double() - exact).norm() / exact.norm())
                    for got, exact in zip(*results, strict=True)
                ]
                rows.append(
                    {
                        "system": name, "memory": round(1 / (1 - radius)), "length": length,
                        "output": y,
                        "gradients": max(gradients),
                    }
                )  # fmt: skip
    return rows


def with_gradients(run: Callable[..., Any], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Output, and the gradient of every input of half its square."""
    leaves = [t.requires_grad_() for t in inputs]
    y, _ = run(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, y.detach())]


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """Time against length on logarithmic axes, forward and with the backward."""
    from matplotlib.figure import Figure

    curves: dict[tuple[str, bool], list[tuple[int, float]]] = {}
    for row in rows:
        family, _, rest = row["system"].partition(", forward")
        points = curves.setdefault((family, bool(rest)), [])
        points.append((row["length"], row["median_ms"]))
    families = [family for family, _ in curves if family not in ("out.copy_(x)", FROM_OURS)]
    colours = {name: f"C{number % 10}" for number, name in enumerate(dict.fromkeys(families))}

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    for axes, backward in zip(figure.subplots(1, 2, sharey=True), (False, True), strict=True):
        for family, colour in colours.items():
            points = curves.get((family, backward and family != FLOOR), [])
            if len(points) > 1:
                axes.loglog(
                    *zip(*points, strict=True), color=colour, label=family, marker="o",
                    markersize=3, linewidth=2.2 if family.endswith("form_filter") else 1,
                    linestyle="--" if family == FLOOR else "-",
                )  # fmt: skip
        axes.set_title("forward and backward" if backward else "forward")
        axes.set_xlabel(f"length, steps of {DIM} channels")
        axes.grid(which="major", alpha=0.3)
    figure.axes[0].set_ylabel("time of a call, ms")
    figure.axes[0].legend(fontsize=7)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    print(json.dumps(extra_here(sys.argv[1], *map(int, sys.argv[2:]))))
