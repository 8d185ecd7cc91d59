"""Processes that train together; in a file of its own because new processes import it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from benchmarks.faults.processes import processes as forks
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, multiprocessing
from torch.distributed.tensor import DTensor

from polewise.recipes.studies import Study, run_study
from polewise.tasks import RecallTask, TextTask
from polewise.training import (
    ModelOptions,
    Run,
    TrainingError,
    TrainingOptions,
    resume,
    session,
    train,
)
from polewise.training.fully_sharded import shard_parameters

MIXER_OPTIONS = {"chunk_length": 16, "bin_length": 16, "windows": 2, "memory_every": 1}
"""A memory in every layer: attention alone does not see what all keys share, so the bias of keys
would have no gradient but rounding, of which Adam makes whole steps."""
RUN = Run(
    task=TextTask(source="embedded", length=64, batch_size=4, eval_bytes=1000),
    model=ModelOptions(mixer_options=MIXER_OPTIONS, hidden_size=16, num_layers=2),
    # The rate must not depend on the budget: some runs are given more of it later.
    training=TrainingOptions(
        max_steps=4, warmup=0, final_learning_rate=1, checkpoint_every=2, evaluate_every=2
    ),
)


def changed(**training) -> Run:
    """Return the run with other training options."""
    return replace(RUN, training=replace(RUN.training, **training))


class Poisoned(RecallTask):
    """Every loss from the third step on is NaN."""

    def train_batches(self, seed, first_step=0):
        for step, batch in enumerate(super().train_batches(seed, first_step), first_step):
            yield batch | {"poison": torch.tensor(float("nan") if step > 1 else 1.0)}

    def loss(self, logits, batch):
        return super().loss(logits, batch) * batch["poison"]


class Stalling(RecallTask):
    """The third batch of the second process never comes."""

    def train_batches(self, seed, first_step=0):
        for step, batch in enumerate(super().train_batches(seed, first_step), first_step):
            if step == 2 and os.environ["RANK"] == "1":
                threading.Event().wait()
            yield batch


class Drawing(RecallTask):
    """Every process notes a number that it draws in each step, as dropout draws its masks."""

    def loss(self, logits, batch):
        with (Path(os.environ["DRAWN_IN"]) / os.environ["RANK"]).open("a") as file:
            file.write(f"{torch.rand(()).item()}\n")
        return super().loss(logits, batch)


def recall(kind: type[RecallTask], **training) -> Run:
    """Return a small run of a kind of recall."""
    return Run(
        task=kind(length=6, vocab_size=6, num_eval=8, batch_size=4),
        model=ModelOptions(mixer="attention", hidden_size=8, num_layers=1),
        training=TrainingOptions(**({"max_steps": 8, "checkpoint_every": 2} | training)),
    )


Job = tuple[Run | int, Path]
"""A run and its new folder; or so many steps, and the folder to be resumed to them."""


def together(processes: int, *jobs: Job) -> None:
    """Do each job on several processes."""
    side_by_side(processes, _work, processes, free_port(), jobs, None)


def answers_of(processes: int, folder: Path, *runs: Run) -> list[list[str]]:
    """Return what each process says to each run, which must fail."""
    jobs = [(run, folder / str(number)) for number, run in enumerate(runs)]
    side_by_side(processes, _work, processes, free_port(), jobs, folder)
    return [
        [(folder / f"{number}-{rank}").read_text() for rank in range(processes)]
        for number in range(len(runs))
    ]


def study_together(processes: int, study: Study, folder: Path) -> None:
    """Run what is missing of a study, each run on all processes."""
    side_by_side(processes, _study, processes, free_port(), study, folder)


def _study(rank: int, processes: int, port: int, study: Study, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment(rank, processes, port))
    quiet = Console(quiet=True)
    run_study(study, out=folder / "runs", results=folder / "results.json", console=quiet)
    torch.distributed.destroy_process_group()


def side_by_side(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(rank, *arguments)` in so many processes, forks of one that has imported all."""
    forks()
    given = (dict(os.environ), work, arguments)
    multiprocessing.start_processes(_as_here, given, count, start_method="forkserver")


def _as_here(rank: int, variables: dict[str, str], work: Callable, arguments: tuple) -> None:
    os.environ.clear()  # those that forks are made of may be older
    os.environ.update(variables)
    work(rank, *arguments)


def free_port() -> int:
    """Return the number of a port that nobody listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return what a launcher tells a process."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def alone(*jobs: Job) -> None:
    """Do each job on this process."""
    for what, folder in jobs:
        AcceleratorState._reset_state(reset_partial_state=True)  # each as in a process of its own
        if isinstance(what, Run):
            train(what, folder, console=Console(quiet=True))
        else:
            resume(folder, max_steps=what, console=Console(quiet=True))
    AcceleratorState._reset_state(reset_partial_state=True)


def weights(folder: Path) -> dict[str, Tensor]:
    """Return the parameters a run ended with."""
    return load_file(folder / "model-last" / "model.safetensors")


def farthest(a: Path, b: Path) -> float:
    """Return the largest difference between the parameters that two runs ended with."""
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def shared_out(folder: Path, rank: int) -> int:
    """Return how many parameters a process of a run had a share of, in place of the whole."""
    note = _note_of(folder, rank)
    return int(note.read_text()) if note.exists() else 0


def _note_of(folder: Path, rank: int) -> Path:
    return folder.with_name(f"{folder.name}.shared-out-on-{rank}")


def _note_what_is_shared_out(folder: Path, rank: int) -> None:
    def noting(model, *arguments):
        shard_parameters(model, *arguments)
        shares = sum(isinstance(parameter, DTensor) for parameter in model.parameters())
        _note_of(folder, rank).write_text(str(shares))

    session.shard_parameters = noting


def _work(rank: int, processes: int, port: int, jobs: list[Job], answers: Path | None) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment(rank, processes, port))
    for number, job in enumerate(jobs):
        _note_what_is_shared_out(job[1], rank)
        if isinstance(job[0], Run) and rank:  # as where each names its folder by its own clock
            job = job[0], job[1].with_name(f"{job[1].name}-of-{rank}")
        if answers is None:
            alone(job)
        else:
            try:
                alone(job)
            except TrainingError as error:
                (answers / f"{number}-{rank}").write_text(str(error))
    torch.distributed.destroy_process_group()
