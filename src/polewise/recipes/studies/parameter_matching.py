"""Models of the same number of parameters, whatever their mixers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polewise.mixers import MIXERS
from polewise.tasks import TaskSpec
from polewise.training import ModelOptions
from polewise.training.building import model_without_numbers

_counted: dict[tuple[Any, str], int] = {}


def count_parameters(spec: TaskSpec, options: ModelOptions) -> int:
    """Return the number of parameters of a model, which takes no memory and is counted once."""
    key = MIXERS[options.mixer], repr((replace(spec, length=1), options))  # not by the length
    if key not in _counted:
        model = model_without_numbers(spec, options)
        _counted[key] = sum(parameter.numel() for parameter in model.parameters())
    return _counted[key]


def match_parameters(spec: TaskSpec, options: ModelOptions, parameters: int) -> ModelOptions:
    """Return the options with the feed-forward width that comes nearest to `parameters`.

    Parameters grow with `intermediate_size` in a straight line, so two models show where it must
    lie.

    Raises:
        ValueError: the mixer alone has more parameters than that.
    """
    one, two = (
        count_parameters(spec, replace(options, intermediate_size=width)) for width in (1, 2)
    )
    width = 1 + round((parameters - one) / (two - one))
    if width < 1:
        raise ValueError(
            f"parameters must be at least {one:,} for {options.mixer} at width "
            f"{options.hidden_size}; got {parameters:,}."
        )
    return replace(options, intermediate_size=width)


def deepest(spec: TaskSpec, options: ModelOptions, parameters: int) -> ModelOptions:
    """Return the options with as many layers, without feed-forwards, as `parameters` allow: at most
    4 % more, so that none is left out for a few.

    Raises:
        ValueError: a single layer has more.
    """
    most = 1.04 * parameters

    def of(num_layers: int) -> ModelOptions:
        return replace(options, intermediate_size=0, num_layers=num_layers)

    one, two = (count_parameters(spec, of(n)) for n in (1, 2))
    if one > most:
        raise ValueError(
            f"parameters must be at least {one:,}, those of one layer of {options.mixer} at width "
            f"{options.hidden_size}; got {parameters:,}."
        )
    num_layers = 1 + int((most - one) / (two - one))  # where all layers are alike
    while count_parameters(spec, of(num_layers)) > most:
        num_layers -= 1
    while count_parameters(spec, of(num_layers + 1)) <= most:
        num_layers += 1
    return of(num_layers)
