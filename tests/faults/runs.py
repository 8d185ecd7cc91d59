"""Small runs to be broken, and what is compared afterwards."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from polewise.tasks import RecallTask
from polewise.training import ModelOptions, Run, RunFolder, TrainingOptions

TASK = {"length": 6, "vocab_size": 6, "num_eval": 8, "batch_size": 4}


class RecallWith(RecallTask):
    """Recall, with something done to the batch of a step. How is told by class attributes: options
    would be written into the run's configuration."""

    def train_batches(self, seed, first_step=0):
        for step, batch in enumerate(super().train_batches(seed, first_step), first_step):
            yield self.change(step, batch)

    def change(self, step, batch):
        """Return the batch of a step, or do harm."""
        raise NotImplementedError


def task_of(kind, options=TASK, **attributes):
    """Return a task of a kind of `RecallWith`, with these class attributes."""
    return type(kind.__name__, (kind,), attributes)(**options)


def small_run(task=None, mixer="attention", dropout=0.0, **training) -> Run:
    """Return a run of six steps with a checkpoint after every second."""
    options = {"max_steps": 6, "log_every": 1, "evaluate_every": 3, "checkpoint_every": 2}
    set_chunk = {"chunk_length": 4, "bin_length": 4} if mixer == "focus" else {}
    return Run(
        task=task or RecallTask(**TASK),
        model=ModelOptions(
            mixer=mixer, mixer_options=set_chunk, hidden_size=8, num_layers=1, dropout=dropout
        ),
        training=TrainingOptions(**(options | training)),
    )


def quiet() -> Console:
    """Return a console that keeps what is said, in `.file`."""
    return Console(file=io.StringIO(), width=10_000)


def parameters_of(folder: Path, name: str = "model-last") -> dict[str, Tensor]:
    """Return the parameters of a saved model."""
    return load_file(folder / name / "model.safetensors")


def have_equal_parameters(a: Path, b: Path, name: str = "model-last") -> bool:
    """Whether two runs ended with the same bits."""
    left, right = parameters_of(a, name), parameters_of(b, name)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def untimed_metrics(folder: Path) -> list[dict]:
    """Return the lines of the log without what a clock decides."""
    timed = ("seconds", "positions_per_second")
    return [
        {name: value for name, value in record.items() if name not in timed}
        for record in RunFolder(folder).read_metrics()
    ]


def checkpoints_in(folder: Path) -> list[str]:
    """Return the names of all that lies in the checkpoints folder."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def flip_bit(path: Path, position: int | None = None, bit: int = 0) -> None:
    """Flip one bit of a file, in the middle unless a position is given."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1 << bit
    path.write_bytes(content)
