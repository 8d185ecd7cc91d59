"""Filtered products of keys and values beside attention over them: a part of `filters.py`."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from filter_systems import System, forward_and_backward
from interleaved import measure, ratio
from polewise.ops import associative_filter, gated_filter
from shared import progress

HEADS, KEY_DIM, VALUE_DIM = 4, 32, 64
LONGEST_SDPA = 16384
OURS = "associative_filter"


def products(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one system at one size: milliseconds, and times those of `associative_filter`."""
    rows = []
    sizes = [
        (options.batch, -(-options.length // 16)), (1, -(-options.length // 2)),
        (1, 4 * options.length),
    ]  # fmt: skip
    for batch, length in sizes:
        progress(f"batch {batch}, length {length}")
        systems = list(_systems(batch, length, options.seed))
        _check(systems)
        times = measure(systems, options.rounds)
        for system in systems:
            taken = sorted(t for t in times[system.name] if t is not None)
            work = system.name.partition(", ")[2]
            over = ratio(times, system.name, f"{OURS}, {work}")
            rows.append(
                {
                    "batch": batch, "length": length, "system": system.name, "note": system.note,
                    "median_ms": 1e3 * statistics.median(taken), "low_ms": 1e3 * taken[0],
                    "high_ms": 1e3 * taken[-1], "over_ours": over["median"],
                    "over_ours_low": over["low"], "over_ours_high": over["high"],
                }
            )  # fmt: skip
    return rows


def _check(systems: list[System]) -> None:
    """Compiled loops and chunks give the same, or nothing is timed."""
    results = {system.name: system.call() for system in systems if "SDPA" not in system.name}
    for name, ours in results.items():
        op, _, work = name.partition(", ")
        chunks = results.get(f"{op}(backend='torch'), {work}")
        if chunks is None:
            continue
        pairs = [(ours, chunks)] if isinstance(ours, Tensor) else zip(ours, chunks, strict=True)
        for left, right in pairs:
            error = (left - right).abs().max() / right.abs().max()
            if not error < 1e-4:
                raise SystemExit(f"{name} differs from chunks by {error:.1e} of the largest value.")


def _systems(batch: int, length: int, seed: int) -> Iterator[System]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, length, HEADS, *shape, generator=draw)

    q, k = (functional.normalize(normal(KEY_DIM), dim=-1) for _ in range(2))
    wide_q, wide_k = normal(VALUE_DIM), normal(VALUE_DIM)  # its fast kernel wants one size for all
    v, grad = normal(VALUE_DIM), normal(VALUE_DIM)
    decay, decays = normal().sigmoid(), normal(KEY_DIM).sigmoid()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = (part.transpose(1, 2) for part in (q, k, v))
        return functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)

    calls = [
        (OURS, "compiled", lambda *t: associative_filter(*t)[0], (q, k, v, decay)),
        (
            f"{OURS}(backend='torch')",
            "chunks of 32 as matrix products",
            lambda *t: associative_filter(*t, backend="torch")[0],
            (q, k, v, decay),
        ),
        (
            "gated_filter",
            "a pole for each key channel",
            lambda *t: gated_filter(*t)[0],
            (q, k, v, decays),
        ),
        (
            "gated_filter(backend='torch')",
            "chunks of 8",
            lambda *t: gated_filter(*t, backend="torch")[0],
            (q, k, v, decays),
        ),
    ]
    if length <= LONGEST_SDPA:
        note = f"causal, queries and keys of {VALUE_DIM} like the values"
        calls.append(("SDPA", note, attend, (wide_q, wide_k, v)))
    for name, note, run, inputs in calls:
        yield System(f"{name}, forward", note, lambda run=run, inputs=inputs: run(*inputs))
        yield System(f"{name}, forward + backward", note, forward_and_backward(run, inputs, grad))
