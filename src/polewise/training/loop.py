"""The training loop."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGTERM
from time import perf_counter
from typing import Literal

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console

from polewise.training.building import planned_model, require_splittable_run
from polewise.training.checkpoint import checkpoint_limit, find_checkpoint, read_progress
from polewise.training.display import Display
from polewise.training.errors import explained_saving
from polewise.training.launch import join_processes, naming_lost_processes
from polewise.training.memory import keep_freed_memory
from polewise.training.optimizer import learning_rate_share
from polewise.training.run import Run
from polewise.training.run_folder import RunFolder
from polewise.training.session import Session
from polewise.training.stopping import StopRequest, stop_requests


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    status: Literal["finished", "reached", "interrupted"]
    """The budget is spent; `stop_at` was reached; someone asked it to stop."""
    folder: RunFolder
    """Where everything lies."""
    step: int
    """Steps taken."""
    metrics: dict[str, float]
    """The last evaluation; empty if there was none."""
    is_main_process: bool
    """Whether this process is the one that writes and speaks."""
    signal: int | None = None
    """The signal that asked it to stop: 2 for Ctrl-C, 15 for SIGTERM, 1 for a closed terminal."""

    @property
    def exit_code(self) -> int:
        """What a command that trains ends with: 0, or 128 and the signal that stopped the run; 143
        where only another process received one."""
        return 128 + (self.signal or SIGTERM) if self.status == "interrupted" else 0


def train(
    run: Run, out: str | Path, *, title: str | None = None, console: Console | None = None
) -> Outcome:
    """Train a new run in the new folder `out`; of several processes that of the main one counts.

    What the process frees from now on it keeps for its next step (`keep_freed_memory`).

    Raises:
        ValueError: an option, the data or the folder will not do. Nothing has been created then.
        NonFiniteError: the loss stayed NaN or infinite. The checkpoints before that are kept.
        LostProcessError: another process of the launch has ended.
        SaveError: the run folder cannot be written. What was saved before is kept.
        StalledError: the data source gave no batch in time. The run was saved.
    """
    run.task.prepare()
    planned_model(run)
    accelerator = _join(run)
    if accelerator.num_processes > 1:  # each may have named its folder by its own clock
        with naming_lost_processes():
            (out,) = broadcast_object_list([str(out)])
    if accelerator.is_main_process:
        RunFolder.create(out, run)
    with naming_lost_processes():
        accelerator.wait_for_everyone()
    folder = RunFolder.open(out)
    display = _display(title or run.task_name, console, accelerator)
    with folder.in_use() if accelerator.is_main_process else nullcontext():
        return _train(run, folder, None, accelerator, display)


def resume(
    path: str | Path,
    *,
    max_steps: int | None = None,
    max_seconds: float | None = None,
    title: str | None = None,
    console: Console | None = None,
) -> Outcome:
    """Go on from the newest whole checkpoint of a run folder, with the run's own options.

    Parameters, optimiser, random numbers, data and averages continue where they were, so a run with
    a budget in steps ends as if it had never stopped, bit for bit on a CPU. A run that was killed
    before its first checkpoint begins again. `max_steps` and `max_seconds` replace the budget.

    Raises:
        ValueError: it is no run folder, its options, data or checkpoints will not do, its budget is
            spent, its target reached, or another process trains in it.
        NonFiniteError, SaveError, StalledError: as for `train`.
    """
    folder = RunFolder.open(path)
    run = folder.read_run()
    if max_steps is not None or max_seconds is not None:
        budget = replace(run.training, max_steps=max_steps, max_seconds=max_seconds)
        run = replace(run, training=budget)
    run.task.prepare()
    folder.require_same_data(run)
    limit = checkpoint_limit(planned_model(run))
    accelerator = _join(run)
    display = _display(title or run.task_name, console, accelerator)
    with folder.in_use() if accelerator.is_main_process else nullcontext():
        with naming_lost_processes():
            accelerator.wait_for_everyone()  # until the main process has cleared up
        checkpoint = find_checkpoint(folder.checkpoints_path, max_bytes=limit, note=display.note)
        if checkpoint is not None:
            done = read_progress(checkpoint)
            ended = folder.has_ended(run, done)
            if ended == "spent":
                raise ValueError(
                    f"max_steps or max_seconds must be more than what {folder.path} has spent "
                    f"({done.step} steps, {done.seconds:.0f} s) to go on."
                )
            if ended == "reached":
                raise ValueError(
                    f"run must have something left to do; {folder.path} has reached its stop_at, "
                    f"{run.training.stop_at:g}, at step {done.step}."
                )
        else:
            _require_young(folder, run)
            display.note("there is no checkpoint yet; the run begins again")
        if accelerator.is_main_process:
            with explained_saving("config.json", folder.path):
                folder.write_config(run)
        return _train(run, folder, checkpoint, accelerator, display)


def _require_young(folder: RunFolder, run: Run) -> None:
    """Raise ValueError if the run was past its first checkpoint, of which nothing is left."""
    logged = max((record["step"] for record in folder.read_metrics()), default=0)
    if folder.last_model_path.is_dir() or logged > run.training.checkpoint_every:
        raise ValueError(
            f"run must have a checkpoint to go on from; {folder.checkpoints_path} has none, and "
            f"the log goes up to step {logged}. Put it back, or begin a new run."
        )


def _train(
    run: Run,
    folder: RunFolder,
    checkpoint: Path | None,
    accelerator: Accelerator,
    display: Display,
) -> Outcome:
    keep_freed_memory()
    with naming_lost_processes():
        accelerator.wait_for_everyone()
        session = Session(run, folder, checkpoint, accelerator, display)
        with display, closing(session), stop_requests() as stop:
            return _loop(session, stop)


def _loop(session: Session, stop: StopRequest) -> Outcome:
    """Train until the budget is spent, the target is reached, or someone asks to stop."""
    options = session.options
    counted = False  # the first step compiles, and does not count
    stops = False
    saves = False
    if session.progress.owes_evaluation:
        stops = not session.measure(stop)
    session.model.train()
    spent = session.spent()
    while not (stops or session.has_reached_target()) and spent < 1:
        begin = perf_counter()
        batches = session.take_batches(stop)
        if batches is None:  # the source has stalled, and someone asked to stop
            stops = True
            break
        rate = options.learning_rate * learning_rate_share(spent, options)
        rate *= 0.5**session.progress.rollbacks
        session.take_step(batches, rate)

        progress = session.progress
        if counted:
            progress.seconds += (seconds := perf_counter() - begin)
            streams = 1 if session.splits else session.accelerator.num_processes
            progress.window.add_time(seconds, batches, streams)
        counted = True
        spent = session.spent()
        is_due = progress.step % options.log_every == 0
        evaluates = progress.step % options.evaluate_every == 0
        saves = saves or progress.step % options.checkpoint_every == 0
        stops = session.any_says(stop.signal is not None)
        ends = stops or spent >= 1
        if session.has_diverged(looks=is_due or evaluates or saves or ends):
            session.roll_back(batches, rate)
            spent, saves = session.spent(), False
            continue
        if is_due:
            session.log_window(rate)
        progress.owes_evaluation = stops and (evaluates or spent >= 1)
        if evaluates and not stops:
            stops = not session.measure(stop)
        # The last checkpoint comes at the very end, and one that is due in the middle of trouble
        # after it: a roll back goes to a step from before.
        ends = ends or stops or session.has_reached_target()
        if saves and not ends and not progress.skipped_in_a_row:
            saves = False
            with session.tolerance():
                session.save()

    if not stops and session.evaluated_at != session.progress.step:
        stops = not session.measure(stop)
    # The last checkpoint comes last: where it stands, all that a run leaves does.
    session.save_model(best=False)
    if session.any_says(session.saved_at != session.progress.step):
        session.save()
    session.accelerator.wait_for_everyone()
    reached = session.has_reached_target()
    return Outcome(
        status="interrupted" if stops else "reached" if reached else "finished",
        folder=session.folder,
        step=session.progress.step,
        metrics=session.metrics,
        is_main_process=session.accelerator.is_main_process,
        signal=stop.signal if stops else None,
    )


def _join(run: Run) -> Accelerator:
    """Meet the other processes of the launch; refuse a run that cannot be split over them."""
    accelerator = join_processes(run.training)
    if run.training.split_sequence:
        require_splittable_run(run, accelerator.num_processes)
    return accelerator


def _display(title: str, console: Console | None, accelerator: Accelerator) -> Display:
    return Display(title, console if accelerator.is_main_process else Console(quiet=True))
