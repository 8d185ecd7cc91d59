"""The run folder: everything about one training run, in files a person can read.

config.json        all options, versions, git commit, machine
metrics.jsonl      one JSON object per line: training, evaluation
checkpoints/       step-N, for resuming
model/             the best model so far, for `from_pretrained`
model-last/        the model at the end
figures/           PNG files, each with its caption in a .txt beside it
events.out.*       TensorBoard
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polewise.training.checkpoint import list_checkpoints, replace_folder, require_finite
from polewise.training.run import Run, model_class, run_from_json, run_to_json

_PACKAGES = ("polewise", "torch", "numpy", "numba", "transformers", "accelerate", "safetensors")


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path, run: Run) -> RunFolder:
        """Make the folder and write `config.json`.

        Raises:
            ValueError: the path is taken, or cannot be written.
        """
        folder = cls(path)
        if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
            raise ValueError(f"out must be a new or empty folder; {folder.path} exists.")
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.write_config(run)
        except OSError as error:
            raise ValueError(
                f"out must be a folder that can be written; {path}: {error}."
            ) from error
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Return the folder of an existing run.

        Raises:
            ValueError: it is not a run folder.
        """
        folder = cls(path)
        if not folder.config_path.is_file():
            raise ValueError(f"run must be a run folder (with a config.json); got {folder.path}.")
        return folder

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model_path(self) -> Path:
        return self.path / "model"

    @property
    def last_model_path(self) -> Path:
        return self.path / "model-last"

    @property
    def figures_path(self) -> Path:
        return self.path / "figures"

    def write_config(self, run: Run) -> None:
        """Write all options of the run, and the versions and the machine that it runs on."""
        description = {**run_to_json(run), "environment": describe_environment()}
        partial = self.path / ".config.json.partial"
        partial.write_text(json.dumps(description, indent=2) + "\n")
        partial.rename(self.config_path)

    def read_config(self) -> dict[str, Any]:
        """Return `config.json`."""
        try:
            values = json.loads(self.config_path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"run must have a readable config.json; {self.path}: {error}."
            ) from error
        if not isinstance(values, dict):
            raise ValueError(f"run must have an object in config.json; {self.path}.")
        return values

    def read_run(self) -> Run:
        """Return the run with all its options."""
        return run_from_json(self.read_config())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of `metrics.jsonl`; a last line that is cut off is left out."""
        if not self.metrics_path.exists():
            return []
        records = []
        for line in self.metrics_path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        with self.metrics_path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Drop what was logged after `step`, before a run resumes there."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        partial = self.metrics_path.with_name(".metrics.jsonl.partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.rename(self.metrics_path)

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint, or None."""
        found = list_checkpoints(self.checkpoints_path)
        return found[-1] if found else None

    def save_model(self, model: nn.Module, *, best: bool) -> None:
        """Write the model for `from_pretrained`, as the best or the last one."""
        require_finite(model)
        target = self.model_path if best else self.last_model_path
        with _without_progress_bars():
            replace_folder(target, model.save_pretrained)  # type: ignore[arg-type]

    def load_model(self) -> nn.Module:
        """Return the best model, in evaluation mode."""
        path = self.model_path if self.model_path.is_dir() else self.last_model_path
        if not path.is_dir():
            raise ValueError(f"run must hold a saved model; {self.path} has none yet.")
        kind = model_class(self.read_run().task.spec)
        try:
            with _without_progress_bars():
                return kind.from_pretrained(path).eval()
        except OSError as error:
            raise ValueError(f"run must hold a complete model; {path}: {error}.") from error


def _without_progress_bars() -> contextlib.redirect_stderr:
    """Keep transformers from drawing bars for files that take milliseconds."""
    return contextlib.redirect_stderr(io.StringIO())


def describe_environment() -> dict[str, Any]:
    """Return versions, git commit and machine: what a result depends on besides its options."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "python": sys.version.split()[0],
        "versions": versions,
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _git_commit() -> str | None:
    """Return the commit of the source checkout, with `+changes` if it has any; None elsewhere."""
    here = Path(__file__).parent
    if not (here.parents[2] / ".git").exists():
        return None
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(here, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
