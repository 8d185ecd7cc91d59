"""The precision of internal arithmetic, whatever the dtype of the input."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def accumulator_dtype(x: Tensor) -> torch.dtype:
    """float32 for float32 and below, float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def angle_dtype(device: torch.device) -> torch.dtype:
    """float64: after a million steps of up to a radian, float32 is wrong by up to 0.1. float32 on
    mps, which has nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Switch `torch.autocast` off for a device; it knows nothing of "meta".

    A trace writes that down also where it is off already, and may run where it is on.
    """
    if device.type == "meta":
        return nullcontext()
    if not torch.compiler.is_compiling() and not torch.is_autocast_enabled(device.type):
        return nullcontext()  # cheaper to enter, in a single step twenty times
    return torch.autocast(device.type, enabled=False)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`, of `torch.float32`."""
    return str(dtype).removeprefix("torch.")
