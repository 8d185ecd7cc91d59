"""Checkpoints: everything needed to go on exactly, as safetensors and JSON; never a pickle."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn


@dataclass(kw_only=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    """Steps taken."""
    seconds: float = 0.0
    """Seconds of training spent."""
    best: float | None = None
    """Best headline metric so far."""


class NonFiniteError(RuntimeError):
    """Training has met NaN or infinity; nothing of it was saved."""


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    keep: int,
) -> Path:
    """Write `folder/step-N` beside its place and rename it there; then drop the oldest.

    Raises:
        NonFiniteError: a parameter is NaN or infinite. Nothing is written, and the checkpoints
            that exist stay as they are.
    """
    require_finite(model)
    target = folder / f"step-{progress.step}"
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.detach().contiguous()
        for index, entries in state["state"].items()
        for name, value in entries.items()
    }
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states = torch.cuda.get_rng_state_all()
        random |= {f"cuda.{index}": value for index, value in enumerate(states)}

    def write(path: Path) -> None:
        save_model(model, str(path / "model.safetensors"))
        save_file(tensors, path / "optimizer.safetensors")
        save_file(random, path / "random.safetensors")
        description = {**asdict(progress), "param_groups": state["param_groups"]}
        (path / "progress.json").write_text(json.dumps(description, indent=2))

    replace_folder(target, write)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Progress:
    """Restore model, optimiser and random numbers from `path`; return where the run stood."""
    try:
        description = json.loads((path / "progress.json").read_text())
        load_model(model, str(path / "model.safetensors"), strict=True)
        if optimizer is not None:
            entries: dict[int, dict[str, Tensor]] = {}
            for name, value in load_file(path / "optimizer.safetensors").items():
                index, entry = name.split(".", 1)
                entries.setdefault(int(index), {})[entry] = value
            groups = description["param_groups"]
            optimizer.load_state_dict({"state": entries, "param_groups": groups})
            random = load_file(path / "random.safetensors")
            torch.set_rng_state(random.pop("cpu"))
            if torch.cuda.is_available() and len(random) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all([random[f"cuda.{i}"] for i in range(len(random))])
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"checkpoint must be complete and of this model; {path}: {error}"
        ) from error
    return read_progress(path)


def read_progress(path: Path) -> Progress:
    """Return where the run stood at a checkpoint."""
    try:
        description = json.loads((path / "progress.json").read_text())
        return Progress(**{name: description[name] for name in ("step", "seconds", "best")})
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"checkpoint must be complete; {path}: {error}") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]))


def require_finite(model: nn.Module) -> None:
    """Raise NonFiniteError, naming the first of them, if a parameter or buffer is not finite."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            kind = "NaN" if bool(torch.isnan(value).any()) else "infinite"
            raise NonFiniteError(f"the parameter {name} is {kind}")


def replace_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write(path)` fill a folder beside `target`, then rename it into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        write(partial)
        for file in partial.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if target.exists():
            old = target.with_name(f".{target.name}.old")
            if old.exists():
                shutil.rmtree(old)
            target.rename(old)
            partial.rename(target)
            shutil.rmtree(old)
        else:
            partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
