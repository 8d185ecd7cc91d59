"""Every backend on a GPU against float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpu_timing import one_line
from gpu_work import FORMS, Layer, Products, Scale, Work, short

ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Norm of the error over norm of the exact result, for outputs, states and gradients."""

ALLOWED_OF_PRODUCTS = ALLOWED | {torch.float16: 4e-3}
"""TF32 cuts factors off at ten bits, all towards 0."""

ALLOWED_OF_LAYERS = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Maps, a norm and a gate after one another, each rounded; parameters are sums of it all."""


def checks(scale: Scale) -> Iterator[dict[str, Any]]:
    """Rows of what was compared, the largest error and what is allowed."""
    with poisoned_memory():
        for what, allowed, find in plans(scale):
            yield verdict(what, allowed, find)


def plans(scale: Scale) -> Iterator[tuple[str, float, Callable[[], float]]]:
    """What is compared, the error that is allowed, and how to find it."""
    for form in FORMS:
        cases: list[tuple[str, tuple[int, int, int], torch.dtype, dict[str, Any]]] = [
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
            cases.append((name, (1, length, 96), dtype, {"radius": (radius, radius), **steady}))
        for name, shape, dtype, options in cases:
            exact = Exact(partial(Work, form, *shape, dtype, scale.device, **options))
            # "torch" multiplies matrices of the direct form, which near the edge costs digits.
            near_the_edge = name == "edge of stability" and form == "direct"
            itself = dtype == torch.float64 and scale.device == "cuda"  # what is exact there
            by_torch = shape[1] <= 20000 and not near_the_edge and not itself
            for backend in ("triton", "torch") if by_torch else ("triton",):
                what = f"{form}, {name} {shape}, {short(dtype)}, {backend}"
                # The configurations differ in their layout: each is checked, in a dtype of its own.
                find = partial(in_configuration, list(ALLOWED).index(dtype), exact.error, backend)
                yield what, ALLOWED[dtype], find
        for what, find in {
            "results that differ in bits from run to run": differing_bits,
            "kernels compiled for new lengths": recompilations,
            "beyond 2^31: values that differ from a row alone": differing_beyond_2_31,
        }.items():
            roomy = scale.device == "cuda" and torch.cuda.mem_get_info()[0] > 40 * 2**30
            if roomy or find is not differing_beyond_2_31:
                yield f"{form}, {what}", 0, partial(in_configuration, 0, find, form, scale)
    for sizes, dtypes in scale.checked_products:
        for dtype in dtypes:
            for turning in (False, True):
                exact = Exact(partial(Products, *sizes, dtype, scale.device, turning=turning))
                poles = "complex" if turning else "real"
                for backend in ("triton", "torch"):
                    what = f"products {sizes}, {poles}, {short(dtype)}, {backend}"
                    yield what, ALLOWED_OF_PRODUCTS[dtype], partial(exact.error, backend)
    for options in scale.checked_layers:
        for dtype, allowed in ALLOWED_OF_LAYERS.items():
            exact = Exact(partial(Layer, dtype, scale.device, **options))
            find = partial(in_configuration, list(ALLOWED).index(dtype), exact.error, None)
            yield f"layer {options}, {short(dtype)}", allowed, find


class Exact:
    """A work and its results in float64, made when the first backend is compared with them."""

    def __init__(self, make: Callable[[], Work | Products | Layer]) -> None:
        self.make = make
        self.work: Work | Products | Layer | None = None
        self.results: tuple[Tensor, ...] = ()

    def error(self, backend: str | None) -> float:
        """The largest error of the backend's outputs, state and gradients."""
        if self.work is None:
            self.work = self.make()
            self.results = self.work.both(exact_backend(self.work), exactly=True)
        pairs = zip(self.work.both(backend), self.results, strict=True)
        return max(relative_error(*pair) for pair in pairs)


def exact_backend(work: Work | Products | Layer) -> str | None:
    """float64: the definition where it is quick, tensor operations or compiled loops where it is
    not; a layer takes tensor operations."""
    if isinstance(work, Layer):
        return None
    if work.inputs[0].shape[0] * work.inputs[0].shape[1] <= 2000:
        return "reference"
    # A GPU has float64 too, and need not wait for loops to be compiled for the CPU beside it.
    return "torch" if work.inputs[0].device.type == "cuda" else "cpu"


def relative_error(got: Tensor, exact: Tensor) -> float:
    exact = exact.to(got.device)
    size = exact.norm().item()
    far = (got.double() - exact).norm().item()
    return (far / size if size else far) if math.isfinite(far) else math.inf


def differing_bits(form: str, scale: Scale) -> int:
    """Results of one work that are not the same twice."""
    batch, length, dim, dtype = scale.sizes[1 % len(scale.sizes)]
    work = Work(form, batch, length, dim, dtype, scale.device, ragged=True)
    first, second = work.both(scale.backend), work.both(scale.backend)
    return sum(not torch.equal(*pair) for pair in zip(first, second, strict=True))


def differing_beyond_2_31(form: str, scale: Scale) -> int:
    work = Work(form, 3, 1_000_000, 1024, torch.bfloat16, scale.device)
    with torch.no_grad():
        y, _ = work.forward(work.inputs, None)
        alone, _ = work.forward([t if t.ndim == 2 else t[2:] for t in work.inputs], None)
    return int((y[2:] != alone).sum())


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


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory is NaN: what a kernel leaves unwritten cannot look right by chance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that have no deterministic form
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def in_configuration(number: int, find: Callable[..., float], *arguments: Any) -> float:
    """What is found with that configuration of every filter's kernel, one of four: compiling and
    timing all takes minutes."""
    tuned = tuned_kernels()
    before = [kernel.configs for kernel in tuned]
    try:
        for kernel in tuned:
            kernel.configs = [kernel.configs[number % len(kernel.configs)]]
            kernel.cache.clear()
        return find(*arguments)
    finally:
        for kernel, configurations in zip(tuned, before, strict=True):
            kernel.configs = configurations
            kernel.cache.clear()


def tuned_kernels() -> list[Any]:
    """The kernels of the filters for which one of several configurations is chosen."""
    import triton

    from polewise.ops import _direct_form_triton, _normal_form_triton, _segments_triton

    modules = (_segments_triton, _direct_form_triton, _normal_form_triton)
    kernels = {id(each): each for module in modules for each in vars(module).values()}
    return [each for each in kernels.values() if isinstance(each, triton.runtime.Autotuner)]


def verdict(what: str, allowed: float, find: Callable[[], float]) -> dict[str, Any]:
    """What was found; a check that cannot be made is one that failed."""
    found, said = math.inf, ""
    try:
        found = find()
    except Exception as error:  # the others are to be made all the same
        said = one_line(error)
    ok = found <= allowed
    print(
        f"{'ok  ' if ok else 'FAIL'} {found:9.2e} <= {allowed:.0e}  {what}  {said}".rstrip(),
        flush=True,
    )
    return {
        "what": what, "found": found if math.isfinite(found) else None, "allowed": allowed,
        "ok": ok, "error": said,
    }  # fmt: skip
