"""Whether a module's weight may be used in place of the module."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

from torch import nn

Plain = TypeVar("Plain", bound=nn.Module)


def is_plain(module: nn.Module, kind: type[Plain]) -> TypeGuard[Plain]:
    """Whether a module is an unmodified `kind`: no adapter, no quantised or offloaded weight, no
    patched forward, no hooks of its own."""
    watched = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    made = type(module) is kind and type(module.weight) is nn.Parameter
    return made and "forward" not in vars(module) and not any(watched)
