"""A run, complete and typed: which task, which model, how to train. To JSON and back."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal

from torch import nn

from polewise.mixers import MIXERS
from polewise.tasks import TASKS, ImagesTask, RecallTask, TaskSpec, TextTask


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model: a stack of blocks around one mixer."""

    mixer: str = "focus"
    """The mixer in every block, a name in `polewise.mixers.MIXERS`."""
    mixer_options: dict[str, Any] = field(default_factory=dict)
    """Options of the mixer, by name; the rest keep their defaults."""
    hidden_size: int = 64
    """Channels."""
    num_layers: int = 2
    """Blocks."""
    intermediate_size: int | None = None
    """Channels inside the feed-forward part; None takes twice `hidden_size`, 0 leaves it out."""

    def __post_init__(self) -> None:
        if self.mixer not in MIXERS:
            raise ValueError(
                f"mixer must be one of {', '.join(MIXERS)}; got {self.mixer!r}."
                f"{did_you_mean(self.mixer, MIXERS)}"
            )
        for name in ("hidden_size", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.intermediate_size is not None and self.intermediate_size < 0:
            raise ValueError(f"intermediate_size must be at least 0; got {self.intermediate_size}.")
        known = mixer_option_types(self.mixer)
        for name, value in self.mixer_options.items():
            if name not in known:
                raise ValueError(
                    f"mixer_options must name options of {self.mixer} ({', '.join(known)}); "
                    f"got {name!r}.{did_you_mean(name, known)}"
                )
            _require_type(name, value, known[name])
        # The mixer's own checks, before anything is built.
        MIXERS[self.mixer](dim=self.hidden_size, **self.mixer_options)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How to train. The budget is a number of steps, of seconds, or whichever is spent first."""

    max_steps: int | None = None
    """Steps to train; None for no limit in steps."""
    max_seconds: float | None = None
    """Seconds to train; None for no limit in time. The first step, which compiles, and evaluating
    and saving are not counted. The learning rate follows the share of the time that is spent."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    final_learning_rate: float = 0.0
    """Where the cosine ends, as a share of the peak."""
    filter_learning_rate: float = 1.0
    """Learning rate of the filter parameters (a module's `filter_parameters`), as a share of the
    others'."""
    warmup: float = 0.05
    """Share of the budget in which the learning rate rises from 0 to its peak."""
    weight_decay: float = 0.1
    """Weight decay of matrices. Norms, biases and filter parameters have none."""
    decay_embeddings: bool = False
    """Decay embeddings too."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Averaging of the gradient and of its square in AdamW."""
    clip_norm: float = 1.0
    """Gradients are shortened to this norm."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the model; parameters and optimiser are float32 either way."""
    seed: int = 0
    """Initial parameters, order of the data, dropout."""
    log_every: int = 10
    """Steps between lines of the log."""
    evaluate_every: int = 200
    """Steps between evaluations; there is always one at the end."""
    checkpoint_every: int = 500
    """Steps between checkpoints; there is always one at the end."""
    keep_checkpoints: int = 2
    """Checkpoints to keep, newest first."""
    stop_at: float | None = None
    """Stop once the headline metric of an evaluation has reached this; None trains to the end."""

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_seconds is None:
            raise ValueError("max_steps must be given, or max_seconds; got neither.")
        for name in (
            "max_steps",
            "max_seconds",
            "learning_rate",
            "filter_learning_rate",
            "clip_norm",
            "log_every",
            "evaluate_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            value = getattr(self, name)
            if value is not None and not (value > 0 and isfinite(value)):
                raise ValueError(f"{name} must be positive; got {value}.")
        for name in ("final_learning_rate", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1; got {getattr(self, name)}.")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be at least 0; got {self.weight_decay}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1); got {self.betas}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be between 0 and 2**32 - 1; got {self.seed}.")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16; got {self.precision!r}.")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides one training run."""

    task: RecallTask | TextTask | ImagesTask
    """What to learn."""
    model: ModelOptions
    """What learns it."""
    training: TrainingOptions
    """How."""

    @property
    def task_name(self) -> str:
        """The task's name in `polewise.tasks.TASKS`."""
        return next(name for name, task in TASKS.items() if isinstance(self.task, task))


def run_to_json(run: Run) -> dict[str, Any]:
    """Return the run as plain JSON values."""
    return {
        "task": {"name": run.task_name, **dataclasses.asdict(run.task)},
        "model": dataclasses.asdict(run.model),
        "training": dataclasses.asdict(run.training),
    }


def run_from_json(values: dict[str, Any]) -> Run:
    """Return the run that `run_to_json` wrote.

    Raises:
        ValueError: a part is missing, or an option is unknown or out of range.
    """
    for part in ("task", "model", "training"):
        if not isinstance(values.get(part), dict):
            raise ValueError(f"the run must have a part {part!r} with its options.")
    task = dict(values["task"])
    name = task.pop("name", None)
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; got {name!r}.")
    training = dict(values["training"])
    if isinstance(training.get("betas"), list):
        training["betas"] = tuple(training["betas"])
    return Run(
        task=_from_options(TASKS[name], task),
        model=_from_options(ModelOptions, values["model"]),
        training=_from_options(TrainingOptions, training),
    )


def build_model(spec: TaskSpec, options: ModelOptions) -> nn.Module:
    """Return a freshly initialised model for a task of this shape."""
    from polewise.models import PolewiseConfig

    shape: dict[str, Any] = {}
    if spec.vocab_size is not None:
        shape["vocab_size"] = spec.vocab_size
    if spec.num_features is not None:
        shape["num_input_features"] = spec.num_features
    if spec.num_classes is not None:
        shape["num_labels"] = spec.num_classes
    inner = options.intermediate_size
    inner = 2 * options.hidden_size if inner is None else inner
    config = PolewiseConfig(
        mixer=options.mixer,
        mixer_options=dict(options.mixer_options),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_layers,
        intermediate_size=inner,
        **shape,
    )
    return model_class(spec)(config)


def model_class(spec: TaskSpec) -> Any:
    """Return the class of the models for this kind of task."""
    from polewise.models import PolewiseForCausalLM, PolewiseForSequenceClassification

    return PolewiseForCausalLM if spec.kind == "language" else PolewiseForSequenceClassification


def mixer_option_types(mixer: str) -> dict[str, Any]:
    """Return the options of a mixer and their types; `dim` is the model's business."""
    config = MIXERS[mixer]
    hints = typing.get_type_hints(config)
    return {
        field.name: hints[field.name]
        for field in dataclasses.fields(config)
        if field.init and field.name != "dim"
    }


def did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """Return " Did you mean ...?" with the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def _require_type(name: str, value: Any, hint: Any) -> None:
    if not _has_type(value, hint):
        shown = getattr(hint, "__name__", None) if isinstance(hint, type) else None
        shown = shown or str(hint).replace("typing.", "")
        raise ValueError(f"{name} must be of type {shown}; got {value!r}.")


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a JSON value fits an annotation; what is not checked here the mixer checks itself."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_has_type(value, choice) for choice in typing.get_args(hint))
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    return True


def _from_options(kind: Any, options: dict[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(kind)]
    for name in options:
        if name not in known:
            raise ValueError(
                f"{kind.__name__} must have known options; got {name!r}.{did_you_mean(name, known)}"
            )
    return kind(**options)
