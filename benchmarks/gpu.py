"""Everything about the filters on a GPU in one command: are they right, then how fast are they.

    python benchmarks/gpu.py                            # all sections, some ten minutes
    python benchmarks/gpu.py --sections checks filters  # some of them
    TRITON_INTERPRET=1 python benchmarks/gpu.py --smoke # that all of it runs, without a GPU

checks    every backend against float64 in every dtype: ragged rows, offsets, resets, poles at the
          edge of stability, lengths to 1M, more than 2^31 elements; gradients twice the same
          bits; nothing compiled again for a new length
filters   forward and forward + backward beside a copy: time, and bytes per second over the
          copy's, counting the fewest bytes the work can move (x and y; with the backward also
          grad y, x or y again, and grad x); kernels are tuned at the first size, for all
segments  the same at one size for several lengths of a segment, the one number to tune
products  the associative filter, by kernels and by batched products, beside attention by
          torch's kernels with the same queries, keys and values
block     a whole Focus block beside a Transformer block with causal flash attention, width
          1024, bfloat16, 2K to 128K: training step, forward pass, peak memory

Systems alternate within a round; figures are medians of what the device took. Nothing is timed
when a check has failed, unless --keep-going asks for it. Every row is on the disk at once; an
error that ends a section is written down, and the next one begins.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_checks import checks, tuned_kernels
from gpu_timing import free, in_ms, measure, one_line, peak_bytes
from gpu_work import FORMS, FULL, SMOKE, Products, Scale, Work, quietly, short
from polewise import FocusConfig
from polewise.models import Block
from polewise.replace_file import replace_file
from shared import now, results_file, versions


def filters(scale: Scale, rounds: int) -> Iterator[dict[str, Any]]:
    for batch, length, dim, dtype in scale.sizes:
        works = {form: Work(form, batch, length, dim, dtype, scale.device) for form in FORMS}
        x = works["direct"].inputs[0]
        out = torch.empty_like(x)
        systems: dict[str, Callable[[], object]] = {"copy": partial(out.copy_, x)}
        for form, work in works.items():
            systems[f"{form}, forward"] = partial(quietly, work, scale.backend)
            systems[f"{form}, forward + backward"] = partial(work.both, scale.backend)
        times = measure(systems, rounds, scale.device)
        copied = 2 * x.nbytes / statistics.median(times["copy"])
        for name, seconds in times.items():
            form, _, what = name.partition(", ")
            moved = (
                2 * x.nbytes if name == "copy"
                else works[form].minimal_bytes(backward="backward" in what)
            )  # fmt: skip
            speed = moved / statistics.median(seconds)
            yield {
                "size": [batch, length, dim], "dtype": short(dtype), "system": name,
                **in_ms(seconds), "gigabytes_per_second": speed / 1e9, "of_copy": speed / copied,
            }  # fmt: skip
        del works, x, out, systems
        free()
        keep_winners()


def keep_winners() -> None:
    """From here on every kernel has the configuration that has just won: to compile and time all of
    them again for every width takes minutes."""
    for kernel in tuned_kernels():
        if kernel.cache:
            kernel.configs = [list(kernel.cache.values())[-1]]


def segments(scale: Scale, rounds: int) -> Iterator[dict[str, Any]]:
    from polewise.ops import _segments_triton

    before = _segments_triton.SEGMENT
    longest = max(scale.sizes, key=lambda size: size[1])  # the one of most segments
    try:
        for batch, length, dim, dtype in dict.fromkeys((scale.sizes[0], longest)):
            works = {form: Work(form, batch, length, dim, dtype, scale.device) for form in FORMS}
            for steps in scale.segments:
                _segments_triton.SEGMENT = steps
                systems: dict[str, Callable[[], object]] = {}
                for form, work in works.items():
                    systems[f"{form}, forward"] = partial(quietly, work, scale.backend)
                    systems[f"{form}, forward + backward"] = partial(work.both, scale.backend)
                for name, seconds in measure(systems, rounds, scale.device).items():
                    size = [batch, length, dim]
                    yield {"size": size, "steps": steps, "system": name, **in_ms(seconds)}
            del works, systems
            free()
    finally:
        _segments_triton.SEGMENT = before


def products(scale: Scale, rounds: int) -> Iterator[dict[str, Any]]:
    """The associative filter and flash attention with the same queries, keys and values."""
    for batch, length, heads, dim in scale.products:
        sizes = (batch, length, heads, dim, dim)
        systems: dict[str, Callable[[], object]] = {}
        for poles, turning in (("real", False), ("complex", True)):
            work = Products(*sizes, torch.bfloat16, scale.device, turning=turning)
            # Batched products launch thousands of kernels: of long sequences, seconds a round.
            for backend in ("triton", "torch") if length <= 8192 else ("triton",):
                name = f"{poles} poles, {backend}"
                systems[f"{name}, forward"] = partial(quietly, work, backend)
                systems[f"{name}, forward + backward"] = partial(work.both, backend)
        parts = [t.detach().transpose(1, 2) for t in work.inputs[:3]]
        leaves = [t.clone().requires_grad_() for t in parts]
        grad = torch.ones_like(parts[2])
        for kernel in KERNELS_OF_ATTENTION if scale.device == "cuda" else ("flash",):
            systems[f"{kernel} attention, forward"] = partial(attend, *parts, kernel)
            systems[f"{kernel} attention, forward + backward"] = partial(
                attend_and_back, leaves, grad, kernel
            )
        for name, seconds in measure(systems, rounds, scale.device).items():
            yield {"size": [batch, length, heads, dim], "system": name, **in_ms(seconds)}
        del systems, work, parts, leaves, grad
        free()


KERNELS_OF_ATTENTION = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def attend(q: Tensor, k: Tensor, v: Tensor, kernel: str = "flash") -> Tensor:
    """Causal attention, (batch, heads, length, dim), by one of torch's kernels."""
    with sdpa_kernel(KERNELS_OF_ATTENTION[kernel]):
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def attend_and_back(leaves: list[Tensor], grad: Tensor, kernel: str) -> tuple[Tensor, ...]:
    return torch.autograd.grad(attend(*leaves, kernel), leaves, grad)


class FlashAttention(nn.Module):
    """Causal multi-head attention by torch's flash kernel, and nothing else."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_query_key_value = nn.Linear(dim, 3 * dim)
        self.to_output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, state: None = None, lengths: None = None) -> tuple[Tensor, None]:
        parts = self.to_query_key_value(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)
        y = attend(*parts.unbind(2))
        return self.to_output(y.transpose(1, 2).flatten(2)), None


def block(scale: Scale, rounds: int) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    width = scale.block_width
    blocks = {
        "Focus": Block(FocusConfig(dim=width).build(), width, 0),  # it contains a feed-forward
        "Focus, filters alone": Block(
            FocusConfig(dim=width, memory=False, filters=1).build(), width, 0
        ),
        "Transformer": Block(FlashAttention(width, max(width // 64, 1)), width, 2 * width),
    }
    blocks = {name: block.to(scale.device, torch.bfloat16) for name, block in blocks.items()}

    def training_step(block: nn.Module, x: Tensor) -> None:
        y, _ = block(x)
        y.backward(torch.ones_like(y))
        block.zero_grad()

    def inference(block: nn.Module, x: Tensor) -> None:
        with torch.no_grad():
            block(x)

    for length in scale.block_lengths:
        x = torch.randn(1, length, width, device=scale.device, dtype=torch.bfloat16)
        for kind, step in (("training step", training_step), ("forward", inference)):
            systems, peaks = {}, {}
            for name, each in blocks.items():
                try:
                    peaks[name] = peak_bytes(partial(step, each, x))
                except Exception as error:  # the others are to be measured all the same
                    print(f"left out: {name}, {kind}, {length}: {one_line(error)}", flush=True)
                    each.zero_grad()
                    free()
                    continue
                systems[name] = partial(step, each, x)
            for name, seconds in measure(systems, rounds, scale.device).items():
                yield {
                    "length": length, "work": kind, "system": name, **in_ms(seconds),
                    "peak_mib": peaks[name] / 2**20,
                }  # fmt: skip
        free()


def cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def say(row: dict[str, Any]) -> None:
    print("  ".join(f"{name} {cell(value)}" for name, value in row.items()), flush=True)


def machine() -> dict[str, object]:
    found: dict[str, object] = {"cuda": torch.version.cuda}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
        }
    return found | versions("polewise", "torch", "triton")


def markdown(report: dict[str, Any]) -> str:
    lines = ["# Filters on a GPU", "", ", ".join(f"{k} {v}" for k, v in report["machine"].items())]
    for name, rows in report["sections"].items():
        if not rows:
            continue
        columns = list(rows[0])
        lines += ["", f"## {name}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(cell(row[c]) for c in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def write(output: Path, report: dict[str, Any]) -> None:
    """Replace the JSON and the table, each whole or not at all."""
    texts = {
        output: json.dumps(report, indent=1) + "\n",
        output.with_suffix(".md"): markdown(report),
    }
    for path, text in texts.items():
        replace_file(path, text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["checks", "filters", "products", "block", "segments"]
    parser.add_argument(
        "--sections", nargs="+", choices=names, default=names, help="which (default all)"
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="time also what failed a check; the rows say so"
    )
    parser.add_argument("--rounds", type=int, default=20, help="rounds of timing (default 20)")
    parser.add_argument(
        "--output", type=Path, help="JSON, a table beside it (default results/gpu-DATE.json)"
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="tiny sizes on a CPU by Triton's interpreter: that everything runs, not how fast",
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1; got {options.rounds}.")
    scale = SMOKE if options.smoke else FULL
    if options.smoke and os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("--smoke steps through the kernels: start it with TRITON_INTERPRET=1.")
    if not options.smoke and not torch.cuda.is_available():
        raise SystemExit(
            "gpu.py needs a CUDA device and torch sees none. On a CPU, benchmarks/filters.py "
            "measures and tests/ops/test_triton.py checks the GPU kernels by interpretation."
        )
    output = results_file("gpu", options.output)
    sections: dict[str, list[dict[str, Any]]] = {}
    ended_early: dict[str, str] = {}
    report = {
        "date": now(), "machine": machine(),
        "rounds": options.rounds, "sections": sections, "ended_early": ended_early,
    }  # fmt: skip
    runs: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "checks": lambda: checks(scale),
        "filters": lambda: filters(scale, options.rounds),
        "products": lambda: products(scale, options.rounds),
        "block": lambda: block(scale, options.rounds),
        "segments": lambda: segments(scale, options.rounds),
    }
    for name in [name for name in names if name in options.sections]:
        print(f"\n{name}", flush=True)
        sections[name] = []
        try:
            for row in runs[name]():
                if name != "checks":
                    say(row)
                sections[name].append(row)
                write(output, report)  # the machine may go at any moment
            free()
        except Exception as error:  # the other sections are to be had all the same
            print(f"ended early: {name}: {one_line(error)}", flush=True)
            ended_early[name] = one_line(error)
            write(output, report)
        checked = name not in ended_early and all(row.get("ok", True) for row in sections[name])
        if name == "checks" and not checked and not options.keep_going:
            print(f"a check failed: nothing is timed. Written to {output}")
            return 1
    print(f"\n{markdown(report)}\nwritten to {output} and {output.with_suffix('.md')}")
    return int(bool(ended_early) or any(not row["ok"] for row in sections.get("checks", [])))


if __name__ == "__main__":
    raise SystemExit(main())
