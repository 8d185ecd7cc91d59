"""Which backend runs an op: the one asked for, or the fastest that can."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection

import torch
from torch import Tensor

from polewise.ops.eager import is_transformed
from polewise.ops.precision import dtype_name

HAS_TRITON = importlib.util.find_spec("triton") is not None


def usable_backend(
    backend: str | None, known: Collection[str], x: Tensor, **unfit: str | None
) -> str:
    """`backend`, or the fastest for `x`; it is one of `known`, and can run here.

    `unfit` maps a backend to what it requires, where these inputs do not fit; else to None.
    """
    if backend is None:
        name = fastest_backend(x)
        return name if name in known and not unfit.get(name) else "torch"
    if backend not in known:
        raise ValueError(f"backend must be one of {', '.join(known)}, or None; got {backend!r}.")
    if backend == "cpu":
        require_cpu(x)
    if backend == "triton":
        require_triton(x)
    if takes := unfit.get(backend):
        raise ValueError(f"backend {backend!r} takes {takes}. Use None.")
    return backend


def fastest_backend(x: Tensor) -> str:
    """Compiled loops on a CPU, Triton on a GPU that has it; tensor operations elsewhere, under
    `torch.func`, which cannot see into compiled code, and on export, for the program must run where
    Polewise is not installed."""
    if torch.compiler.is_exporting() or is_transformed():
        return "torch"
    if x.device.type == "cuda" and HAS_TRITON:
        return "triton"
    return "cpu" if x.device.type == "cpu" else "torch"


def float32_alone(*tensors: Tensor) -> str | None:
    """What loops that are compiled for float32 require, for `usable_backend`; None where they are
    given it."""
    dtypes = {each.dtype for each in tensors}
    if dtypes == {torch.float32}:
        return None
    return f"float32 tensors throughout; got {', '.join(sorted(map(dtype_name, dtypes)))}"


def require_untransformed(backend: str) -> None:
    if is_transformed():
        raise ValueError(
            f"backend {backend!r} cannot run inside torch.func or forward-mode differentiation, "
            "which do not see into compiled loops. Use backend='torch', or None."
        )


def require_cpu(x: Tensor) -> None:
    require_untransformed("cpu")
    if x.device.type != "cpu":
        raise ValueError(
            f"backend 'cpu' runs on the CPU; got a tensor on {x.device}. "
            "Use backend='torch', or None to let the device decide."
        )


def require_triton(x: Tensor) -> None:
    require_untransformed("triton")
    if not HAS_TRITON:
        raise ValueError(
            "backend 'triton' needs the package triton, which is not installed here. "
            "Use None to let the device decide."
        )
    if x.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"backend 'triton' runs on a GPU; got a tensor on {x.device}. Use None to let the "
            "device decide, or start Python with TRITON_INTERPRET=1 to step through the kernels."
        )


def refuse_second_derivative(ctx: object, *gradients: object) -> None:
    """The gradient of a compiled gradient."""
    raise RuntimeError(
        "backend must be 'torch' for second derivatives: the compiled loops of 'cpu' and 'triton' "
        "have a first one only. Pass backend='torch' to the op; for a mixer or a model take "
        "torch.func's grad of grad, or hessian."
    )
