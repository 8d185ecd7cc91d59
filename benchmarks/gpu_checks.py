"""Every backend on a GPU against float64: nothing is timed when one is wrong."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gpu_work import FORMS, Products, Scale, Work, short

ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Norm of the error over norm of the exact result, for outputs, states and gradients."""


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
