"""A whole block of Focus beside a Transformer block and a MEGA block of the same width.

One block is a mixer and a feed-forward with norms and residuals, or a mixer that contains one
(Focus: with its memory, as filters alone as most layers of a model are, and with the paper's two
parts), batch 1, float32: parameters are near each other, and printed. Measured for a training step
(forward and backward) and for a forward pass without gradients, as the sequence grows: the time, in
rounds that alternate between the systems in one process; and the peak memory, the largest resident
size less that before the step, in a process of its own, as many of them as rounds, since it varies
by a fifth with what memory the C library finds free; in training also of six blocks, as in a model,
where one in six of Focus has a memory. The Transformer's attention is
`scaled_dot_product_attention(is_causal=True)`, once more with the matrix of weights written out
("materialised", memory only, as in the paper's Table 5). A million steps are read in segments, with
the state in between: the same outputs in little memory.

Memory that a step frees is kept for the next one, as in training (`keep_freed_memory`);
`--no-keep-memory` leaves the C library alone, which maps large tensors anew, page by page.

    python benchmarks/layers.py                            # the full size, ten minutes or so
    python benchmarks/layers.py --lengths 512 1024 --alone 4096 --rounds 2 --output try.json
    python benchmarks/layers.py --parts memory --rounds 9  # does not mind a busy machine
"""

from __future__ import annotations

import argparse
import math
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from polewise import FocusConfig, MegaConfig
from polewise.models import Block
from polewise.training import keep_freed_memory, release_freed_memory
from shared import (
    in_rounds,
    machine,
    now,
    progress,
    resident,
    results_file,
    seconds,
    start_watching_memory,
    versions,
    write,
)

SEGMENT = 65_536
"""Steps of a segment of the stream."""
FOCUS: dict[str, dict[str, Any]] = {
    "Focus": {},
    "Focus, filters alone": {"memory": False, "filters": 1},
    "Focus, filters and attention": {
        "filters": 1, "hypernetwork": "recurrent", "chunk_length": 64
    },
}  # fmt: skip
"""The layer with a memory; those between two memories; the first with the paper's two parts added,
adaptive filters of the values and attention in chunks of 64."""
MATERIALISED = "Transformer, materialised"
STACK = 6
"""Blocks of a stack."""
STACKED = ("Focus", "Transformer", "MEGA")
"""Systems of which a stack is measured too."""
PARTS = ("time", "memory", "stream")
SLOW_SECONDS = 4.0
"""A system slower than this takes part in two rounds only."""


class PlainAttention(nn.Module):
    """Causal multi-head attention and nothing else: no positions, no state, no checks."""

    def __init__(self, dim: int, heads: int, *, materialised: bool = False) -> None:
        super().__init__()
        self.heads, self.materialised = heads, materialised
        self.to_query_key_value = nn.Linear(dim, 3 * dim)
        self.to_output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, state: None = None, lengths: None = None) -> tuple[Tensor, None]:
        parts = self.to_query_key_value(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)
        q, k, v = parts.unbind(2)
        if self.materialised:
            logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            hidden = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
            y = logits.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        else:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.to_output(y.transpose(1, 2).flatten(2)), None


class Stack(nn.Module):
    """Blocks one after another, and no state."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        for block in self.blocks:
            x, _ = block(x)
        return x, None


def build(name: str, dim: int, layers: int = 1) -> nn.Module:
    torch.manual_seed(0)
    if layers > 1:
        return Stack([build_block(name, dim, layer, layers) for layer in range(layers)])
    return build_block(name, dim, 0, 1)


def build_block(name: str, dim: int, layer: int, layers: int) -> nn.Module:
    heads = max(dim // 64, 1)
    if name in FOCUS:
        config = FocusConfig(dim=dim, **FOCUS[name]).in_layer(layer, layers)
        return Block(config.build(), dim, 0)
    mixer = {
        "Transformer": lambda: PlainAttention(dim, heads),
        MATERIALISED: lambda: PlainAttention(dim, heads, materialised=True),
        "MEGA": lambda: MegaConfig(dim=dim).build(),
    }[name]()
    return Block(mixer, dim, 2 * dim)


def step(block: nn.Module, x: Tensor, *, training: bool) -> None:
    if not training:
        with torch.no_grad():
            block(x)
        return
    y, _ = block(x)
    y.backward(torch.ones_like(y))
    block.zero_grad()


def measure(
    blocks: dict[str, nn.Module], x: Tensor, rounds: int, *, training: bool
) -> dict[str, list[float]]:
    """Seconds of every system in every round, after one that is not counted."""
    calls = {name: partial(step, block, x, training=training) for name, block in blocks.items()}
    slow = {name for name, call in calls.items() if seconds(call) > SLOW_SECONDS}
    times: dict[str, list[float]] = {name: [] for name in blocks}
    for number, name in in_rounds(list(calls), rounds, f"length {x.shape[1]}: "):
        if name not in slow or number < 2:
            times[name].append(seconds(calls[name]))
    return times


def read_in_segments(block: nn.Module, length: int, dim: int) -> dict[str, float]:
    """A forward pass over a stream, with what it took beside the input."""
    segments = torch.randn(1, length, dim).split(SEGMENT, 1)
    step(block, segments[0][:, :256], training=False)  # compiles and fills the pools
    state, before = None, start_watching_memory()
    began = time.perf_counter()
    with torch.no_grad():
        for number, segment in enumerate(segments):
            _, state = block(segment, state)
            progress(f"segment {number + 1} of {len(segments)}")
    progress("")
    return {
        "length": length,
        "seconds": time.perf_counter() - began,
        "peak_bytes": resident("VmHWM") - before,
    }


def measure_peaks(
    names: Sequence[str],
    length: int,
    rounds: int,
    options: argparse.Namespace,
    *,
    layers: int = 1,
    training: bool = True,
) -> dict[str, list[int]]:
    """Peak bytes of a step, in a process for every round; none where it did not fit."""
    peaks: dict[str, list[int]] = {name: [] for name in names}
    for _, name in in_rounds(names, rounds, f"length {length}: memory of {layers}, "):
        peak = peak_in_a_process(name, length, layers, options, training=training)
        if peak is not None:
            peaks[name].append(peak)
    return peaks


def peak_in_a_process(
    name: str, length: int, layers: int, options: argparse.Namespace, *, training: bool
) -> int | None:
    command = [
        sys.executable, __file__, "--peak-of", name, "--layers", str(layers), "--dim",
        str(options.dim), "--lengths", str(length), "--threads", str(options.threads),
        "--keep-memory" if options.keep_memory else "--no-keep-memory",
        "--training" if training else "--no-training",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return int(done.stdout)
    if done.returncode == -signal.SIGKILL or "allocate memory" in done.stderr:
        return None
    raise SystemExit(f"{name}, {length} steps:\n{done.stderr}")


def peak_here(name: str, dim: int, length: int, layers: int, *, training: bool) -> int:
    block, x = build(name, dim, layers), torch.randn(1, length, dim)
    step(block, x[:, :256], training=training)  # compiles and fills the pools
    before = start_watching_memory()
    step(block, x, training=training)
    return resident("VmHWM") - before


def growth(rows: list[dict[str, Any]]) -> dict[str, float]:
    """From 4K on, the slope of a training step's time over length on log-log axes."""
    timed = [row for row in rows if "training" in row]
    timed = [row for row in timed if 4096 <= row["length"] <= 262144] or timed
    if len(timed) < 2:
        return {}
    lengths = [math.log(row["length"]) for row in timed]
    times = [math.log(statistics.median(row["training"]["Focus"])) for row in timed]
    slope = statistics.linear_regression(lengths, times).slope
    return {"exponent_from": timed[0]["length"], "exponent": slope}


def show(report: dict[str, Any]) -> None:
    hardware = report["hardware"]
    print(
        f"{hardware['cpu']}, {hardware['cores']} cores, {report['threads']} threads; one block, "
        f"width {report['dim']}, batch 1, float32\n"
    )
    names = list(report["parameters"])
    sizes = ", ".join(f"{name} {number:,}" for name, number in report["parameters"].items())
    print(f"parameters: {sizes}\n")
    for kind, title in (("training", "training step, ms"), ("inference", "forward pass, ms")):
        if kind in report["rows"][0]:
            print(f"{title}; in brackets times Focus\n")
            show_table(report["rows"], kind, names, 1e-3)
    if "peak_bytes" in report["rows"][0]:
        print("peak memory of a training step, MiB; in brackets times Focus\n")
        show_table(report["rows"], "peak_bytes", [*names, MATERIALISED], 2**20)
        print("peak memory of a forward pass, MiB; in brackets times Focus\n")
        show_table(report["rows"], "inference_peak_bytes", [*names, MATERIALISED], 2**20)
        print(f"peak memory of a training step of {STACK} blocks, MiB; in brackets times Focus\n")
        show_table(report["rows"], "stack_peak_bytes", STACKED, 2**20)
    if "exponent" in report:
        print(
            f"Focus, training step, from {report['exponent_from']:,}: time grows as length to the "
            f"power {report['exponent']:.3f}"
        )
    if "stream" in report:
        stream = report["stream"]
        print(
            f"Focus reads {stream['length']:,} steps in segments of {SEGMENT:,} in "
            f"{stream['seconds']:.1f} s, with {stream['peak_bytes'] / 2**20:.0f} MiB beside the "
            "input"
        )


def show_table(rows: list[dict[str, Any]], kind: str, names: Sequence[str], unit: float) -> None:
    print(f"| length | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for row in rows:
        if kind not in row:
            continue
        medians = {name: statistics.median(t) for name, t in row[kind].items() if t}
        cells = [f"{medians[name] / unit:.1f}" if name in medians else "" for name in names]
        if "Focus" in medians:
            cells = [
                f"{cell} ({medians[name] / medians['Focus']:.2f})" if cell else ""
                for name, cell in zip(names, cells, strict=True)
            ]
        print(f"| {row['length']:,} | {' | '.join(cells)} |")
    print()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dim", type=int, default=256, help="width (default 256)")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384, 32768],
        help="lengths for all systems (default 512 to 32768)",
    )  # fmt: skip
    parser.add_argument(
        "--alone", type=int, nargs="*", default=[65536, 131072, 262144],
        help="lengths for Focus alone (default 65536 to 262144)",
    )  # fmt: skip
    parser.add_argument(
        "--stream", type=int, default=1_048_576, help="steps Focus reads in segments (default 1 M)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default all)"
    )
    parser.add_argument(
        "--keep-memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep what is freed, as in training (default)",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="JSON (default results/layers-DATE.json)")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument(
        "--training", action=argparse.BooleanOptionalAction, default=True, help=argparse.SUPPRESS
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.keep_memory and not keep_freed_memory():
        raise SystemExit("--keep-memory needs glibc; measure with --no-keep-memory.")
    if options.peak_of:
        shape = options.dim, options.lengths[0], options.layers
        print(peak_here(options.peak_of, *shape, training=options.training))
        return 0

    names = [*FOCUS, "Transformer", "MEGA"]
    blocks = {name: build(name, options.dim) for name in names}
    facts: dict[str, Any] = {
        "date": now(),
        "hardware": machine(),
        "threads": options.threads,
        "versions": versions(),
        "dim": options.dim,
        "keeps_memory": options.keep_memory,
        "parameters": {
            name: sum(p.numel() for p in block.parameters()) for name, block in blocks.items()
        },
    }
    if "stream" in options.parts:  # in a fresh process
        facts["stream"] = read_in_segments(blocks["Focus"], options.stream, options.dim)
    output = results_file("layers", options.output)
    rows: list[dict[str, Any]] = []
    for length in [*options.lengths, *options.alone]:
        alone = length in options.alone
        taking_part = {name: blocks[name] for name in (["Focus"] if alone else names)}
        rounds = 2 if alone else options.rounds
        row: dict[str, Any] = {"length": length}
        if "time" in options.parts:
            x = torch.randn(1, length, options.dim)
            for kind in ("training", "inference"):
                row[kind] = measure(taking_part, x, rounds, training=kind == "training")
            del x
        if "memory" in options.parts:
            release_freed_memory()  # what follows is other processes'
            written_out = [MATERIALISED] if length <= 4096 and not alone else []
            of_memory = [*taking_part, *written_out]
            row["peak_bytes"] = measure_peaks(of_memory, length, rounds, options)
            row["inference_peak_bytes"] = measure_peaks(
                of_memory, length, rounds, options, training=False
            )
            if not alone:
                row["stack_peak_bytes"] = measure_peaks(
                    STACKED, length, rounds, options, layers=STACK
                )
        rows.append(row)
        report = facts | {"rows": rows} | growth(rows)
        # After every length: the longest may not fit into memory.
        write(output, report)
    show(report)
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
