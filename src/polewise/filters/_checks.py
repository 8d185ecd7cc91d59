"""What the filter functions share: argument checks, and when two poles count as one."""

from __future__ import annotations

import torch
from torch import Tensor

from polewise.ops.precision import dtype_name


def squared_distance(a: Tensor) -> Tensor:
    """4 a2 - a1^2, the squared distance of the poles, 0 where rounding alone parts them.

    It overflows where a1^2 does.
    """
    a1, a2 = a.unbind(-1)
    squared = 4 * a2 - a1 * a1
    return torch.where(squared.abs() <= tolerance(a) * a1 * a1, 0, squared)


def tolerance(x: Tensor) -> float:
    return 8 * torch.finfo(x.dtype).eps


def mix_or_real_part(decay: Tensor, angle: Tensor, mix: Tensor | None) -> Tensor:
    require_normal_form(decay, angle)
    if mix is None:
        return torch.stack([torch.ones_like(decay), torch.zeros_like(decay)], -1)
    require_last_axis("mix", mix, 2)
    if mix.dtype != decay.dtype:
        wanted, got = dtype_name(decay.dtype), dtype_name(mix.dtype)
        raise TypeError(f"mix must have the dtype of decay, {wanted}; got {got}.")
    shape = (*decay.shape, 2)
    try:
        return mix.expand(shape)
    except RuntimeError:
        raise ValueError(f"mix must broadcast to {shape}; got {tuple(mix.shape)}.") from None


def require_floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(value).__name__}.")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {dtype_name(value.dtype)}.")


def require_last_axis(name: str, value: Tensor, size: int) -> None:
    require_floating(name, value)
    if value.ndim == 0 or value.shape[-1] != size:
        raise ValueError(f"{name} must have shape (..., {size}); got {tuple(value.shape)}.")


def require_same(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of {other_name}, {tuple(other.shape)}; "
            f"got {tuple(value.shape)}."
        )
    if value.dtype != other.dtype:
        raise TypeError(
            f"{name} must have the dtype of {other_name}, {dtype_name(other.dtype)}; "
            f"got {dtype_name(value.dtype)}."
        )


def require_normal_form(decay: Tensor, angle: Tensor) -> None:
    require_floating("decay", decay)
    require_floating("angle", angle)
    require_same("angle", angle, "decay", decay)


def require_section(b: Tensor, a: Tensor) -> None:
    require_last_axis("b", b, 3)
    require_last_axis("a", a, 2)
    if b.shape[:-1] != a.shape[:-1]:
        raise ValueError(
            f"b must have the leading axes of a, {tuple(a.shape[:-1])}; got {tuple(b.shape[:-1])}."
        )
    if b.dtype != a.dtype:
        raise TypeError(
            f"b must have the dtype of a, {dtype_name(a.dtype)}; got {dtype_name(b.dtype)}."
        )


def require_everywhere(holds: Tensor, name: str, rule: str, values: Tensor) -> None:
    """Every leading index of `values` keeps the rule; else the first that does not is shown."""
    if holds.is_meta:  # a model built without numbers has none to look at
        return
    broken = (~holds).nonzero()
    if len(broken):
        index = tuple(broken[0].tolist())
        where = f" at index {index}" if index else ""
        raise ValueError(f"{name} must {rule}; got {values[index].tolist()}{where}.")
