"""One run of a study: train it or go on with it, and put down what came out."""

from __future__ import annotations

import json
import math
import re
import shlex
import signal
import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console

from polewise.recipes.studies.parameter_matching import count_parameters
from polewise.recipes.studies.study import Study, Trial
from polewise.replace_file import replace_file
from polewise.tasks import on_test_part
from polewise.training import (
    NonFiniteError,
    Outcome,
    Run,
    RunFolder,
    evaluate,
    release_freed_memory,
    resume,
    run_from_json,
    run_to_json,
    train,
)
from polewise.training.checkpoint import find_checkpoint, read_progress
from polewise.training.errors import FolderInUseError, FolderTakenError, explained_saving
from polewise.training.json_files import read_json_object
from polewise.training.run_folder import OUTCOME


def processes() -> PartialState:
    """Return the processes that train together: one, but for `accelerate launch`."""
    return PartialState(cpu=not torch.accelerator.is_available())


def run_trial(trial: Trial, path: Path, console: Console) -> int | None:
    """Train the run, or go on with it; leave its outcome in the folder.

    A run that is done is left alone. One whose loss or last figure is NaN or infinite is done too:
    it diverged. Processes that train together all call this, and the main one writes.

    Returns:
        None when the run is done; the signal that asked it to stop, when it can be resumed.

    Raises:
        ValueError: the folder holds another run.
        FolderInUseError: another process trains it.
        SaveError, StalledError: as for `train`.
    """
    run, fresh, done = trial.run, not path.exists(), has_outcome(trial, path)
    processes().wait_for_everyone()  # before the main one makes the folder
    if done:
        return None
    _reset_peak_memory()
    began, began_cpu = time.monotonic(), time.process_time()
    outcome: Outcome | None = None
    diverged = None
    try:
        if fresh:
            outcome = _begin(trial, path, console)
        else:
            _require_same_run(RunFolder.open(path), run)
            if not _is_over(RunFolder.open(path), run):
                outcome = resume(path, title=trial.name, console=console)
        if outcome is not None and outcome.status == "interrupted":
            return outcome.signal or signal.SIGTERM  # or only another process was asked
    except NonFiniteError as error:
        diverged = str(error)
    if processes().is_main_process:
        folder, headline, peak = RunFolder.open(path), run.task.headline, _peak_memory()
        with folder.in_use():
            if diverged is None and headline not in folder.read_evaluations()[-1]:
                diverged = f"{headline} is not a finite number at the end"
            values = {
                "status": "done" if diverged is None else "diverged",
                **({} if diverged is None else {"diagnosis": diverged}),
                **_measure(folder, diverged is not None, tests=trial.share == 1),
                # Of a run that was interrupted only the last part is known.
                "wall_seconds": round(time.monotonic() - began, 3) if fresh else None,
                "cpu_seconds": round(time.process_time() - began_cpu, 3) if fresh else None,
                "peak_memory_bytes": peak if fresh else None,
                # Each process draws batches of its own: the batch is so many times as large.
                "num_processes": processes().num_processes,
                "ended": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
            }
            with explained_saving(OUTCOME, path, "run the study again"):
                replace_file(path / OUTCOME, json.dumps(values, indent=1, allow_nan=False) + "\n")
    processes().wait_for_everyone()
    return None


def _begin(trial: Trial, path: Path, console: Console) -> Outcome:
    try:
        return train(trial.run, path, title=trial.name, console=console)
    except FolderTakenError as error:
        raise FolderInUseError(f"{path} was begun by another process meanwhile.") from error


def read_row(study: Study, trial: Trial, path: Path) -> dict[str, Any]:
    """Return what the results file says of a run that is done."""
    folder = RunFolder.open(path)
    config = folder.read_config()
    return {
        "run": trial.name,
        "comparison": trial.comparison.name,
        "system": trial.system.name,
        "learning_rate": trial.learning_rate,
        "seed": trial.seed,
        "share": trial.share,
        **_read_outcome(path),
        "curve": [
            {name: value for name, value in record.items() if name != "kind"}
            for record in folder.read_evaluations()
        ],
        "configuration": configuration(trial.run),
        "data": config.get("data"),
        "environment": config["environment"],
        "command": rerun_command(study, trial, config["environment"]["num_threads"]),
    }


def has_outcome(trial: Trial, path: Path) -> bool:
    """Whether the folder has come to the end of this run, and not of one of the same name."""
    if not (path / OUTCOME).exists() or not is_of(RunFolder.open(path).read_config(), trial.run):
        return False
    return is_as_large(_read_outcome(path).get("parameters"), trial.run)


def _read_outcome(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path / OUTCOME)
    except ValueError as error:
        raise ValueError(
            f"out must hold whole runs; {path}: {error}. Delete that folder to run it anew."
        ) from error


def is_of(options: Mapping[str, Any], run: Run) -> bool:
    """Whether options from a file are those of this run. Those they lack have their defaults."""
    try:
        return run_from_json(dict(options)) == run
    except ValueError:
        return False


def is_as_large(parameters: int | None, run: Run) -> bool:
    """Whether the run's model has so many parameters now. An option that is new since a file was
    written may have changed the model that the others describe. None, of a run that diverged, says
    nothing."""
    return parameters in (None, count_parameters(run.task.spec, run.model))


def configuration(run: Run) -> dict[str, Any]:
    """Return all options of a run as JSON has them."""
    return json.loads(json.dumps(run_to_json(run)))


def rerun_command(study: Study, trial: Trial, threads: int) -> str:
    """Return the command that makes this one run anew, beside what is there already; where the
    budget is in seconds, with as many threads. A study of the user's own has none."""
    from polewise.recipes.studies.named import STUDIES

    if study.name not in STUDIES:
        return ""
    words = ["polewise", "study", study.name, "--size", study.size]
    command = shlex.join([*words, "--only", trial.name, "--out", "again"])
    timed = trial.comparison.training.max_seconds is not None
    return f"OMP_NUM_THREADS={threads} {command}" if timed else command


def _require_same_run(folder: RunFolder, run: Run) -> None:
    # An outcome that does not count is that of a model of another size.
    if folder.read_run() != run or (folder.path / OUTCOME).exists():
        raise ValueError(
            f"out must hold runs of the study as it is now; {folder.path} has other options, or a "
            "model of another size. Delete that folder, or choose another."
        )


def _is_over(folder: RunFolder, run: Run) -> bool:
    """Whether a run without outcome had come to its end when its process died."""
    checkpoint = find_checkpoint(folder.checkpoints_path, max_bytes=None, note=lambda _: None)
    if checkpoint is None:
        return False
    return folder.has_ended(run, read_progress(checkpoint)) is not None


def _measure(folder: RunFolder, diverged: bool, *, tests: bool) -> dict[str, Any]:
    """What a run has reached, and what it took. A short run chooses a rate and tests nothing."""
    run, evaluations = folder.read_run(), folder.read_evaluations()
    speeds = [
        record["positions_per_second"]
        for record in folder.read_metrics()
        if record["kind"] == "train" and "positions_per_second" in record
    ]
    measured: dict[str, Any] = {
        "positions_per_second": round(statistics.median(speeds), 1) if speeds else None,
    }
    if diverged:
        return measured
    last = evaluations[-1]
    model: Any = folder.load_model().to(processes().device)
    measured |= {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "state_bytes": None,
        "steps": last["step"],
        "seconds": last["seconds"],
        "metrics": {k: v for k, v in last.items() if k not in ("kind", "step", "seconds")},
        "test": None,
    }
    task: Any = run.task
    spec = task.spec
    if spec.kind == "language":
        # None of a model that cannot stream, which hands on nothing.
        measured["state_bytes"] = model.state_num_bytes(batch=1, length=spec.length) or None
    if tests and (test := on_test_part(task)) is not None:
        # The best model by validation, on data that chose nothing.
        test.prepare()
        reached = evaluate(model, test)
        measured["test"] = {k: v for k, v in reached.items() if math.isfinite(v)}
    return measured


def _reset_peak_memory() -> None:
    release_freed_memory()  # of the run before
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux: 5 sets the peak to what is held now
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int | None:
    """Most bytes held since the reset, on the GPU or, without one, by the process; or None."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        if peak := re.search(r"VmHWM:\s+(\d+) kB", status):
            return 1024 * int(peak.group(1))
    return None
