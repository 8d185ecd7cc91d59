"""The run folder: everything about one training run, in files a person can read.

config.json        all options, versions, git commit, machine, a fingerprint of the data
metrics.jsonl      one JSON object per line: training, evaluation, whatever went wrong
checkpoints/       step-N, for resuming
model/             the best model so far, for `from_pretrained`
model-last/        the model at the end
figures/           PNG files, each with its caption in a .txt beside it
events.out.*       TensorBoard
outcome.json       of a study's run: what the whole of it gave
.lock              held by the process that trains here
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from torch import nn

from polewise.replace_file import replace_file
from polewise.tasks import ForecastTask, TaskSpec
from polewise.training.building import model_class, model_without_numbers
from polewise.training.checkpoint import checkpoint_limit, list_checkpoints, require_finite
from polewise.training.durable import clear_up, replace_folder
from polewise.training.environment import describe_environment
from polewise.training.errors import FolderInUseError, FolderTakenError, explained_saving
from polewise.training.json_files import read_json_object
from polewise.training.locks import LockedError, is_locked, lock
from polewise.training.manifest import has_manifest, verify_folder
from polewise.training.progress import Progress, spent_share
from polewise.training.run import Run, run_from_json, run_to_json

OUTCOME = "outcome.json"
"""The file that the folder of a study's run has once the run is done."""

_UNIQUE = "[0-9a-f]{32}"


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path, run: Run) -> RunFolder:
        """Make the folder with `config.json` in it, both at once or neither.

        Raises:
            FolderTakenError: there is something already.
            ValueError: it cannot be written.
        """
        folder = cls(path)
        try:
            str(folder.path).encode()
        except UnicodeEncodeError:
            raise ValueError(
                "out must be a path in UTF-8, or TensorBoard cannot write there; got "
                f"{str(folder.path)!r}."
            ) from None
        try:
            require_new_folder(folder.path)
            if folder.path.exists():
                folder._take(run)
                return folder
            partial = cls(folder.path.with_name(f".{folder.path.name}.{uuid4().hex}.partial"))
            try:
                partial.path.mkdir(parents=True)
                partial.write_config(run)
                partial.path.rename(folder.path)
            finally:
                shutil.rmtree(partial.path, ignore_errors=True)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:  # another process was quicker by a moment
                raise _taken(folder.path) from error
            raise _unusable(folder.path, error) from error
        return folder

    def _take(self, run: Run) -> None:
        """Put a whole `config.json` into a folder that was empty, for the first who comes."""
        partial = RunFolder(self.path / f".{uuid4().hex}.partial")
        try:
            partial.path.mkdir()
            partial.write_config(run)
            os.link(partial.config_path, self.config_path)
        except (FileExistsError, FileNotFoundError) as error:  # who was quicker has cleared up
            if not self.config_path.exists():
                raise
            raise _taken(self.path) from error
        finally:
            shutil.rmtree(partial.path, ignore_errors=True)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Return the folder of an existing run.

        Raises:
            ValueError: it is not a run folder.
        """
        folder = cls(path)
        if not os.path.isfile(folder.config_path):  # False also for what can be no path
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
        """Write all options of the run, what identifies its data, and where it runs."""
        description = {
            **run_to_json(run),
            "data": run.task.fingerprint(),
            "environment": describe_environment(),
        }
        replace_file(self.config_path, json.dumps(description, indent=2) + "\n")

    def read_config(self) -> dict[str, Any]:
        """Return `config.json`."""
        try:
            return read_json_object(self.config_path)
        except ValueError as error:
            raise ValueError(
                f"run must have a readable config.json; {self.path}: {error}."
            ) from error

    def read_run(self) -> Run:
        """Return the run with all its options.

        Raises:
            ValueError: `config.json` is unreadable, from a newer Polewise, or has options that
                are unknown or out of range.
        """
        values = self.read_config()
        try:
            return run_from_json(values)
        except ValueError as error:
            raise ValueError(
                f"run must have a config.json of a run; {self.path}: {error}"
            ) from error

    def require_same_data(self, run: Run) -> None:
        """Raise ValueError unless the data is what the run began with."""
        config = self.read_config()
        began_with = config.get("data")
        if began_with is None or began_with == run.task.fingerprint():
            return
        advice = "Put it back, or begin a new run."
        if getattr(run.task, "source", None) == "embedded":
            python = config.get("environment", {}).get("python", "another version")
            advice = f"It is the manual of Python {python}: use that one, or begin a new run."
        raise ValueError(
            f"the data must be what {self.path} began with; it has changed since. {advice}"
        )

    def has_ended(self, run: Run, done: Progress) -> Literal["spent", "reached"] | None:
        """Whether at `done` the budget is spent, or the target reached; None: the run may go on."""
        if spent_share(done, run.training) >= 1 and not done.owes_evaluation:
            return "spent"
        last = self.read_evaluations()[-1:]
        reached = bool(last) and last[0]["step"] == done.step and run.is_reached(last[0])
        return "reached" if reached else None

    def read_evaluations(self) -> list[dict[str, Any]]:
        """Return the lines of the log that tell of evaluations, in order."""
        return [record for record in self.read_metrics() if record["kind"] == "eval"]

    def is_in_use(self) -> bool:
        """Whether another process trains here."""
        return is_locked(self.path / ".lock")

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep other processes out, and clear up what one that was killed has left.

        Raises:
            FolderInUseError: another process trains here.
            ValueError: the folder cannot be written.
        """
        try:
            held = lock(self.path / ".lock")
        except LockedError as error:
            raise FolderInUseError(
                f"run must not be in use; {error} trains in {self.path}."
            ) from error
        except OSError as error:
            raise ValueError(
                f"run must be a folder that can be written; {self.path}: {error}."
            ) from error
        with held:
            names = rf"config\.json|metrics\.jsonl|{re.escape(OUTCOME)}|model|model-last"
            clear_up(self.path, f"{names}|{_UNIQUE}")
            clear_up(self.checkpoints_path, r"step-[0-9]+")
            yield

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of `metrics.jsonl`; one that is cut off or damaged is left out."""
        if not self.metrics_path.is_file():
            return []
        records = []
        for line in self.metrics_path.read_bytes().splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and _is_record(**record):
                records.append(record)
        return records

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to `metrics.jsonl`, or nothing of it."""
        with self.metrics_path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            line = json.dumps(record, allow_nan=False).encode() + b"\n"
            if file.write(line) < len(line):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.metrics_path))

    def keep_metrics(self, lines: int, step: int, *, also: str | None = None) -> int:
        """Drop what was logged after the first so many lines, or after `step`, but for the kind
        `also`; return how many lines there are now."""
        kept = [
            record
            for number, record in enumerate(self.read_metrics())
            if record["step"] <= step and (number < lines or record["kind"] == also)
        ]
        replace_file(self.metrics_path, "".join(json.dumps(record) + "\n" for record in kept))
        return len(kept)

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint, or None."""
        found = list_checkpoints(self.checkpoints_path)
        return found[-1] if found else None

    def save_model(self, model: nn.Module, *, best: bool, tokenizer: Any = None) -> None:
        """Write the model for `from_pretrained`, as the best or the last one.

        A tokenizer is saved beside it, for `transformers.pipeline`.

        Raises:
            NonFiniteError: a parameter is NaN or infinite.
            SaveError: it cannot be written. Either way the model that was there stays.
        """
        require_finite(model)
        target = self.model_path if best else self.last_model_path

        def write(path: Path) -> None:
            for part in (model, *([] if tokenizer is None else [tokenizer])):
                part.save_pretrained(path)

        from polewise.models.progress_bars import without_progress_bars

        with without_progress_bars(), explained_saving("the model", self.path):
            replace_folder(target, write)

    def spec_of(self, run: Run) -> TaskSpec:
        """Return what the model of this folder's run knows of its task.

        The columns of a forecast are those of a table, which may have gone or changed since; a
        model that was saved still has them.
        """
        task = run.task
        if isinstance(task, ForecastTask):
            for path in self._model_paths():
                columns = None
                with contextlib.suppress(ValueError):  # a damaged one is named where it is loaded
                    columns = read_json_object(path / "config.json").get("num_input_features")
                if isinstance(columns, int) and columns > 0:
                    return TaskSpec(
                        kind="forecast", length=task.length, num_features=columns,
                        horizon=task.horizon,
                    )  # fmt: skip
        return task.spec

    def verified_model_path(self) -> Path:
        """Return the folder of the best model, whose files are as they were written.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        path = next(iter(self._model_paths()), None)
        if path is None:
            raise ValueError(f"run must hold a saved model; {self.path} has none yet.")
        if has_manifest(path):
            run = self.read_run()
            limit = checkpoint_limit(model_without_numbers(self.spec_of(run), run.model))
            try:
                verify_folder(path, max_bytes=limit)
            except ValueError as error:
                raise ValueError(f"run must hold a complete model; {path}: {error}.") from error
        return path

    def load_model(self) -> nn.Module:
        """Return the best model, in evaluation mode.

        Raises:
            ValueError: there is none, it is damaged, or it is not of this run's kind.
        """
        from polewise.models.progress_bars import without_progress_bars

        path, kind = self.verified_model_path(), model_class(self.spec_of(self.read_run()))
        try:
            with without_progress_bars():
                model, loading = kind.from_pretrained(
                    path, use_safetensors=True, output_loading_info=True
                )
            if loading["missing_keys"]:
                raise ValueError(f"{sorted(loading['missing_keys'])[0]} is missing")
            return model.eval()
        except Exception as error:  # transformers meets a bad config.json with anything
            raise ValueError(f"run must hold a complete model; {path}: {error}.") from error

    def _model_paths(self) -> list[Path]:
        """The saved models that are there, the best first: it is `.model.old` if a process died
        while it was being replaced."""
        found = (self.model_path, self.path / ".model.old", self.last_model_path)
        return [path for path in found if path.is_dir()]


def _is_record(kind: Any = None, step: Any = None, seconds: Any = None, **measures: Any) -> bool:
    """Whether a line of `metrics.jsonl` is one that a run writes."""
    numbers = (seconds, *measures.values())
    return (
        isinstance(kind, str)
        and type(step) is int
        and all(type(number) in (int, float) for number in numbers)
    )


def require_new_folder(path: Path) -> None:
    """Check that there is nothing at `path` but an empty folder, or one in which a process was
    killed before it had begun.

    Raises:
        FolderTakenError: there is something.
        ValueError: the folder cannot be read.
    """
    begun = re.compile(rf"\.{_UNIQUE}\.partial")
    try:
        is_free = not path.exists() or (
            path.is_dir() and all(begun.fullmatch(each.name) for each in path.iterdir())
        )
    except OSError as error:
        raise _unusable(path, error) from error
    if not is_free:
        raise _taken(path)


def _unusable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"out must be a folder that can be written; {path}: {error}.")


def _taken(path: Path) -> FolderTakenError:
    return FolderTakenError(f"out must be a new or empty folder; {path} exists.")
