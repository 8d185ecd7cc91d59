"""Whether Python may look at a tensor's values, and whether `torch.func` is at work."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def values_are_at_hand(x: Tensor) -> bool:
    """Whether Python may branch on the values of `x`: not on an accelerator, which it would have to
    wait for, nor in a trace, which has none."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # Fake tensors, and those that vmap hands in, have none either.
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return type(x) in (Tensor, torch.nn.Parameter) and not wrapped


def is_transformed() -> bool:
    """Whether `torch.func` (vmap, grad, jvp, ...) or forward-mode differentiation is at work.

    They see through tensor operations, not into compiled loops, whose forward derivative
    would come out as 0 without a word.
    """
    return _is_in_func() or forward_ad._current_level >= 0


def _is_in_func() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


# `torch.compile` asks once, while it traces, with the transforms that it then is inside of. What
# `torch.compiler.assume_constant_result` does, without importing all of the compiler for it.
# (The level of forward mode it watches by itself.)
_is_in_func._dynamo_marked_constant = True  # type: ignore[attr-defined]
