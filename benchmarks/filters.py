"""How fast the filters are on a CPU, beside a memory copy and beside other people's.

Work: a sequence (batch, length, dim), two poles of its own in every bin of time and every
channel. All systems run in one process, one after another in an order that rotates from
round to round; every figure is a median over rounds, every ratio is taken inside a round
and given as median (lowest to highest). Nothing is timed before it gave the right numbers.

    python benchmarks/filters.py                             # everything, ten minutes
    python benchmarks/filters.py --only size                 # one part; each under five minutes
    python benchmarks/filters.py --only size --length 1024 --dim 64 --rounds 3 --output try.json

size      one size, everything that runs in bounded time at it
calls     what a single step costs: (1, 1, 64), without gradient
lengths   1 to 1,048,576 steps of 64 channels, and a figure of it
memory    the most that forward and backward hold beside inputs, outputs and gradients
errors    how far float32 is from float64, for 1K to 1M steps and memories of 10 to 100,000
convolution  the long convolution with a kernel as long as the sequence (half of `length`), and
          in a stream
products  filtered products of keys and values beside attention over them: `batch` rows of a
          sixteenth of `length`, one of half of it, one of four times

A part replaces what its file has of it and leaves the other parts.

torchlpc is optional. It is compiled when it is installed, against the torch that is there:

    pip install --no-build-isolation --no-deps torchlpc==0.7.2
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import filter_convolutions
import filter_lengths
import filter_products
from filter_systems import (
    FLOOR,
    System,
    Work,
    average_systems,
    make_work,
    other_systems,
    our_systems,
    torchlpc_systems,
)
from interleaved import measure, ratio
from polewise.ops import direct_form_filter, normal_form_filter
from shared import machine, now, read_parts, results_file, versions, write

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "filter-lengths.svg"
PARTS = ["size", "calls", "lengths", "memory", "errors", "convolution", "products"]
INSTALL_TORCHLPC = "pip install --no-build-isolation --no-deps torchlpc==0.7.2"


def check(work: Work, systems: list[System]) -> None:
    """Every pair of systems that claims the same numbers gives them, or nothing is timed."""
    results: dict[str, Any] = {system.name: system.call() for system in systems}
    x, a, bin_length = work.x, work.a, work.bin_length

    length = min(4 * bin_length, x.shape[1])
    steps = slice(1), slice(length), slice(8)
    bins = slice(1), slice(-(-length // bin_length)), slice(8)
    definitions: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
        "direct_form_filter": (direct_form_filter, (a,)),
        "normal_form_filter": (normal_form_filter, (work.decay, work.angle)),
    }
    for name, (op, coefficients) in definitions.items():
        few = [value[bins].double() for value in coefficients]
        exact, _ = op(x[steps].double(), *few, bin_length, backend="reference")
        _agree(f"{name} and its definition", results[f"{name}, forward"][steps], exact)

    peer, ours = "torchlpc, from our layout, forward", "direct_form_filter, forward"
    if peer in results:
        _agree("torchlpc and direct_form_filter", results[peer], results[ours])
        both = zip(results[f"{peer} + backward"], results[f"{ours} + backward"], strict=True)
        for their_gradient, our_gradient in both:
            _agree("the gradients of torchlpc and ours", their_gradient, our_gradient)

    padded = "FFT in each bin, zero-padded"
    # The sampled response folds what is left of its tail after two bins.
    if padded in results and float(work.decay.max()) ** (2 * bin_length) < 1e-6:
        reset, _ = direct_form_filter(x, a, bin_length, reset=True)
        _agree("the padded FFT and direct_form_filter(reset=True)", results[padded], reset)


def _agree(what: str, left: Tensor, right: Tensor) -> None:
    error = (left.double() - right.double()).abs().max() / right.double().abs().max()
    if not error < 1e-4:
        raise SystemExit(f"{what} differ by {error:.1e} of the largest value; nothing is timed.")


def show_size(part: dict[str, Any]) -> None:
    work = part["work"]
    print(
        f"batch {work['batch']}, length {work['length']}, dim {work['dim']}, bins of "
        f"{work['bin_length']}, {work['dtype']}; {work['rounds']} rounds\n"
    )
    print(f"{'system':47}{'ms':>9}   times {FLOOR:22} bytes a second over a copy's")
    for row in part["systems"]:
        spread, rate = row["over_floor"], row["rate_over_copy"]
        print(
            f"{row['name']:47}{row['median_ms']:9.1f}   {spread['median']:6.2f} "
            f"({spread['low']:.2f} to {spread['high']:.2f})   "
            f"{'' if rate is None else f'{rate:.2f}':6} {row['note']}"
        )
    print()
    for row in part["comparisons"]:
        print(
            f"{row['name']} / {row['other']}: {row['median']:.2f} "
            f"({row['low']:.2f} to {row['high']:.2f})"
        )
    if work["length"] % work["bin_length"]:
        print("the FFT rows are left out: they need a length that is a multiple of bin_length")


def show_rows(rows: list[dict[str, Any]]) -> None:
    """As a table for the docs."""
    columns = [name for name in rows[0] if name != "note"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for row in rows:
        cells = [row[name] for name in columns]
        print(f"| {' | '.join(f'{c:.3g}' if isinstance(c, float) else str(c) for c in cells)} |")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, text in (
        ("batch", 8, "rows"),
        ("length", 8192, "steps of time"),
        ("dim", 512, "channels"),
        ("bin-length", 128, "steps in a bin"),
        ("rounds", 15, "rounds, each with every system once (slow ones in every third)"),
        ("threads", torch.get_num_threads(), "threads of torch and of our loops"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default {default})"
        )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (default all)"
    )
    parser.add_argument(
        "--figure", type=Path, help="of `lengths` (default docs/figures/filter-lengths.svg)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random input (default 0)")
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON to write into (default benchmarks/results/filters-DATE.json)",
    )
    options = parser.parse_args(arguments)
    for name in ("batch", "length", "dim", "bin_length", "rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(
                f"--{name.replace('_', '-')} must be at least 1; got {getattr(options, name)}."
            )
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    output = results_file("filters", options.output)
    found = versions("polewise", "torch", "numpy", "numba", "scipy", "torchlpc")
    has_torchlpc = found["torchlpc"] is not None
    if not has_torchlpc:
        print(f"torchlpc is not installed; to compare: {INSTALL_TORCHLPC}")
    report = read_parts(output, PARTS)
    facts = {
        "date": now(), "hardware": machine(), "threads": options.threads, "versions": found,
        "rounds": options.rounds,
    }  # fmt: skip
    parts: dict[str, Callable[[], Any]] = {
        "size": lambda: size(options, has_torchlpc),
        "calls": lambda: {"rows": filter_lengths.calls(options)},
        "lengths": lambda: {"rows": filter_lengths.lengths(options, has_torchlpc)},
        "memory": lambda: {"rows": filter_lengths.memory(options)},
        "errors": lambda: {"rows": filter_lengths.errors(options)},
        "convolution": lambda: {"rows": filter_convolutions.convolution(options)},
        "products": lambda: {"rows": filter_products.products(options)},
    }
    hardware = machine()
    print(f"{hardware['cpu']}, {hardware['cores']} cores, {options.threads} threads")
    for name in options.only:
        print(f"\n{name}")
        part = report[name] = facts | parts[name]()
        write(output, report)
        if name == "size":
            show_size(part)
        else:
            show_rows(part["rows"])
        if name == "lengths":
            figure = options.figure or FIGURE
            filter_lengths.draw(part["rows"], figure)
            print(f"drawn to {figure}")
    print(f"\nwritten to {output}")


def size(options: argparse.Namespace, has_torchlpc: bool) -> dict[str, Any]:
    """Every system at one size, and what it is beside the floor and beside ours."""
    work = make_work(options.batch, options.length, options.dim, options.bin_length, options.seed)
    systems = list(our_systems(work))
    if has_torchlpc:
        systems += torchlpc_systems(work)
    systems += [*other_systems(work), *average_systems(work)]
    check(work, systems)
    times = measure(systems, options.rounds)
    rates = filter_lengths.rates_over_copy(systems, times)

    direct, normal = "direct_form_filter, forward", "normal_form_filter, forward"
    wanted = [
        (direct, "out.copy_(x)"),
        (normal, "out.copy_(x)"),
        ("torchlpc, forward", direct),
        ("torchlpc, forward + backward", f"{direct} + backward"),
        ("torchlpc, from our layout, forward", direct),
        ("torchlpc, from our layout, forward + backward", f"{direct} + backward"),
        ("FFT in each bin, circular", direct),
        ("FFT in each bin, zero-padded", direct),
        ("scipy.signal.lfilter", direct),
        ("MEGA's average by FFT, forward", normal),
        ("MEGA's average by FFT, forward + backward", f"{normal} + backward"),
    ]
    return {
        "work": {
            "batch": options.batch,
            "length": options.length,
            "dim": options.dim,
            "bin_length": options.bin_length,
            "dtype": "float32",
            "seed": options.seed,
            "rounds": options.rounds,
        },
        "systems": [
            {
                "name": system.name,
                "note": system.note,
                "median_ms": 1e3 * statistics.median(t for t in times[system.name] if t),
                "over_floor": ratio(times, system.name, FLOOR),
                "rate_over_copy": rates.get(system.name),
                "seconds": times[system.name],
            }
            for system in systems
        ],
        "comparisons": [
            {"name": name, "other": other, **ratio(times, name, other)}
            for name, other in wanted
            if name in times
        ],
    }


if __name__ == "__main__":
    main()
