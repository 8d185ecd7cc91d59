"""Everything about the filters on a GPU in one command: are they right, then how fast are they.

    python benchmarks/gpu.py                            # all sections, some twenty minutes
    python benchmarks/gpu.py --sections checks filters  # some of them
    TRITON_INTERPRET=1 python benchmarks/gpu.py --smoke # that all of it runs, without a GPU

checks    every backend against float64 in every dtype: ragged rows, offsets, resets, poles at the
          edge of stability, lengths to 1M, more than 2^31 elements; gradients twice the same
          bits; nothing compiled again for a new length
filters   forward and forward + backward beside a copy: time, and bytes per second over the
          copy's, counting the fewest bytes the work can move (x and y; with the backward also
          grad y, x or y again, and grad x)
segments  the same at one size for several lengths of a segment, the one number to tune
products  the associative filter, by kernels and by batched products, beside flash attention
          with the same queries, keys and values
block     a whole Focus block beside a Transformer block with causal flash attention, width
          1024, bfloat16, 2K to 128K: training step, forward pass, peak memory

Systems alternate within a round; figures are medians. Nothing is timed when a check has failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from polewise import FocusConfig
from polewise.models import Block
from polewise.ops import associative_filter, direct_form_filter, normal_form_filter

FORMS = ("direct", "normal")
ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Norm of the error over norm of the exact result, for outputs, states and gradients."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """What is measured, and where."""

    device: str
    backend: str | None
    """None is what a user gets."""
    checked: list[tuple[str, tuple[int, int, int], dict[str, Any]]]
    checked_products: list[tuple[int, int, int, int, int]]
    """batch, length, heads, key_dim, value_dim."""
    long: list[int]
    new_lengths: list[int]
    sizes: list[tuple[int, int, int, torch.dtype]]
    segments: list[int]
    products: list[tuple[int, int, int, int]]
    """batch, length, heads, dim of keys and values."""
    block_lengths: list[int]
    block_width: int


FULL = Scale(
    device="cuda",
    backend=None,
    checked=[
        ("plain", (2, 256, 96), {"bin_length": 32}),
        ("ragged", (3, 333, 96), {"bin_length": 37, "ragged": True}),
        ("reset", (3, 333, 96), {"bin_length": 37, "ragged": True, "reset": True}),
        ("bins of many segments", (2, 5000, 96), {"bin_length": 3000, "ragged": True}),
        ("long", (2, 20000, 64), {}),
    ],
    checked_products=[(2, 333, 3, 64, 64), (1, 100, 2, 20, 40), (2, 700, 2, 128, 32)],
    long=[2**12, 2**16, 2**20],
    new_lengths=[4000, 3999, 4001, 5120, 12345],
    sizes=[
        (8, 32768, 1024, torch.bfloat16),
        (8, 8192, 1024, torch.bfloat16),
        (64, 1024, 1024, torch.bfloat16),
        (1, 131072, 1024, torch.bfloat16),
        (1, 1048576, 256, torch.bfloat16),
        (8, 8192, 512, torch.float32),
        (8, 1, 1024, torch.bfloat16),
    ],
    segments=[128, 256, 512, 1024, 2048, 4096],
    products=[(8, 2048, 16, 64), (2, 8192, 16, 64), (1, 32768, 16, 64), (1, 131072, 16, 64)],
    block_lengths=[2048, 4096, 8192, 16384, 32768, 65536, 131072],
    block_width=1024,
)
SMOKE = Scale(
    device="cpu",
    backend="triton",
    checked=[("ragged", (2, 33, 4), {"bin_length": 7, "ragged": True})],
    checked_products=[(1, 40, 1, 4, 3)],
    long=[64],
    new_lengths=[20, 21],
    sizes=[(1, 40, 4, torch.bfloat16)],
    segments=[16],
    products=[(1, 40, 1, 16)],
    block_lengths=[64],
    block_width=64,
)


class Work:
    """One filter with input on the GPU, and its gradients of everything."""

    def __init__(
        self, form: str, batch: int, length: int, dim: int, dtype: torch.dtype, device: str, *,
        bin_length: int = 128, radius: tuple[float, float] = (0.3, 0.9), ragged: bool = False,
        reset: bool = False,
    ) -> None:  # fmt: skip
        draw = torch.Generator(device).manual_seed(length + dim)
        wide = torch.float64 if dtype == torch.float64 else torch.float32

        def random(kind: Callable[..., Tensor], *shape: int, of: torch.dtype = wide) -> Tensor:
            return kind(*shape, generator=draw, device=device, dtype=wide).to(of)

        offset: int | Tensor = 0
        lengths = None
        if ragged:
            offset = torch.arange(batch, device=device) * 7 % bin_length
            lengths = length - torch.arange(batch, device=device) * (length // (2 * batch))
        late = int(offset.max()) if isinstance(offset, Tensor) else offset
        bins = -(-(late + length) // bin_length)
        self.form, self.bin_length, self.device = form, bin_length, device
        self.options = {"offset": offset, "lengths": lengths, "reset": reset}
        self.grad = random(torch.randn, batch, length, dim, of=dtype)
        low, high = radius
        decay = low + (high - low) * random(torch.rand, batch, bins, dim)
        # The direct form amplifies rounding by 1 / sin(angle): keep that below 10.
        angle = 0.1 + (torch.pi - 0.2) * random(torch.rand, batch, bins, dim)
        x, state = (
            random(torch.randn, batch, length, dim, of=dtype),
            random(torch.randn, batch, dim, 2),
        )
        if form == "direct":
            coefficients = [torch.stack([-2 * decay * angle.cos(), decay**2], -1)]
        else:
            coefficients = [decay, angle, random(torch.randn, dim, 2)]
        self.inputs = [x, state, *coefficients]

    def forward(self, inputs: list[Tensor], backend: str | None) -> tuple[Tensor, Tensor]:
        x, state, *coefficients = inputs
        options = {
            name: value.to(x.device) if isinstance(value, Tensor) else value
            for name, value in self.options.items()
        }
        if self.form == "direct":
            return direct_form_filter(
                x, *coefficients, self.bin_length, state=state, backend=backend, **options
            )
        decay, angle, mix = coefficients
        return normal_form_filter(
            x, decay, angle, self.bin_length, mix=mix, state=state, backend=backend, **options
        )

    def both(self, backend: str | None, *, exactly: bool = False) -> tuple[Tensor, ...]:
        """y, the last state, and the gradients of every input, of `sum(grad y) + sum(state)`."""
        inputs, grad = self.inputs, self.grad
        if exactly:
            device = "cpu" if backend == "cpu" else self.device
            inputs, grad = [t.double().to(device) for t in inputs], grad.double().to(device)
        leaves = [t.detach().requires_grad_() for t in inputs]
        y, state = self.forward(leaves, backend)
        gradients = torch.autograd.grad((y, state), leaves, (grad, torch.ones_like(state)))
        return (y.detach(), state.detach(), *gradients)

    def minimal_bytes(self, *, backward: bool) -> int:
        x = self.inputs[0]
        coefficients = sum(t.nbytes for t in self.inputs[2:])
        return (5 * x.nbytes + 3 * coefficients) if backward else (2 * x.nbytes + coefficients)


def exact_backend(work: Work) -> str:
    """float64: the definition where it is quick, compiled loops or torch where it is not."""
    if work.inputs[0].shape[0] * work.inputs[0].shape[1] <= 1000:
        return "reference"
    return "cpu" if importlib.util.find_spec("numba") else "torch"


def error(got: Tensor, exact: Tensor) -> float:
    exact = exact.to(got.device)
    size = exact.norm().item()
    return (got.double() - exact).norm().item() / size if size else got.double().norm().item()


def checks(scale: Scale) -> Iterator[dict[str, Any]]:
    """Rows of what was compared, the largest error and what is allowed."""
    for form in FORMS:
        plans = [
            (name, shape, dtype, options)
            for dtype in ALLOWED
            for name, shape, options in scale.checked
        ]
        # Switching poles of long memory would make the direct form grow: it keeps one bin.
        edge: list[tuple[str, int, torch.dtype, float]] = [
            ("edge of stability", scale.long[0], torch.float32, 0.99999),
            *(("memory of 1000 steps", length, torch.float32, 0.999) for length in scale.long),
            ("memory of 1000 steps", scale.long[-1], torch.bfloat16, 0.999),
        ]
        for name, length, dtype, radius in edge:
            steady = {"bin_length": length} if form == "direct" else {}
            plans.append((name, (1, length, 64), dtype, {"radius": (radius, radius), **steady}))
        for name, shape, dtype, options in plans:
            work = Work(form, *shape, dtype, scale.device, **options)
            exact = work.both(exact_backend(work), exactly=True)
            backends = ["triton", "torch"] if shape[1] <= 20000 else ["triton"]
            for backend in backends:
                errors = [error(*pair) for pair in zip(work.both(backend), exact, strict=True)]
                yield verdict(
                    f"{form}, {name} {shape}, {short(dtype)}, {backend}",
                    max(errors), ALLOWED[dtype],
                )  # fmt: skip
        batch, length, dim, dtype = scale.sizes[1 % len(scale.sizes)]
        work = Work(form, batch, length, dim, dtype, scale.device, ragged=True)
        first, second = work.both(scale.backend), work.both(scale.backend)
        differing = sum(not torch.equal(*pair) for pair in zip(first, second, strict=True))
        yield verdict(f"{form}, results that differ in bits from run to run", differing, 0)
        yield verdict(f"{form}, kernels compiled for new lengths", recompilations(form, scale), 0)
        if scale.device == "cuda" and torch.cuda.mem_get_info()[0] > 40 * 2**30:
            work = Work(form, 3, 1_000_000, 1024, torch.bfloat16, scale.device)
            with torch.no_grad():
                y, _ = work.forward(work.inputs, None)
                last = [t if t.ndim == 2 else t[2:] for t in work.inputs]
                alone, _ = work.forward(last, None)
            differing = int((y[2:] != alone).sum())
            yield verdict(f"{form}, beyond 2^31: values that differ from a row alone", differing, 0)
            del work, y, alone, last
    for sizes in scale.checked_products:
        for dtype in ALLOWED:
            if dtype == torch.float64:
                continue  # the kernels go up to float32
            for turning in (False, True):
                products = Products(*sizes, dtype, scale.device, turning=turning)
                exact = products.both("reference", exactly=True)
                for backend in ("triton", "torch"):
                    got = products.both(backend)
                    yield verdict(
                        f"products {sizes}, {'complex' if turning else 'real'}, {short(dtype)}, "
                        f"{backend}",
                        max(error(*pair) for pair in zip(got, exact, strict=True)), ALLOWED[dtype],
                    )  # fmt: skip


class Products:
    """The associative filter with input on the GPU, and its gradients of everything."""

    def __init__(
        self, batch: int, length: int, heads: int, key_dim: int, value_dim: int,
        dtype: torch.dtype, device: str, *, turning: bool,
    ) -> None:  # fmt: skip
        draw = torch.Generator(device).manual_seed(length)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, device=device)

        q, k = (normal(batch, length, heads, key_dim) / key_dim**0.5 for _ in range(2))
        v = normal(batch, length, heads, value_dim)
        decay = 1 - 0.1 * torch.rand(batch, length, heads, generator=draw, device=device)
        angle = [normal(batch, length, heads)] if turning else []
        state = normal(batch, heads, 2 if turning else 1, key_dim, value_dim)
        self.inputs = [*(t.to(dtype) for t in (q, k, v)), decay, *angle, state]
        self.grads = [normal(*v.shape).to(dtype), normal(*state.shape)]

    def forward(self, inputs: list[Tensor], backend: str | None) -> tuple[Tensor, Tensor]:
        *sequences, state = inputs
        return associative_filter(*sequences, state=state, backend=backend)

    def both(self, backend: str | None, *, exactly: bool = False) -> tuple[Tensor, ...]:
        """y, the last state, and the gradients of every input."""
        leaves = [(t.double() if exactly else t).detach().requires_grad_() for t in self.inputs]
        y, state = self.forward(leaves, backend)
        grads = [grad.to(out.dtype) for grad, out in zip(self.grads, (y, state), strict=True)]
        gradients = torch.autograd.grad((y, state), leaves, grads)
        return (y.detach(), state.detach(), *gradients)


def recompilations(form: str, scale: Scale) -> int:
    """Kernels compiled for lengths not met before, one length of the same kind having been met."""
    import triton

    dim = scale.sizes[0][2]
    first, *others = scale.new_lengths
    Work(form, 2, first, dim, torch.bfloat16, scale.device).both(scale.backend)
    compiled: list[str] = []
    triton.knobs.runtime.jit_cache_hook = lambda **facts: compiled.append(facts["repr"])
    for length in others:
        Work(form, 2, length, dim, torch.bfloat16, scale.device).both(scale.backend)
    triton.knobs.runtime.jit_cache_hook = None
    return len(compiled)


def verdict(what: str, found: float, allowed: float) -> dict[str, Any]:
    row = {"what": what, "found": found, "allowed": allowed, "ok": found <= allowed}
    print(f"{'ok  ' if row['ok'] else 'FAIL'} {found:9.2e} <= {allowed:.0e}  {what}", flush=True)
    return row


def filters(scale: Scale, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for batch, length, dim, dtype in scale.sizes:
        works = {form: Work(form, batch, length, dim, dtype, scale.device) for form in FORMS}
        x = works["direct"].inputs[0]
        out = torch.empty_like(x)
        systems: dict[str, Callable[[], object]] = {"copy": lambda out=out, x=x: out.copy_(x)}
        for form, work in works.items():
            systems[f"{form}, forward"] = lambda work=work: quietly(work, scale)
            systems[f"{form}, forward + backward"] = lambda work=work: work.both(scale.backend)
        times = measure(systems, rounds, scale.device)
        copied = 2 * x.nbytes / statistics.median(times["copy"])
        for name, seconds in times.items():
            form, _, what = name.partition(", ")
            moved = (
                2 * x.nbytes if name == "copy"
                else works[form].minimal_bytes(backward="backward" in what)
            )  # fmt: skip
            speed = moved / statistics.median(seconds)
            rows.append(
                {
                    "size": [batch, length, dim], "dtype": short(dtype), "system": name,
                    **spread(seconds), "gigabytes_per_second": speed / 1e9,
                    "of_copy": speed / copied,
                }
            )  # fmt: skip
            say(rows[-1])
        del works, x, out, systems
        free()
    return rows


def segments(scale: Scale, rounds: int) -> list[dict[str, Any]]:
    from polewise.ops import _segments_triton

    batch, length, dim, dtype = scale.sizes[0]
    before, rows = _segments_triton.SEGMENT, []
    works = {form: Work(form, batch, length, dim, dtype, scale.device) for form in FORMS}
    for steps in scale.segments:
        _segments_triton.SEGMENT = steps
        systems: dict[str, Callable[[], object]] = {}
        for form, work in works.items():
            systems[f"{form}, forward"] = lambda work=work: quietly(work, scale)
            systems[f"{form}, forward + backward"] = lambda work=work: work.both(scale.backend)
        for name, seconds in measure(systems, rounds, scale.device).items():
            rows.append({"steps": steps, "system": name, **spread(seconds)})
            say(rows[-1])
    _segments_triton.SEGMENT = before
    return rows


def products(scale: Scale, rounds: int) -> list[dict[str, Any]]:
    """The associative filter and flash attention with the same queries, keys and values."""
    rows = []
    for batch, length, heads, dim in scale.products:
        sizes = (batch, length, heads, dim, dim)
        systems: dict[str, Callable[[], object]] = {}
        for poles, turning in (("real", False), ("complex", True)):
            work = Products(*sizes, torch.bfloat16, scale.device, turning=turning)
            for backend in ("triton", "torch"):
                named = dataclasses.replace(scale, backend=backend)
                systems[f"{poles} poles, {backend}, forward"] = lambda work=work, named=named: (
                    quietly(work, named)
                )
                systems[f"{poles} poles, {backend}, forward + backward"] = (
                    lambda work=work, backend=backend: work.both(backend)
                )
        parts = [t.detach().transpose(1, 2) for t in work.inputs[:3]]
        leaves = [t.clone().requires_grad_() for t in parts]
        grad = torch.ones_like(parts[2])
        systems["flash attention, forward"] = lambda parts=parts: flash(*parts)
        systems["flash attention, forward + backward"] = lambda leaves=leaves, grad=grad: (
            torch.autograd.grad(flash(*leaves), leaves, grad)
        )
        for name, seconds in measure(systems, rounds, scale.device).items():
            rows.append({"size": [batch, length, heads, dim], "system": name, **spread(seconds)})
            say(rows[-1])
        del systems, work, parts, leaves, grad
        free()
    return rows


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, (batch, heads, length, dim), by torch's flash kernel."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class FlashAttention(nn.Module):
    """Causal multi-head attention by torch's flash kernel, and nothing else."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_query_key_value = nn.Linear(dim, 3 * dim)
        self.to_output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, state: None = None, lengths: None = None) -> tuple[Tensor, None]:
        parts = self.to_query_key_value(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)
        y = flash(*parts.unbind(2))
        return self.to_output(y.transpose(1, 2).flatten(2)), None


def block(scale: Scale, rounds: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    width = scale.block_width
    mixers = {
        "Focus": FocusConfig(dim=width).build(),
        "Transformer": FlashAttention(width, max(width // 64, 1)),
    }
    blocks = {
        name: Block(mixer, width, 2 * width).to(scale.device, torch.bfloat16)
        for name, mixer in mixers.items()
    }

    def training_step(block: nn.Module, x: Tensor) -> None:
        y, _ = block(x)
        y.backward(torch.ones_like(y))
        block.zero_grad()

    def inference(block: nn.Module, x: Tensor) -> None:
        with torch.no_grad():
            block(x)

    rows = []
    for length in scale.block_lengths:
        x = torch.randn(1, length, width, device=scale.device, dtype=torch.bfloat16)
        for kind, step in (("training step", training_step), ("forward", inference)):
            systems, peaks = {}, {}
            for name, each in blocks.items():
                try:
                    peaks[name] = peak_bytes(lambda each=each, step=step, x=x: step(each, x))
                except torch.OutOfMemoryError:
                    print(f"{name}, {kind}, {length}: out of memory", flush=True)
                    continue
                systems[name] = lambda each=each, step=step, x=x: step(each, x)
            for name, seconds in measure(systems, rounds, scale.device).items():
                rows.append(
                    {
                        "length": length, "work": kind, "system": name, **spread(seconds),
                        "peak_mib": peaks[name] / 2**20,
                    }
                )  # fmt: skip
                say(rows[-1])
        free()
    return rows


def quietly(work: Work | Products, scale: Scale) -> object:
    with torch.no_grad():
        return work.forward(work.inputs, scale.backend)


def peak_bytes(call: Callable[[], object]) -> int:
    """Beyond what was there before, in the second call (the first one tunes)."""
    call()
    free()
    if not torch.cuda.is_available():
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(
    systems: dict[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, list[float]]:
    """Seconds of every system in every round, by events on the device, after two warm-up calls."""
    times: dict[str, list[float]] = {name: [] for name in systems}
    for call in [*systems.values()] * 2:
        call()
    names = list(systems)
    for number in range(rounds):
        turn = number % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            times[name].append(_seconds(systems[name], device))
    return times


def _seconds(call: Callable[[], object], device: str) -> float:
    if device == "cpu":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def spread(seconds: list[float]) -> dict[str, float]:
    return {
        "ms": 1e3 * statistics.median(seconds), "ms_low": 1e3 * min(seconds),
        "ms_high": 1e3 * max(seconds),
    }  # fmt: skip


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def say(row: dict[str, Any]) -> None:
    print("  ".join(f"{name} {cell(value)}" for name, value in row.items()), flush=True)


def machine() -> dict[str, object]:
    found: dict[str, object] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
        }
    for package in ("polewise", "torch", "triton"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def markdown(report: dict[str, Any]) -> str:
    lines = ["# Filters on a GPU", "", ", ".join(f"{k} {v}" for k, v in report["machine"].items())]
    for name, rows in report["sections"].items():
        if not rows:
            continue
        columns = list(rows[0])
        lines += ["", f"## {name}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(cell(row[c]) for c in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["checks", "filters", "segments", "products", "block"]
    parser.add_argument(
        "--sections", nargs="+", choices=names, default=names, help="which (default all)"
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
    now = datetime.datetime.now(datetime.UTC)
    output = options.output or Path(__file__).parent / "results" / f"gpu-{now.date()}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    sections: dict[str, list[dict[str, Any]]] = {}
    report = {
        "date": now.isoformat(timespec="seconds"), "machine": machine(),
        "rounds": options.rounds, "sections": sections,
    }  # fmt: skip
    runs: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "checks": lambda: list(checks(scale)),
        "filters": lambda: filters(scale, options.rounds),
        "segments": lambda: segments(scale, options.rounds),
        "products": lambda: products(scale, options.rounds),
        "block": lambda: block(scale, options.rounds),
    }
    for name in [name for name in names if name in options.sections]:
        print(f"\n{name}", flush=True)
        sections[name] = runs[name]()
        output.write_text(json.dumps(report, indent=1) + "\n")
        output.with_suffix(".md").write_text(markdown(report))
        free()
        if not all(row.get("ok", True) for row in sections[name]):
            print(f"a check failed: nothing is timed. Written to {output}")
            return 1
    print(f"\n{markdown(report)}\nwritten to {output} and {output.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
