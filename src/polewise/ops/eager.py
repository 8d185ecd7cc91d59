"""Whether the numbers of a tensor may be looked at."""

from __future__ import annotations

import torch
from torch import Tensor


def values_are_at_hand(x: Tensor) -> bool:
    """Whether Python may branch on the values of `x`: not on an accelerator, which it would have to
    wait for, nor in a trace, which has none."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # Fake tensors, and those that vmap hands in, have none either.
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return type(x) in (Tensor, torch.nn.Parameter) and not wrapped
