"""AdamW in groups: what decays, what does not, and what learns at a rate of its own."""

from __future__ import annotations

from math import cos, inf, pi
from typing import Any

import torch
from torch import nn

from polewise.training.run import TrainingOptions


def parameter_groups(model: nn.Module, options: TrainingOptions) -> list[dict]:
    """Return the optimiser groups `decay`, `no_decay` and `filter`; empty ones are left out.

    A module names its filter parameters in a class attribute `filter_parameters`, a tuple of
    attribute names; a name may also stand for a whole submodule. They are not decayed (decay would
    pull poles towards an arbitrary place) and may have a learning rate of their own; a class whose
    authors never let it exceed a rate says which in `filter_learning_rate_limit`, and there is a
    `filter` group for each such limit. Norms, biases and everything else with fewer than two
    dimensions are not decayed, nor are embeddings unless `decay_embeddings` says so. A shared
    parameter is counted once.
    """
    limits = _filter_limits(model)
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    filters: dict[float, list[nn.Parameter]] = {limit: [] for limit in sorted(limits.values())}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in limits:
            filters[limits[id(parameter)]].append(parameter)
        elif parameter.ndim < 2 or (id(parameter) in embeddings and not options.decay_embeddings):
            others.append(parameter)
        else:
            decayed.append(parameter)
    groups = [("decay", decayed, 1.0), ("no_decay", others, 1.0)]
    for limit, parameters in filters.items():
        share = min(options.filter_learning_rate, limit / options.learning_rate)
        groups.append(("filter", parameters, share))
    return [
        {
            "name": name,
            "params": parameters,
            "weight_decay": options.weight_decay if name == "decay" else 0.0,
            "scale": share,
        }
        for name, parameters, share in groups
        if parameters
    ]


def build_optimizer(model: nn.Module, options: TrainingOptions) -> torch.optim.AdamW:
    """Return AdamW over `parameter_groups`, at the peak learning rate."""
    groups = parameter_groups(model, options)
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas)
    set_learning_rate(optimizer, options.learning_rate)
    return optimizer


def learning_rate_share(progress: float, options: TrainingOptions) -> float:
    """Return the learning rate as a share of its peak, at a share `progress` of the budget.

    A straight line from 0 to 1 during the warm-up, then half a cosine down to
    `final_learning_rate` at the end.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < options.warmup:
        return progress / options.warmup
    rest = (progress - options.warmup) / (1 - options.warmup) if options.warmup < 1 else 0.0
    final = options.final_learning_rate
    return final + (1 - final) * (1 + cos(pi * rest)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times the group's own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


_MISSING = object()


def _filter_limits(model: nn.Module) -> dict[int, float]:
    """The largest learning rate of every filter parameter, by the parameter's id."""
    found: dict[int, float] = {}
    for module in model.modules():
        limit = getattr(type(module), "filter_learning_rate_limit", inf)
        for name in getattr(type(module), "filter_parameters", ()):
            part: Any = module
            for step in name.split("."):
                part = None if part is None else getattr(part, step, _MISSING)
            if isinstance(part, nn.Parameter):
                found[id(part)] = limit
            elif isinstance(part, nn.Module):
                found.update((id(parameter), limit) for parameter in part.parameters())
            elif part is not None:
                what = "not there" if part is _MISSING else f"a {type(part).__name__}"
                raise TypeError(
                    f"filter_parameters of {type(module).__name__} must name parameters or "
                    f"modules; {name!r} is {what}."
                )
    return found
