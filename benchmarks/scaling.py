"""What one long sequence costs when it is split over processes: bytes kept and bytes exchanged.

For one mixer layer, all processes together, as the sequence and their number grow:

    arithmetic   from the formulas of the guide (docs/guide/scaling.md)
    measured     the tensors that the collectives were given, as the profiler recorded them

    python benchmarks/scaling.py                  # a minute on two cores
    python benchmarks/scaling.py --lengths 1024 --processes 2
"""

from __future__ import annotations

import argparse
import json
import tempfile
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.profiler import ProfilerActivity, profile

from polewise import MIXERS, shard_sequence, states, unshard_sequence
from shared import machine, now, write

MIXERS_WITH_FORMULAS = ("focus", "attention", "mega")
DIM = 64
NUMBER = 4
"""Bytes of a float32."""


def expected_bytes(name: str, config, length: int, size: int) -> dict[str, int]:
    """What all processes hand to collectives, forwards and backwards, in bytes.

    A gathered summary of n numbers is n numbers forwards and, as the sum over processes of all
    their gradients, size * n backwards. A window is sent once each way, but for the ends.
    """
    if name == "attention":
        gathered, windows = 2 * length * config.dim, 0
    elif name == "mega":
        gathered, windows = 4 * config.dim * config.memories, 0
    else:
        gathered = config.num_heads * (config.key_dim * config.value_dim + 1)
        windows = (config.conv_width - 1) * (config.key_dim + config.values)
        if config.filters:
            gathered += 4 * config.values * (config.filters + 2)  # the embedder has two memories
            windows += config.windows * config.values
    windows *= size - 1
    return {
        "forward": NUMBER * (size * gathered + windows),
        "backward": NUMBER * (size**2 * gathered + windows),
    }


def work(rank: int, size: int, folder: str, names: list[str], lengths: list[int]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{folder}/store", size), rank=rank, world_size=size
    )
    rows = []
    for name in names:
        config = MIXERS[name](dim=DIM)
        for length in lengths:
            torch.manual_seed(0)
            mixer = config.build()
            x = torch.randn(1, length, DIM, requires_grad=True)
            shards = shard_sequence(mixer, None)
            piece = shards.piece(x)
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as forward:
                y, _ = mixer(piece)
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as backward:
                y.sum().backward()
            unshard_sequence(mixer)
            with torch.no_grad():
                _, state = mixer(x)
            rows.append(
                {
                    "mixer": name,
                    "length": length,
                    "processes": size,
                    "state_bytes": states.num_bytes(state),
                    "arithmetic": expected_bytes(name, config, length // size, size),
                    "measured": {
                        "forward": exchanged_bytes(forward),
                        "backward": exchanged_bytes(backward),
                    },
                }
            )
    Path(folder, f"{rank}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def exchanged_bytes(recorded: profile) -> int:
    """Bytes of every tensor given to a sum, a gathering or a send."""
    total = 0
    for event in recorded.events():
        if event.name in ("gloo:all_gather", "gloo:all_reduce", "gloo:send"):
            total += NUMBER * sum(prod(shape) for shape in event.input_shapes if shape)
    return total


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mixers", nargs="+", choices=MIXERS_WITH_FORMULAS,
                        default=MIXERS_WITH_FORMULAS)  # fmt: skip
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 4096, 16384])
    parser.add_argument("--processes", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--output", type=Path, help="where the figures go as JSON")
    options = parser.parse_args(arguments)
    rows = []
    for size in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            multiprocessing.spawn(
                work, (size, folder, options.mixers, options.lengths), nprocs=size
            )
            ranks = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(size)]
        for row, *others in zip(*ranks, strict=True):
            for way in ("forward", "backward"):
                row["measured"][way] += sum(other["measured"][way] for other in others)
            rows.append(row)
    print(f"one layer, width {DIM}, batch 1, float32; bytes of all processes together\n")
    print("| mixer | length | processes | state | forward: arithmetic | measured | backward: "
          "arithmetic | measured |")  # fmt: skip
    print("|---" * 8 + "|")
    for row in rows:
        figures = [
            f"{row[kind][way]:,}" for way in ("forward", "backward")
            for kind in ("arithmetic", "measured")
        ]  # fmt: skip
        print(
            f"| {row['mixer']} | {row['length']:,} | {row['processes']} | "
            f"{row['state_bytes']:,} | {' | '.join(figures)} |"
        )
    if options.output:
        report = {
            "date": now(), "hardware": machine(), "dim": DIM,
            "rows": rows,
        }  # fmt: skip
        write(options.output, report)
        print(f"\nwritten to {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
