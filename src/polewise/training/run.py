"""A run, complete and typed: which task, which model, how to train. To JSON and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from polewise.did_you_mean import did_you_mean
from polewise.mixers import all_options
from polewise.models.backbone import BackboneConfig
from polewise.models.pooling import Pooling
from polewise.options import from_json, require_at_least, require_choice, require_types
from polewise.tasks import TASKS, AnyTask, reaches

FORMAT = 2
"""Version of the JSON that `run_to_json` writes. Format 1 had no version and fewer options."""

_PARTS = ("format", "task", "model", "training", "data", "environment")
_MOST_LAYERS = 1000


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A stack of blocks around one mixer, but for the mixer's own options."""

    mixer: str = "focus"
    """The mixer in every block. `polewise mixers` lists them."""
    hidden_size: int = 64
    """Channels."""
    num_layers: int = 2
    """Blocks."""
    intermediate_size: int | None = None
    """Channels inside the feed-forward part; 0 leaves it out, and None does where the mixer
    contains one (Focus, Mamba-2): else it is twice the hidden size."""
    dropout: float = 0.0
    """Share of what mixers and feed-forwards add that is dropped in training."""
    pooling: Pooling = "mean"
    """Of classification: what names the class, the mean of all real steps or the last of them."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(ModelShape):
    """The model: its shape and the options of its mixer."""

    mixer_options: dict[str, Any] = field(default_factory=dict)
    """Options of the mixer, by name. Those not given are added with their defaults, so that a run
    says everything, whatever the defaults become."""

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least("hidden_size", self.hidden_size, 1)
        if self.num_layers > _MOST_LAYERS:
            raise ValueError(f"num_layers must be at most {_MOST_LAYERS}; got {self.num_layers}.")
        object.__setattr__(self, "mixer_options", all_options(self.backbone().mixer))

    def backbone(self) -> BackboneConfig:
        """The same choice in plain torch, checked."""
        return BackboneConfig.named(
            self.mixer,
            self.hidden_size,
            self.mixer_options,
            num_layers=self.num_layers,
            intermediate_size=self.intermediate_size,
            dropout=self.dropout,
        )


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
    others', or the module's `filter_learning_rate_limit` where that is lower."""
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
    accumulate: int = 1
    """Batches whose gradients are averaged in one step: a larger batch than memory holds."""
    split_sequence: bool = False
    """With several processes: each works on its piece of every sequence, instead of on batches of
    its own. Memory for activations shrinks by their number."""
    shard_parameters: bool = False
    """With several processes: each keeps its shard of parameters, gradients and averages (FSDP2)
    instead of all of them. `accelerate launch --use_fsdp --fsdp_version 2` asks for the same."""
    checkpoint_activations: bool = False
    """Compute blocks again in the backward pass instead of keeping what they computed: less memory,
    more time."""
    compile: bool = False
    """Compile the blocks with `torch.compile`."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the model; parameters and optimiser are float32 either way."""
    seed: int = 0
    """Initial parameters, order of the data, everything else that is drawn."""
    log_every: int = 10
    """Steps between lines of the log."""
    evaluate_every: int = 200
    """Steps between evaluations; there is always one at the end."""
    checkpoint_every: int = 500
    """Steps between checkpoints; there is always one at the end."""
    keep_checkpoints: int = 2
    """Checkpoints to keep, newest first. The best model is kept besides."""
    on_save_error: Literal["stop", "continue"] = "stop"
    """When a checkpoint or the log cannot be written (full disk, no permission): end the run, or
    say so and train on."""
    skip_limit: int = 3
    """Consecutive steps with a NaN or infinite loss or gradient after which `on_skip_limit` acts;
    fewer are skipped."""
    on_skip_limit: Literal["stop", "roll_back"] = "stop"
    """After `skip_limit` skipped steps: stop with a diagnosis, or go back to the last good
    checkpoint and on with new data at half the learning rate, three times at most."""
    data_timeout: float = 600.0
    """Seconds to wait for a batch. A source that takes longer has stalled: the run is saved and
    ends."""
    stop_at: float | None = None
    """Stop once the headline metric of an evaluation has reached this; None trains to the end."""

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_seconds is None:
            raise ValueError("max_steps must be given, or max_seconds; got neither.")
        require_types(self)
        for name in (
            "max_steps",
            "max_seconds",
            "learning_rate",
            "filter_learning_rate",
            "clip_norm",
            "accumulate",
            "skip_limit",
            "data_timeout",
            "log_every",
            "evaluate_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                what = "finite" if value == float("inf") else "positive"
                raise ValueError(f"{name} must be {what}; got {value}.")
        for name in ("final_learning_rate", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1; got {getattr(self, name)}.")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be at least 0; got {self.weight_decay}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1); got {self.betas}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be between 0 and 2**32 - 1; got {self.seed}.")
        if self.stop_at is not None and not abs(self.stop_at) < float("inf"):
            raise ValueError(f"stop_at must be a finite number; got {self.stop_at}.")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides one training run."""

    task: AnyTask
    """What to learn."""
    model: ModelOptions
    """What learns it."""
    training: TrainingOptions
    """How."""

    @property
    def task_name(self) -> str:
        """The task's name in `polewise.tasks.TASKS`.

        Raises:
            ValueError: it is not there.
        """
        names: dict[type, str] = {task: name for name, task in TASKS.items()}
        for base in type(self.task).__mro__:  # its own before that of a class it was made from
            if base in names:
                return names[base]
        kind = type(self.task).__name__
        raise ValueError(
            f"task must be one of {', '.join(TASKS)}; got {kind}. polewise.tasks.TASKS['NAME'] = "
            f"{kind} makes it known."
        )

    def is_reached(self, evaluation: Mapping[str, float]) -> bool:
        """Whether an evaluation satisfies `stop_at`."""
        target, value = self.training.stop_at, evaluation.get(self.task.headline)
        return target is not None and value is not None and reaches(self.task, value, target)


def run_to_json(run: Run) -> dict[str, Any]:
    """Return the run as plain JSON values."""
    return {
        "format": FORMAT,
        "task": {"name": run.task_name, **dataclasses.asdict(run.task)},
        "model": dataclasses.asdict(run.model),
        "training": dataclasses.asdict(run.training),
    }


def run_from_json(values: dict[str, Any]) -> Run:
    """Return the run that `run_to_json` wrote, in this format or an older one.

    Options that an older format did not have take their defaults. Those of a task or of training
    do what was done then; those of a mixer, which the first files of format 2 left out, need not.

    Raises:
        ValueError: a part is missing, an option is unknown or out of range, or the format is newer.
    """
    written = values.get("format", 1)
    if isinstance(written, bool) or not isinstance(written, int) or not 1 <= written <= FORMAT:
        raise ValueError(
            f"format must be at most {FORMAT}, the newest that this Polewise reads; got "
            f"{written!r}. Upgrade Polewise to go on with this run."
        )
    for name in values:
        if name not in _PARTS:
            raise ValueError(
                f"the run must have known parts ({', '.join(_PARTS)}); got {name!r}."
                f"{did_you_mean(name, _PARTS)}"
            )
    for part in ("task", "model", "training"):
        if not isinstance(values.get(part), dict):
            raise ValueError(
                f"the run must have a part {part!r} with its options; got "
                f"{type(values.get(part)).__name__}."
            )
    task = dict(values["task"])
    name = task.pop("name", None)
    require_choice("task", name, TASKS)
    return Run(
        task=from_json(TASKS[name], task),
        model=from_json(ModelOptions, values["model"]),
        training=from_json(TrainingOptions, values["training"]),
    )
