"""Argument checks that all ops share.

Only shapes, dtypes and devices are looked at. Values are not: reading one back
would stall an accelerator at every call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polewise.ops.precision import accumulator_dtype, dtype_name

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_axes(name: str, x: Tensor, axes: str = "(batch, length, dim)") -> None:
    """`x` is a floating tensor with these axes."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor {axes}; got {type(x).__name__}.")
    if x.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64; got {dtype_name(x.dtype)}."
        )
    if x.ndim != axes.count(",") + 1:
        raise ValueError(f"{name} must have shape {axes}; got {tuple(x.shape)}.")


def require_floating(name: str, value: Tensor, axes: str = "") -> None:
    """`value` is a floating tensor, of any shape."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        what = dtype_name(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating tensor{axes}; got {what}.")


def require_like(name: str, value: Tensor, shape: tuple[int, ...], x: Tensor, axes: str) -> None:
    """`value` has `shape`, lives where `x` lives, and is of its precision or its accumulator's."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor {axes}; got {type(value).__name__}.")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {axes} = {shape}; got {tuple(value.shape)}.")
    if value.dtype not in (x.dtype, accumulator_dtype(x)):
        allowed = " or ".join(dict.fromkeys(map(dtype_name, (x.dtype, accumulator_dtype(x)))))
        raise TypeError(
            f"{name} must be {allowed} to go with a {dtype_name(x.dtype)} sequence; "
            f"got {dtype_name(value.dtype)}."
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


def state_or_rest(state: Tensor | None, shape: tuple[int, ...], x: Tensor, axes: str) -> Tensor:
    """The state that was given, or zeros, in the precision that `x` is accumulated in."""
    dtype = accumulator_dtype(x)
    if state is None:
        return torch.zeros(shape, dtype=dtype, device=x.device)
    require_like("state", state, shape, x, axes)
    return state.to(dtype)


def require_rows(name: str, value: Tensor, x: Tensor) -> None:
    """`value` has an integer for every row of `x`, and lives where `x` lives."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be an int64 tensor (batch,); got {type(value).__name__}.")
    if tuple(value.shape) != (x.shape[0],):
        raise ValueError(
            f"{name} must have one entry a row, shape ({x.shape[0]},); got {tuple(value.shape)}."
        )
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64; got {dtype_name(value.dtype)}.")
    if value.device != x.device:
        raise ValueError(f"{name} must be on {x.device} like the sequence; got {value.device}.")
