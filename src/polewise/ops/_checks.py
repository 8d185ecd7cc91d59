"""The questions every op asks its arguments, answered in the caller's words.

Only shapes, dtypes and devices are looked at. Values are not: reading one back
would stall an accelerator at every call.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection

import torch
from torch import Tensor
from torch.autograd import forward_ad

from polewise.ops.precision import accumulator_dtype

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HAS_TRITON = importlib.util.find_spec("triton") is not None


def require_axes(name: str, x: Tensor, axes: str = "(batch, length, dim)") -> None:
    """`x` is a floating tensor with these axes."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor {axes}; got {type(x).__name__}.")
    if x.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64; got {_short(x.dtype)}."
        )
    if x.ndim != axes.count(",") + 1:
        raise ValueError(f"{name} must have shape {axes}; got {tuple(x.shape)}.")


def require_floating(name: str, value: Tensor, axes: str = "") -> None:
    """`value` is a floating tensor, of any shape."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        what = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating tensor{axes}; got {what}.")


def require_like(name: str, value: Tensor, shape: tuple[int, ...], x: Tensor, axes: str) -> None:
    """`value` has `shape`, lives where `x` lives, and is of its precision or its accumulator's."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor {axes}; got {type(value).__name__}.")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {axes} = {shape}; got {tuple(value.shape)}.")
    if value.dtype not in (x.dtype, accumulator_dtype(x)):
        allowed = " or ".join(dict.fromkeys(map(_short, (x.dtype, accumulator_dtype(x)))))
        raise TypeError(
            f"{name} must be {allowed} to go with a {_short(x.dtype)} sequence; "
            f"got {_short(value.dtype)}."
        )
    if value.device != x.device:
        raise ValueError(f"{name} must be on {x.device} like the sequence; got {value.device}.")


def require_groups(weight: Tensor, x: Tensor) -> None:
    """`weight` has a number for every channel of a group, and lives where `x` lives."""
    require_floating("weight", weight, " (group,)")
    if weight.device != x.device:
        raise ValueError(f"weight must be on {x.device} like the sequence; got {weight.device}.")
    if weight.ndim != 1 or not len(weight) or x.shape[2] % len(weight):
        raise ValueError(
            f"weight must have shape (group,), of a size that divides {x.shape[2]} channels; got "
            f"{tuple(weight.shape)}."
        )


def require_positive(name: str, value: int, unit: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, in {unit}; got {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1 {unit}; got {value}.")


def checked_lengths(lengths: Tensor | None, x: Tensor) -> Tensor | None:
    """How many steps of each row are real, (batch,) int64; None where all are."""
    if lengths is None:
        return None
    require_rows("lengths", lengths, x)
    return lengths.to(torch.int64).clamp(0, x.shape[1])


def require_offset(offset: int | Tensor, bin_length: int, x: Tensor) -> None:
    """`offset` can say where `x[:, 0]` stands in its bin: one number, or one a row."""
    if isinstance(offset, Tensor):
        require_rows("offset", offset, x)
        return
    if isinstance(offset, bool) or not isinstance(offset, int):
        raise TypeError(
            f"offset must be an int or an int64 tensor (batch,); got {type(offset).__name__}."
        )
    if not 0 <= offset < bin_length:
        raise ValueError(
            f"offset must lie in [0, bin_length), the position of x[:, 0] in its bin; "
            f"got {offset} for bin_length {bin_length}."
        )


def rows_of_offsets(offset: int | Tensor, x: Tensor) -> Tensor:
    """Where `x[:, 0]` stands in its bin, for each row: (batch,) int64."""
    if isinstance(offset, Tensor):
        return offset.to(torch.int64).contiguous()
    return torch.full((x.shape[0],), offset, dtype=torch.int64, device=x.device)


def require_bins(name: str, bins: int, offset: int | Tensor, length: int, bin_length: int) -> None:
    """The coefficients cover the sequence, bin by bin.

    An offset of its own for every row leaves the number of bins open by one: rows
    that start late in their bin reach one bin further.
    """
    if isinstance(offset, Tensor):
        fewest, most = -(-length // bin_length), -(-(bin_length - 1 + length) // bin_length)
    else:
        fewest = most = -(-(offset + length) // bin_length)
    if not fewest <= bins <= most:
        wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        raise ValueError(
            f"{name} must have ceil((offset + length) / bin_length) = {wanted} bins for length "
            f"{length} in bins of {bin_length}; got {bins}."
        )


def require_coefficients(a: Tensor, x: Tensor, bin_length: int, offset: int | Tensor) -> None:
    """`a` has two coefficients for every row, bin and channel of `x`."""
    axes = "(batch, bins, dim, 2)"
    require_positive("bin_length", bin_length, "steps")
    require_axes("a", a, axes)
    batch, length, dim = x.shape
    require_like("a", a, (batch, a.shape[1], dim, 2), x, axes)
    require_offset(offset, bin_length, x)
    require_bins("a", a.shape[1], offset, length, bin_length)


def state_or_rest(state: Tensor | None, shape: tuple[int, ...], x: Tensor, axes: str) -> Tensor:
    """The state that was given, or zeros, in the precision that `x` is accumulated in."""
    dtype = accumulator_dtype(x)
    if state is None:
        return torch.zeros(shape, dtype=dtype, device=x.device)
    require_like("state", state, shape, x, axes)
    return state.to(dtype)


def float32_alone(*tensors: Tensor) -> str | None:
    """What loops take that are compiled for float32, where that is not what they are given."""
    dtypes = {each.dtype for each in tensors}
    if dtypes == {torch.float32}:
        return None
    return f"float32 tensors throughout; got {', '.join(sorted(map(str, dtypes)))}"


def usable_backend(
    backend: str | None, known: Collection[str], x: Tensor, **unfit: str | None
) -> str:
    """`backend`, or the fastest for `x`; it is one of `known`, and can run here.

    `unfit` says of a backend what it takes, where that is not what it is given.
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
    """Compiled on a CPU, and on a GPU where Triton is; tensor operations elsewhere, under
    transforms that see through nothing else, and in an exported program, which must run where
    Polewise is not installed."""
    if torch.compiler.is_exporting() or is_transformed():
        return "torch"
    if x.device.type == "cuda" and HAS_TRITON:
        return "triton"
    return "cpu" if x.device.type == "cpu" else "torch"


def is_transformed() -> bool:
    """Whether `torch.func` (vmap, grad, jvp, ...) or forward-mode differentiation is at work.

    They see through tensor operations, not into compiled loops, whose forward derivative
    would come out as 0 without a word.
    """
    in_func = torch._C._functorch.peek_interpreter_stack() is not None
    return in_func or forward_ad._current_level >= 0


# `torch.compile` asks once, while it traces, with the transforms that it then is inside of. What
# `torch.compiler.assume_constant_result` does, without importing all of the compiler for it.
is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def require_untransformed(backend: str) -> None:
    if is_transformed():
        raise ValueError(
            f"backend {backend!r} cannot run inside torch.func or forward-mode differentiation, "
            "which do not see into compiled loops. Use backend='torch', or None."
        )


def refuse_second_derivative(ctx: object, *gradients: object) -> None:
    """The gradient of a compiled gradient."""
    raise RuntimeError(
        "backend must be 'torch' for second derivatives: the compiled loops of 'cpu' and 'triton' "
        "have a first one only. Pass backend='torch' to the op; for a mixer or a model take "
        "torch.func's grad of grad, or hessian."
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


def require_rows(name: str, value: Tensor, x: Tensor) -> None:
    """`value` has an integer for every row of `x`, and lives where `x` lives."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be an int64 tensor (batch,); got {type(value).__name__}.")
    if tuple(value.shape) != (x.shape[0],):
        raise ValueError(
            f"{name} must have one entry a row, shape ({x.shape[0]},); got {tuple(value.shape)}."
        )
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64; got {_short(value.dtype)}.")
    if value.device != x.device:
        raise ValueError(f"{name} must be on {x.device} like the sequence; got {value.device}.")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
