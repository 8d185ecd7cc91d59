"""How fast the filters are on a CPU, beside a memory copy and beside other people's.

Work: a sequence (batch, length, dim), two poles of its own in every bin of time and every
channel. All systems run in one process, one after another in an order that rotates from
round to round; every figure is a median over rounds, every ratio is taken inside a round
and given as median (lowest to highest). Nothing is timed before it gave the right numbers.

    python benchmarks/filters.py                        # the full size, a minute or two
    python benchmarks/filters.py --length 1024 --dim 64 --rounds 3 --output /tmp/try.json

torchlpc is optional. It is compiled when it is installed, against the torch that is there:

    pip install --no-build-isolation --no-deps torchlpc==0.7.2
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scipy.signal
import torch
from torch import Tensor

from polewise.ops import direct_form_filter, normal_form_filter

FLOOR = "x.clone()"
INSTALL_TORCHLPC = "pip install --no-build-isolation --no-deps torchlpc==0.7.2"
SLOW_SECONDS = 0.25
SLOW_EVERY = 3
"""A system slower than `SLOW_SECONDS` a call takes part in every third round only."""


@dataclass(frozen=True)
class System:
    """One row of the table: a name, what it does, and the call that is timed."""

    name: str
    note: str
    call: Callable[[], object]


@dataclass(frozen=True)
class Work:
    """The same input for all: `decay` and `angle` are the poles, `a` their coefficients."""

    x: Tensor
    grad: Tensor
    decay: Tensor
    angle: Tensor
    a: Tensor
    bin_length: int


def make_work(batch: int, length: int, dim: int, bin_length: int, seed: int) -> Work:
    """Random sequences and poles of radius 0.3 to 0.9, all angles."""
    generator = torch.Generator().manual_seed(seed)
    bins = -(-length // bin_length)
    x = torch.randn(batch, length, dim, generator=generator)
    grad = torch.randn(batch, length, dim, generator=generator)
    decay = 0.3 + 0.6 * torch.rand(batch, bins, dim, generator=generator)
    angle = torch.pi * torch.rand(batch, bins, dim, generator=generator)
    a = torch.stack([-2 * decay * torch.cos(angle), decay**2], -1)
    return Work(x, grad, decay, angle, a, bin_length)


def forward_and_backward(
    run: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """A call that filters and returns the gradient of every input."""
    leaves = tuple(value.detach().requires_grad_() for value in inputs)
    return lambda: torch.autograd.grad(run(*leaves), leaves, grad)


def fft_filter(x: Tensor, a: Tensor, bin_length: int, points: int, conjugate: bool) -> Tensor:
    """The published form: every bin times the sampled response, in frequency."""
    bins = x.unflatten(1, (-1, bin_length))
    delay = torch.exp(-2j * torch.pi * torch.arange(points // 2 + 1) / points)[:, None]
    a1, a2 = a.unsqueeze(2).unbind(-1)
    response = 1 / (1 + a1 * delay + a2 * delay**2)
    response = response.conj() if conjugate else response
    spectrum = torch.fft.rfft(bins, points, dim=2) * response
    return torch.fft.irfft(spectrum, points, dim=2)[:, :, :bin_length].flatten(1, 2)


def to_torchlpc(x: Tensor, a: Tensor, bin_length: int) -> tuple[Tensor, Tensor]:
    """One row a channel, one pair of coefficients a sample, as torchlpc wants them."""
    rows = x.transpose(1, 2).flatten(0, 1)
    per_sample = a.transpose(1, 2).flatten(0, 1).repeat_interleave(bin_length, 1)
    return rows, per_sample[:, : x.shape[1]]


def from_torchlpc(rows: Tensor, batch: int) -> Tensor:
    return rows.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()


def our_systems(work: Work) -> Iterator[System]:
    x, a, bin_length = work.x, work.a, work.bin_length
    out = torch.empty_like(x)

    def direct(x: Tensor, a: Tensor) -> Tensor:
        return direct_form_filter(x, a, bin_length)[0]

    def normal(x: Tensor, decay: Tensor, angle: Tensor) -> Tensor:
        return normal_form_filter(x, decay, angle, bin_length)[0]

    poles = (work.decay, work.angle)
    yield System(FLOOR, "the floor: read, write fresh memory", x.clone)
    yield System("out.copy_(x)", "into memory that is there already", lambda: out.copy_(x))
    yield System("direct_form_filter, forward", "ours", lambda: direct(x, a))
    yield System(
        "direct_form_filter, forward + backward",
        "ours, gradients of x and a",
        forward_and_backward(direct, (x, a), work.grad),
    )
    yield System("normal_form_filter, forward", "ours", lambda: normal(x, *poles))
    yield System(
        "normal_form_filter, forward + backward",
        "ours, gradients of x, decay and angle",
        forward_and_backward(normal, (x, *poles), work.grad),
    )


def torchlpc_systems(work: Work) -> Iterator[System]:
    from torchlpc import sample_wise_lpc

    batch = work.x.shape[0]
    rows, per_sample = (
        value.contiguous() for value in to_torchlpc(work.x, work.a, work.bin_length)
    )
    row_grad = work.grad.transpose(1, 2).flatten(0, 1).contiguous()

    def converted(x: Tensor, a: Tensor) -> Tensor:
        return from_torchlpc(sample_wise_lpc(*to_torchlpc(x, a, work.bin_length)), batch)

    yield System(
        "torchlpc, forward",
        "its own layout, made beforehand",
        lambda: sample_wise_lpc(rows, per_sample),
    )
    yield System(
        "torchlpc, forward + backward",
        "its own layout; gradients of every sample's a",
        forward_and_backward(sample_wise_lpc, (rows, per_sample), row_grad),
    )
    yield System(
        "torchlpc, from our layout, forward",
        "transpose and repeat included",
        lambda: converted(work.x, work.a),
    )
    yield System(
        "torchlpc, from our layout, forward + backward",
        "gradients of x and of each bin's a",
        forward_and_backward(converted, (work.x, work.a), work.grad),
    )


def other_systems(work: Work) -> Iterator[System]:
    x, a, bin_length = work.x, work.a, work.bin_length
    if x.shape[1] % bin_length == 0:
        yield System(
            "FFT in each bin, circular",
            "as published: conjugate, not causal, forward",
            lambda: fft_filter(x, a, bin_length, bin_length, conjugate=True),
        )
        yield System(
            "FFT in each bin, zero-padded",
            "twice the points, nearly linear, forward",
            lambda: fft_filter(x, a, bin_length, 2 * bin_length, conjugate=False),
        )
    fixed = [1.0, *a[0, 0, 0].tolist()]
    # As float32, or SciPy would filter in float64.
    denominator, signal = torch.tensor(fixed).numpy(), x.numpy()
    numerator = torch.ones(1).numpy()
    yield System(
        "scipy.signal.lfilter",
        "one fixed pair for all, one thread, forward",
        lambda: scipy.signal.lfilter(numerator, denominator, signal, axis=1),
    )


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


def measure(systems: list[System], rounds: int) -> dict[str, list[float | None]]:
    """Seconds of each system in each round; None where a slow one did not take part."""
    times: dict[str, list[float | None]] = {system.name: [] for system in systems}
    slow = {system.name for system in systems if _seconds(system.call) > SLOW_SECONDS}
    for number in range(rounds):
        turn = number % len(systems)
        gc.collect()
        for system in systems[turn:] + systems[:turn]:
            takes_part = system.name not in slow or number % SLOW_EVERY == 0
            times[system.name].append(_seconds(system.call) if takes_part else None)
        _progress(f"round {number + 1} of {rounds}")
    _progress("")
    return times


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    del result
    return seconds


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:30}", end="" if text else "\r", file=sys.stderr, flush=True)


def ratio(times: dict[str, list[float | None]], name: str, other: str) -> dict[str, float]:
    """Time of `name` over time of `other`, in the rounds in which both took part."""
    pairs = zip(times[name], times[other], strict=True)
    ratios = [mine / theirs for mine, theirs in pairs if mine is not None and theirs is not None]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def machine() -> dict[str, object]:
    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
    cores = os.cpu_count()
    facts: dict[str, object] = {"cpu": name, "cores": cores, "system": platform.system()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["memory_gib"] = round(memory / 2**30, 1)
    return facts


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("polewise", "torch", "numpy", "numba", "scipy", "torchlpc"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def show(report: dict[str, Any]) -> None:
    work, hardware = report["work"], report["hardware"]
    print(
        f"{hardware['cpu']}, {hardware['cores']} cores, {report['threads']} threads; "
        f"batch {work['batch']}, length {work['length']}, dim {work['dim']}, "
        f"bins of {work['bin_length']}, {work['dtype']}; {work['rounds']} rounds\n"
    )
    print(f"{'system':47}{'ms':>9}   times {FLOOR}")
    for row in report["systems"]:
        spread = row["over_floor"]
        print(
            f"{row['name']:47}{row['median_ms']:9.1f}   {spread['median']:6.2f} "
            f"({spread['low']:.2f} to {spread['high']:.2f})   {row['note']}"
        )
    print()
    for row in report["comparisons"]:
        print(
            f"{row['name']} / {row['other']}: {row['median']:.2f} "
            f"({row['low']:.2f} to {row['high']:.2f})"
        )
    if work["length"] % work["bin_length"]:
        print("the FFT rows are left out: they need a length that is a multiple of bin_length")
    if report["versions"]["torchlpc"] is None:
        print(f"torchlpc is not installed; to compare: {INSTALL_TORCHLPC}")


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
    parser.add_argument("--seed", type=int, default=0, help="of the random input (default 0)")
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON to write (default benchmarks/results/filters-DATE.json)",
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
    now = datetime.datetime.now(datetime.UTC)
    output = options.output or (
        Path(__file__).parent / "results" / f"filters-{now.date().isoformat()}.json"
    )
    work = make_work(options.batch, options.length, options.dim, options.bin_length, options.seed)
    found = versions()
    systems = list(our_systems(work))
    if found["torchlpc"] is not None:
        systems += torchlpc_systems(work)
    systems += other_systems(work)
    check(work, systems)
    times = measure(systems, options.rounds)

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
    ]
    report: dict[str, Any] = {
        "date": now.isoformat(timespec="seconds"),
        "hardware": machine(),
        "threads": options.threads,
        "versions": found,
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
    show(report)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {output}")


if __name__ == "__main__":
    main()
