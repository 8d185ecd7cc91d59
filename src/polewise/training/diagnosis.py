"""Where NaN or infinity comes from, in words."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from polewise.filters import coefficients_to_poles
from polewise.mixers.watching import Placing, watch_poles
from polewise.tasks import Batch, Task
from polewise.training.evaluation import compute_logits
from polewise.training.fully_sharded import local_shard


def first_bad_parameter(model: nn.Module) -> str | None:
    """Return what is wrong with the first parameter or buffer that is not finite, or None.

    Of sharded ones it looks at this process's shard.
    """
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        value = local_shard(value.detach())
        if value.is_floating_point() and not _is_finite(value):
            return f"the parameter {name} is {_kind(value)}"
    return None


def first_bad_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """The same of the optimiser's state: under one that is infinite its parameter stands still,
    and nothing else shows it."""
    for name, parameter in model.named_parameters():
        for average, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and not _is_finite(value := local_shard(value)):
                return f"the average {average} of {name} is {_kind(value)}"
    return None


def diagnose(model: nn.Module, task: Task, batches: Iterable[Batch], rate: float) -> str:
    """Return where the batches first become NaN or infinite, and the largest pole radius.

    Looks at the parameters, the inputs, the output of every module in the order they run, the
    loss and the gradients. Runs the model once more, forward and backward; changes nothing.
    """
    causes, poles = [], ""
    parameter = first_bad_parameter(model)
    for batch in batches:
        cause, poles = _look(model, task, batch)
        if cause:
            causes.append(cause)
            break
    # Bad inputs explain bad everything; a bad parameter explains bad outputs.
    if parameter and not (causes and causes[0].startswith("the inputs")):
        causes.insert(0, parameter)
    if not causes or not causes[0].startswith("the inputs"):
        causes.append(f"the learning rate was {rate:.2g}: try a smaller one or a longer warm-up")
    return "; ".join([*causes, *([poles] if poles else [])])


def _look(model: nn.Module, task: Task, batch: Batch) -> tuple[str | None, str]:
    """Return the first bad thing that one batch meets, and the poles it was filtered with."""
    if not _is_finite(batch["inputs"]):
        return "the inputs of the batch are not finite: look at the data", ""
    found: list[str] = []
    with ExitStack() as hooks:
        seen = hooks.enter_context(watch_poles(model))
        for name, module in model.named_modules():
            handle = module.register_forward_hook(partial(_note_output, found, name))
            hooks.callback(handle.remove)
        logits = compute_logits(model, batch)
        loss = task.loss(logits, batch)
    poles = _largest_pole(seen)
    if found:
        return found[0], poles
    if not _is_finite(loss):
        return f"the loss is {_kind(loss)}, though the logits are finite", poles
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    # autograd.grad leaves .grad alone, and the hooks of data parallel training with it.
    gradients = torch.autograd.grad(loss, [value for _, value in named], allow_unused=True)
    for (name, _), gradient in zip(named, gradients, strict=True):
        if gradient is not None and not _is_finite(gradient):
            return f"the gradient of {name} is {_kind(gradient)}", poles
    return None, poles


def _note_output(found: list[str], name: str, module: nn.Module, _: Any, output: Any) -> None:
    """Remember the first module whose output is bad: the innermost, for it ends first."""
    # Of (y, state) only y: a state may hold minus infinity, the maximum of nothing.
    for part in pytree.tree_leaves(output[0] if type(output) is tuple else output):
        if isinstance(part, Tensor) and not _is_finite(part):
            what = f"{name} ({type(module).__name__})" if name else type(module).__name__
            found.append(f"the first bad activation is the output of {what}, {_kind(part)}")
            return


def _largest_pole(seen: dict[str, Placing]) -> str:
    """Return the largest pole radius, with its layer, filter and channel; "" without filters."""
    best = (-1.0, "")
    for name, placing in seen.items():
        coefficients = placing.coefficients()
        if placing.realisation == "normal":
            radius = coefficients[..., 0]
        else:
            radius = coefficients_to_poles(coefficients).abs().amax(-1)
        if not _is_finite(radius):
            return f"the poles of {name} are {_kind(radius)}"
        by_filter = radius.amax((0, 1))  # (dim, filters)
        channel, number = divmod(int(by_filter.argmax()), by_filter.shape[1])
        largest = float(by_filter.max())
        if largest > best[0]:
            best = (largest, f"{name}, filter {number} of channel {channel}")
    return f"the largest pole radius is {best[0]:.6g}, in {best[1]}" if best[1] else ""


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _kind(value: Tensor) -> str:
    return "NaN" if bool(torch.isnan(value).any()) else "infinite"
