"""From the options of a run to its model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from polewise.layers import sharding
from polewise.options import require_memory
from polewise.tasks import TaskSpec
from polewise.training.run import ModelOptions, Run


def build_model(spec: TaskSpec, options: ModelOptions) -> nn.Module:
    """Return a freshly initialised model for a task of this shape."""
    from polewise.models import PolewiseConfig

    shape: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "num_input_features": spec.num_features,
        "num_labels": spec.num_classes,
        "prediction_length": spec.horizon,
    }
    config = PolewiseConfig(
        mixer=options.mixer,
        mixer_options=dict(options.mixer_options),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_layers,
        intermediate_size=options.intermediate_size,
        dropout=options.dropout,
        pooling=options.pooling,
        **{name: size for name, size in shape.items() if size is not None},
    )
    return model_class(spec)(config)


def model_without_numbers(spec: TaskSpec, options: ModelOptions) -> nn.Module:
    """Return a model for a task of this shape for which no memory is taken."""
    with torch.device("meta"):
        return build_model(spec, options)


def require_splittable_run(run: Run, processes: int) -> None:
    """Check that the run's sequences can be cut into one piece for each process.

    Raises:
        ValueError: rows have lengths of their own, pieces would not be equal or not hold whole
            bins and chunks, or the mixer looks ahead.
    """
    model = model_without_numbers(run.task.spec, run.model)
    try:
        sharding.require_splittable(model)
    except ValueError as error:
        raise ValueError(f"split_sequence must be False for this mixer: {error}") from error
    batch = next(run.task.train_batches(run.training.seed))
    if "lengths" in batch:
        raise ValueError(
            f"split_sequence must be False for {run.task_name}: its rows have lengths of their own."
        )
    units = [(f"processes x {name}", processes * steps) for name, steps in _units(model)]
    for name, unit in (("processes", processes), *units):
        for length in (run.task.spec.length, batch["inputs"].shape[1]):
            if length % unit:
                raise ValueError(
                    f"split_sequence needs a length that is a multiple of {name} = {unit}; got "
                    f"{length}."
                )


def _units(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Steps that a piece of a sequence must hold whole, by their names."""
    for part in model.modules():
        yield from getattr(part, "units", {}).items()


def planned_model(run: Run) -> nn.Module:
    """Return the run's model without numbers, checked to be one that can be trained here.

    Raises:
        ValueError: its options do not go together, or it cannot fit into memory.
    """
    spec, hidden = run.task.spec, run.model.hidden_size
    inner = run.model.backbone().intermediate_size
    names = "hidden_size, intermediate_size and num_layers"
    # Parameter, gradient and two averages of 4 bytes each; a mixer has one square matrix at least.
    require_memory(names, 16 * run.model.num_layers * hidden * (hidden + inner))
    try:
        model = model_without_numbers(spec, run.model)
    except (ArithmeticError, MemoryError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"model must have options that go together; {run.model.mixer} with "
            f"{run.model.mixer_options} cannot be built: {error}."
        ) from error
    numbers = sum(parameter.numel() for parameter in model.parameters())
    require_memory("the model's options", 16 * numbers)
    # Mixers pad a sequence to whole bins and chunks. For the backward pass a block keeps at least
    # 16 bytes a channel and position, or 4 where it is run again; the output has a number a token.
    options = run.model.mixer_options.items()
    pieces = (v for name, v in options if name.endswith("_length") and isinstance(v, int))
    length = getattr(run.task, "longest_in_training", spec.length)
    positions = run.task.batch_size * max(length, *pieces, 1)
    layers = run.model.num_layers
    per_channel = max(4 * layers, 16) if run.training.checkpoint_activations else 16 * layers
    kept = positions * max(hidden * per_channel, 4 * (spec.vocab_size or 0))
    require_memory("batch_size, length, hidden_size and the mixer's lengths", kept)
    return model


def model_class(spec: TaskSpec) -> Any:
    """Return the class of the models for this kind of task."""
    from polewise import models

    return {
        "language": models.PolewiseForCausalLM,
        "classification": models.PolewiseForSequenceClassification,
        "forecast": models.PolewiseForForecasting,
    }[spec.kind]
