"""The commands that train: each task with the options of its recipe, and `resume`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from polewise.cli.output import pairs
from polewise.cli.parsing import RunPath
from polewise.recipes import CHUNK_LENGTH, demo_text, digits, focus_mqar, focus_recall
from polewise.tasks import ImagesTask, MqarTask, RecallTask, TextTask
from polewise.training import ModelOptions, Outcome, Run, TrainingOptions, train
from polewise.training import resume as resume_run

_RECALL, _MQAR, _TEXT, _IMAGES = focus_recall(), focus_mqar(), demo_text(), digits()


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """The model."""

    mixer: str = "focus"
    """The mixer in every block. `polewise mixers` lists them."""
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=VALUE")] = ()
    """An option of the mixer, such as chunk_length=32. `polewise mixers focus` lists them."""
    hidden_size: int = 64
    """Channels."""
    num_layers: int = 2
    """Blocks."""
    intermediate_size: int | None = None
    """Channels inside the feed-forward part; None takes twice the hidden size."""

    @classmethod
    def like(cls, options: ModelOptions) -> ModelFlags:
        """Return the flags that stand for a recipe's model."""
        return cls(
            mixer=options.mixer,
            hidden_size=options.hidden_size,
            num_layers=options.num_layers,
            intermediate_size=options.intermediate_size,
        )

    def over(self, recipe: ModelOptions) -> ModelOptions:
        """Return the model's options; the recipe's mixer options stay for the recipe's mixer."""
        kept = recipe.mixer_options if self.mixer == recipe.mixer else {}
        return ModelOptions(
            mixer=self.mixer,
            mixer_options={**kept, **_parse_settings(self.set)},
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            intermediate_size=self.intermediate_size,
        )


def train_recall(
    task: OmitArgPrefixes[RecallTask] = _RECALL.task,  # type: ignore[assignment]
    model: OmitArgPrefixes[ModelFlags] = ModelFlags.like(_RECALL.model),  # noqa: B008
    training: OmitArgPrefixes[TrainingOptions] = _RECALL.training,
    out: Path | None = None,
) -> int:
    """Train on associative recall: after many key-value pairs, what belonged to this key?

    Stops at 100 % held-out accuracy. Inputs are aligned to the mixer's chunks unless --align-to
    says otherwise. Go on with a stopped run: polewise train --resume RUN.

    For example:
      polewise train recall --length 256
      polewise train recall --mixer attention --max-seconds 300
      polewise train recall --num-train 2000 --set chunk_length=64

    Args:
        task: The task.
        model: The model.
        training: The training.
        out: New folder for the run; None makes runs/TASK-MIXER-DATE-TIME.
    """
    options = model.over(_RECALL.model)
    chunk_length = options.mixer_options.get("chunk_length")
    if chunk_length is not None and task.align_to == CHUNK_LENGTH:
        task = replace(task, align_to=chunk_length)
    return _train(task, options, training, out)


def train_mqar(
    task: OmitArgPrefixes[MqarTask] = _MQAR.task,  # type: ignore[assignment]
    model: OmitArgPrefixes[ModelFlags] = ModelFlags.like(_MQAR.model),  # noqa: B008
    training: OmitArgPrefixes[TrainingOptions] = _MQAR.training,
    out: Path | None = None,
) -> int:
    """Train on multi-query recall: many keys with their values, then each key once more.

    Stops at 99.9 % held-out accuracy. Go on with a stopped run: polewise train --resume RUN.

    For example:
      polewise train mqar
      polewise train mqar --train-on 64:4,128:8 --test-on 64:4,128:8 --mixer attention
      polewise train mqar --hidden-size 128 --max-steps 10000

    Args:
        task: The task.
        model: The model.
        training: The training.
        out: New folder for the run; None makes runs/TASK-MIXER-DATE-TIME.
    """
    return _train(task, model.over(_MQAR.model), training, out)


def train_text(
    task: OmitArgPrefixes[TextTask] = _TEXT.task,  # type: ignore[assignment]
    model: OmitArgPrefixes[ModelFlags] = ModelFlags.like(_TEXT.model),  # noqa: B008
    training: OmitArgPrefixes[TrainingOptions] = _TEXT.training,
    out: Path | None = None,
) -> int:
    """Train a byte-level language model on any text.

    Go on with a stopped run: polewise train --resume RUN.

    For example:
      polewise train text
      polewise train text --source novel.txt --max-seconds 900
      polewise train text --source dickens --hidden-size 256 --num-layers 6

    Args:
        task: The task.
        model: The model.
        training: The training.
        out: New folder for the run; None makes runs/TASK-MIXER-DATE-TIME.
    """
    return _train(task, model.over(_TEXT.model), training, out)


def train_images(
    task: OmitArgPrefixes[ImagesTask] = _IMAGES.task,  # type: ignore[assignment]
    model: OmitArgPrefixes[ModelFlags] = ModelFlags.like(_IMAGES.model),  # noqa: B008
    training: OmitArgPrefixes[TrainingOptions] = _IMAGES.training,
    out: Path | None = None,
) -> int:
    """Train on images read pixel by pixel: digits, sequential and permuted MNIST.

    Go on with a stopped run: polewise train --resume RUN.

    For example:
      polewise train images
      polewise train images --source mnist --max-seconds 900
      polewise train images --source mnist --permuted --num-train 10000

    Args:
        task: The task.
        model: The model.
        training: The training.
        out: New folder for the run; None makes runs/TASK-MIXER-DATE-TIME.
    """
    return _train(task, model.over(_IMAGES.model), training, out)


def resume(run: RunPath, max_steps: int | None = None, max_seconds: float | None = None) -> int:
    """Go on with a run from its last checkpoint, with its own options.

    For example:
      polewise resume runs/text-focus-20260101-120000
      polewise resume runs/text-focus-20260101-120000 --max-seconds 1800

    Args:
        run: The run folder.
        max_steps: A new budget in steps, counted from the run's beginning.
        max_seconds: A new budget in seconds, counted from the run's beginning.
    """
    return _finish(resume_run(run, max_steps=max_steps, max_seconds=max_seconds))


def _train(
    task: RecallTask | MqarTask | TextTask | ImagesTask,
    model: ModelOptions,
    training: TrainingOptions,
    out: Path | None,
) -> int:
    run = Run(task=task, model=model, training=training)
    if out is None:
        out = Path("runs") / f"{run.task_name}-{model.mixer}-{datetime.now():%Y%m%d-%H%M%S}"
    return _finish(train(run, out, title=run.task_name))


def _finish(outcome: Outcome) -> int:
    """Draw the figures, say where everything lies, and return the exit code."""
    folder = outcome.folder
    if not outcome.is_main_process:
        return 0
    if outcome.status == "interrupted":
        print(f"stopped after {outcome.step} steps; go on with: polewise resume {folder.path}")
        return outcome.exit_code
    from polewise.analysis import write_figures

    write_figures(folder)
    print(f"finished after {outcome.step} steps: {pairs(outcome.metrics)}")
    print(f"everything is in {folder.path}")
    return 0


def _parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Return NAME=VALUE pairs with their values as numbers, booleans, None or text."""
    words = {"none": None, "true": True, "false": False}
    options: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ValueError(f"set must be given as NAME=VALUE; got {setting!r}.")
        if value.lower() in words:
            options[name.replace("-", "_")] = words[value.lower()]
            continue
        try:
            options[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            options[name.replace("-", "_")] = value
    return options
