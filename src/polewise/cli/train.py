"""The commands that train: each task with the options of its recipe, and `resume`."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, get_args

from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from polewise.cli.output import pairs
from polewise.cli.parsing import Command, RunPath
from polewise.mixers import MIXERS, mixer_option_types
from polewise.recipes import (
    demo_text,
    digits,
    etth1,
    focus_mqar,
    focus_recall,
    induction,
    japanese_vowels,
    listops,
    selective_copy,
    spoken_digits,
)
from polewise.tasks import AnyTask, RecallTask
from polewise.training import ModelOptions, ModelShape, Outcome, Run, TrainingOptions, train
from polewise.training import resume as resume_run
from polewise.training.errors import explained_saving


@dataclass(frozen=True, kw_only=True)
class ModelFlags(ModelShape):
    """The model."""

    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=VALUE")] = ()
    """An option of the mixer, such as chunk_length=32. `polewise mixers focus` lists them."""

    @classmethod
    def like(cls, options: ModelOptions) -> ModelFlags:
        """Return the flags that stand for a recipe's model."""
        return cls(**_shape(options))

    def over(self, recipe: ModelOptions) -> ModelOptions:
        """Return the model's options; the recipe's mixer options stay for the recipe's mixer."""
        kept = recipe.mixer_options if self.mixer == recipe.mixer else {}
        return ModelOptions(**_shape(self), mixer_options=kept | self._settings())

    def _settings(self) -> dict[str, Any]:
        """Return NAME=VALUE pairs, their values as numbers, booleans, None or text: whichever the
        option of that name takes."""
        words = {"none": None, "true": True, "false": False}
        types = mixer_option_types(self.mixer) if self.mixer in MIXERS else {}
        options: dict[str, Any] = {}
        for setting in self.set:
            name, equals, value = setting.partition("=")
            if not equals or not name:
                raise ValueError(f"set must be given as NAME=VALUE; got {setting!r}.")
            name = name.replace("-", "_")
            options[name] = value
            if value in get_args(types.get(name)):  # "none" may be one choice among others
                continue
            if value.lower() in words:
                options[name] = words[value.lower()]
                continue
            for read in (json.loads, int, float):  # JSON knows neither +3 nor .9; else text
                with suppress(ValueError):
                    options[name] = read(value)
                    break
        return options


def _shape(model: ModelShape) -> dict[str, Any]:
    return {each.name: getattr(model, each.name) for each in fields(ModelShape)}


def _command(recipe: Run, what: str, *examples: str) -> Command:
    """Return the command that trains the recipe's task; its defaults are the recipe's."""

    def train_task(
        task: Any = recipe.task,
        model: OmitArgPrefixes[ModelFlags] = ModelFlags.like(recipe.model),  # noqa: B008
        training: OmitArgPrefixes[TrainingOptions] = recipe.training,
        out: Path | None = None,
    ) -> int:
        options = model.over(recipe.model)
        run = Run(task=_aligned(task, options), model=options, training=training)
        path = new_folder(f"{run.task_name}-{options.mixer}") if out is None else out
        return _finish(train(run, path))

    lines = "\n".join(f"  polewise train {recipe.task_name}{example}" for example in examples)
    train_task.__annotations__["task"] = OmitArgPrefixes[type(recipe.task)]  # type: ignore[misc]
    train_task.__doc__ = f"""{what}

Go on with a stopped run: polewise resume RUN.

For example:
{lines}

Args:
    task: The task.
    model: The model.
    training: The training.
    out: New folder for the run; None makes runs/TASK-MIXER-DATE-TIME.
"""
    return train_task


def new_folder(name: str) -> Path:
    """Return a folder of this name and time, to the microsecond: several may begin at once."""
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"


def _aligned(task: AnyTask, model: ModelOptions) -> AnyTask:
    """Let recall pad its inputs to the chunks of this mixer, unless --align-to says otherwise."""
    chunk_length = model.mixer_options.get("chunk_length")
    if isinstance(task, RecallTask) and task.align_to is None and chunk_length:
        return replace(task, align_to=chunk_length)
    return task


TRAIN_COMMANDS: dict[str, Command] = {
    "recall": _command(
        focus_recall(),
        "Train on associative recall: after many key-value pairs, what belonged to this key?\n\n"
        "Stops at 100 % held-out accuracy. Inputs are aligned to the mixer's chunks unless "
        "--align-to says otherwise; 1 pads nothing.",
        " --length 256",
        " --mixer attention --max-seconds 300",
        " --num-train 2000 --set chunk_length=64",
    ),
    "mqar": _command(
        focus_mqar(),
        "Train on multi-query recall: many keys with their values, then each key once more.\n\n"
        "Stops at 99.9 % held-out accuracy.",
        "",
        " --train-on 64:4,128:8 --test-on 64:4,128:8 --mixer attention",
        " --hidden-size 128 --max-steps 10000",
    ),
    "selective_copy": _command(
        selective_copy(),
        "Train on selective copying: repeat the tokens that stand among noise, in order.\n\n"
        "Stops at 99.9 % held-out accuracy.",
        "",
        " --length 4096 --num-tokens 16 --max-steps 400000",
    ),
    "induction": _command(
        induction(),
        "Train on induction heads: what followed the special token must follow it again.\n\n"
        "Tests at longer lengths than it trains on; stops at 99.9 % over all of them.",
        "",
        " --length 256 --test-lengths 256,4096,65536",
    ),
    "listops": _command(
        listops(),
        "Train on ListOps: what do nested lists of digits come to?\n\n"
        "At a size for a CPU; the second example has the Long Range Arena's, the fourth the "
        "original's rules and its published test set.",
        "",
        " --min-length 500 --max-length 2000 --max-arguments 10 --num-eval 2000",
        " --source listops-1000 --max-length 2000",
        " --source d20s --min-length 0 --max-length 1000 --max-depth 20",
    ),
    "text": _command(
        demo_text(),
        "Train a byte-level language model on any text.",
        "",
        " --source novel.txt --max-seconds 900",
        " --source dickens --hidden-size 256 --num-layers 6",
    ),
    "images": _command(
        digits(),
        "Train on images read pixel by pixel: digits, sequential and permuted MNIST.",
        "",
        " --source mnist --max-seconds 900",
        " --source mnist --permuted --pooling last",
    ),
    "spoken_digits": _command(
        spoken_digits(),
        "Train on spoken digits as raw audio, up to 8192 samples a recording.",
        "",
        " --test-speaker theo --max-seconds 900",
        " --source recordings --samples-per-step 1 --batch-size 8",
    ),
    "series": _command(
        japanese_vowels(),
        "Train on series of several channels and unequal lengths, sets of the UEA archive.",
        "",
        " --source basic_motions",
    ),
    "forecast": _command(
        etth1(),
        "Train to forecast a table of numbers: ETTh1, or a .csv file.",
        "",
        " --horizon 720 --eval-stride 1",
        " --source table.csv --horizon 24 --length 168 --univariate",
    ),
}
"""Each task of `polewise.tasks.TASKS` with the options of its recipe."""


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


def _finish(outcome: Outcome) -> int:
    """Draw the figures, say where everything lies, and return the exit code."""
    folder = outcome.folder
    if not outcome.is_main_process:
        return outcome.exit_code
    if outcome.status == "interrupted":
        quoted = shlex.quote(str(folder.path))
        print(f"stopped after {outcome.step} steps. Go on with: polewise resume {quoted}")
        return outcome.exit_code
    from polewise.analysis import write_figures

    print(f"finished after {outcome.step} steps: {pairs(outcome.metrics)}")
    with explained_saving("the figures", folder.path, then="draw them (analysis.write_figures)"):
        write_figures(folder)
    print(f"everything is in {folder.path}")
    return 0
