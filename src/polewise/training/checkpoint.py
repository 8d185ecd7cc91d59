"""Checkpoints: everything needed to go on exactly, as safetensors and JSON; never a pickle.

model.safetensors      parameters and buffers
optimizer.safetensors  the optimiser's state, `PARAMETER.NAME`
random.safetensors     every random generator
progress.json          where the run stands
manifest.json          size and SHA-256 of the others
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from polewise.states import DAMAGE
from polewise.training.diagnosis import first_bad_parameter
from polewise.training.durable import remove_folder, replace_folder
from polewise.training.errors import NonFiniteError, explained_saving
from polewise.training.fully_sharded import shard_like, whole_tensor
from polewise.training.json_files import read_json_object
from polewise.training.manifest import has_manifest, verify_folder
from polewise.training.progress import Progress
from polewise.training.random_state import random_state, set_random_state

_FILES = ("model.safetensors", "optimizer.safetensors", "progress.json", "random.safetensors")

_DAMAGE = (OSError, *DAMAGE)


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer_state: dict[str, Tensor],
    progress: Progress,
    *,
    keep: int | None,
) -> Path:
    """Write `folder/step-N` beside its place, put it there, then drop the oldest beyond `keep`
    whole ones; None drops none.

    The optimiser's state is `dict(named_optimizer_state(optimizer))`.

    Raises:
        NonFiniteError: a parameter is NaN or infinite. Nothing is written.
        SaveError: it cannot be written. Either way the checkpoints that exist stay as they are.
    """
    require_finite(model)
    target = folder / f"step-{progress.step}"

    def write(path: Path) -> None:
        save_model(model, str(path / "model.safetensors"))
        save_file(optimizer_state, path / "optimizer.safetensors")
        save_file(random_state(), path / "random.safetensors")
        described = json.dumps(dataclasses.asdict(progress), indent=2, allow_nan=False)
        (path / "progress.json").write_text(described + "\n")

    with explained_saving("a checkpoint", folder):
        folder.mkdir(exist_ok=True)  # and not what is above: a run folder may have vanished
        replace_folder(target, write)
        if keep is not None:
            _prune(folder, progress.step, keep - 1, max_bytes=checkpoint_limit(model))
    return target


def _prune(folder: Path, before: int, keep: int, *, max_bytes: int) -> None:
    """Remove what is older than the newest `keep` whole checkpoints of those before a step (a later
    one can only be damaged: the run would have gone on from it)."""
    for path in reversed(list_checkpoints(folder)):
        if _step(path) >= before or not has_manifest(path):
            continue
        if keep == 0:
            remove_folder(path)
            continue
        with suppress(ValueError):
            verify_checkpoint(path, max_bytes=max_bytes)
            keep -= 1


def named_optimizer_state(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of an optimiser's state, whole, as `PARAMETER.NAME`.

    Where they are sharded all processes must go through them.
    """
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            yield f"{index}.{name}", whole_tensor(value.detach()).contiguous()


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Progress:
    """Verify a checkpoint; restore model, optimiser and random generators from it.

    Returns where the run stood. Without an optimiser only the model is restored. The model must be
    whole; an optimiser of sharded parameters is given this process's shards.

    Raises:
        ValueError: the checkpoint is damaged, or of another model.
    """
    verify_checkpoint(path, max_bytes=checkpoint_limit(model))
    try:
        load_model(model, str(path / "model.safetensors"), strict=True)
        if optimizer is not None:
            _load_optimizer(path / "optimizer.safetensors", optimizer)
            set_random_state(load_file(path / "random.safetensors"))
        return read_progress(path)
    except _DAMAGE as error:
        raise ValueError(
            f"checkpoint must be complete and of this model; {path}: {error}"
        ) from error


def read_progress(path: Path) -> Progress:
    """Return where the run stood at a checkpoint.

    Raises:
        ValueError: its progress.json is damaged.
    """
    try:
        return Progress.from_json(read_json_object(path / "progress.json"))
    except ValueError as error:
        raise ValueError(
            f"checkpoint must be one that this Polewise writes; {path / 'progress.json'}: {error}."
        ) from error


def verify_checkpoint(path: Path, *, max_bytes: int | None = None) -> None:
    """Check a checkpoint against its manifest.

    Raises:
        ValueError: a file is missing or not what was written, it is of another step than its name
            says, or it is larger than `max_bytes`; the message names the file.
    """
    try:
        verify_folder(path, names=_FILES, max_bytes=max_bytes)
        step = read_json_object(path / "progress.json").get("step")
        if path.name != f"step-{step}":
            raise ValueError(f"progress.json is of step {step!r}")
    except ValueError as error:
        raise ValueError(
            f"checkpoint must be complete and as it was written; {path}: {error}."
        ) from error


def find_checkpoint(
    folder: Path,
    *,
    max_bytes: int | None,
    note: Callable[[str], object],
    before: int | None = None,
) -> Path | None:
    """Return the newest checkpoint that is whole; None where there is none at all.

    Every damaged one that is passed over is named to `note`. Those of the step `before` and later
    do not count.

    Raises:
        ValueError: there are checkpoints, and every one of them is damaged.
    """
    damaged = []
    for path in reversed(list_checkpoints(folder)):
        if before is not None and _step(path) >= before:
            continue
        try:
            verify_checkpoint(path, max_bytes=max_bytes)
        except ValueError as error:
            note(f"passed over: {error}")
            damaged.append(str(error))
        else:
            return path
    if damaged:
        raise ValueError(
            f"run must have a whole checkpoint to go on from; all {len(damaged)} in {folder} are "
            f"damaged, the newest: {damaged[0]}"
        )
    return None


def forget_checkpoints_after(path: Path) -> None:
    """Remove those that are newer than this one, to which the run has gone back. A folder without
    manifest is someone else's.

    Raises:
        SaveError: they cannot be removed.
    """
    with explained_saving("a checkpoint", path.parent):
        for newer in list_checkpoints(path.parent):
            if _step(newer) > _step(path) and has_manifest(newer):
                remove_folder(newer)


def checkpoint_limit(model: nn.Module) -> int:
    """Return more bytes than any checkpoint of the model has.

    The parameters, two averages of each in at least float32, and room for names and generators.
    """
    model_bytes = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    return 8 * model_bytes + 64 * 2**20


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first; damaged ones too."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-[0-9]{1,18}", path.name)]
    return sorted(found, key=_step)


def require_finite(model: nn.Module) -> None:
    """Raise NonFiniteError, naming the first of them, if a parameter or buffer is not finite."""
    if (bad := first_bad_parameter(model)) is not None:
        raise NonFiniteError(bad)


def _load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(path).items():
        index, entry = name.split(".", 1)
        shape = parameters[int(index)].shape
        if value.ndim and value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, its parameter {tuple(shape)}")
        shard = shard_like(parameters[int(index)], value) if value.ndim else value
        entries.setdefault(int(index), {})[entry] = shard
    # What the groups are, and their rates, is decided by the options of the run.
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
