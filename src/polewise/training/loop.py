"""The training loop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from rich.console import Console

from polewise.training.checkpoint import (
    Progress,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)
from polewise.training.display import Display
from polewise.training.evaluation import compute_logits, evaluate
from polewise.training.log import MetricsLog, StepWindow
from polewise.training.optimizer import build_optimizer, learning_rate_share, set_learning_rate
from polewise.training.run import Run, TrainingOptions, build_model
from polewise.training.run_folder import RunFolder

# Every process draws its own batches: seeds a large prime apart.
_SEED_STRIDE = 1_000_003


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    status: Literal["finished", "reached", "interrupted"]
    """The budget is spent; `stop_at` was reached; someone pressed Ctrl-C."""
    folder: RunFolder
    """Where everything lies."""
    step: int
    """Steps taken."""
    metrics: dict[str, float]
    """The last evaluation; empty if there was none."""
    is_main_process: bool
    """Whether this process is the one that writes and speaks."""


def train(
    run: Run, out: str | Path, *, title: str = "train", console: Console | None = None
) -> Outcome:
    """Train a new run in the new folder `out`.

    Raises:
        ValueError: an option, the data or the folder will not do. Nothing has been created then.
        NonFiniteError: the loss became NaN or infinite. The checkpoints before that are kept.
    """
    run.task.prepare()
    build_model(run.task.spec, run.model)  # refuses what it refuses before a folder exists
    accelerator = _accelerator(run.training)
    if accelerator.is_main_process:
        RunFolder.create(out, run)
    accelerator.wait_for_everyone()
    display = _display(title, console, accelerator)
    return _train(run, RunFolder.open(out), None, accelerator, display)


def resume(
    path: str | Path,
    *,
    max_steps: int | None = None,
    max_seconds: float | None = None,
    title: str | None = None,
    console: Console | None = None,
) -> Outcome:
    """Go on from the last checkpoint of a run folder, with the run's own options.

    Parameters, optimiser, random numbers and data continue where they were, so a run with a budget
    in steps ends as if it had never stopped. `max_steps` and `max_seconds` replace the budget.
    """
    folder = RunFolder.open(path)
    run = folder.read_run()
    if max_steps is not None or max_seconds is not None:
        budget = replace(run.training, max_steps=max_steps, max_seconds=max_seconds)
        run = replace(run, training=budget)
    checkpoint = folder.last_checkpoint()
    if checkpoint is None:
        raise ValueError(f"run must have a checkpoint to resume from; {folder.path} has none.")
    done = read_progress(checkpoint)
    if _spent(done, run.training) >= 1:
        raise ValueError(
            f"max_steps or max_seconds must be more than what {folder.path} has spent "
            f"({done.step} steps, {done.seconds:.0f} s) to go on."
        )
    run.task.prepare()
    accelerator = _accelerator(run.training)
    if accelerator.is_main_process:
        folder.write_config(run)
    display = _display(title or run.task_name, console, accelerator)
    return _train(run, folder, checkpoint, accelerator, display)


def _train(
    run: Run,
    folder: RunFolder,
    checkpoint: Path | None,
    accelerator: Accelerator,
    display: Display,
) -> Outcome:
    options, task = run.training, run.task
    torch.manual_seed(options.seed)
    model = build_model(task.spec, run.model)
    optimizer = build_optimizer(model, options)
    progress = Progress()
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, model, optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    log = MetricsLog(folder, progress, accelerator)
    batches = task.train_batches(
        options.seed + _SEED_STRIDE * accelerator.process_index, first_step=progress.step
    )
    window = StepWindow(accelerator)
    metrics: dict[str, float] = {}
    evaluated_at = saved_at = -1
    status: Literal["finished", "reached", "interrupted"] = "finished"
    counted = False  # the first step compiles, and does not count

    def save() -> None:
        if accelerator.is_main_process:
            save_checkpoint(
                folder.checkpoints_path,
                accelerator.unwrap_model(model),
                optimizer,
                progress,
                keep=options.keep_checkpoints,
            )

    def measure() -> dict[str, float]:
        values = evaluate(model, task, accelerator)
        log.write("eval", values)
        display.note(f"step {progress.step}: " + _in_words(values))
        value = values[task.headline]
        if isfinite(value) and (progress.best is None or _better(task, value, progress.best)):
            progress.best = value
            if accelerator.is_main_process:
                folder.save_model(accelerator.unwrap_model(model), best=True)
        return values

    with display, closing(log), _interrupts() as interrupted:
        model.train()
        while (spent := _agreed(accelerator, _spent(progress, options))) < 1:
            begin = time.perf_counter()
            batch = {name: value.to(accelerator.device) for name, value in next(batches).items()}
            rate = options.learning_rate * learning_rate_share(spent, options)
            set_learning_rate(optimizer, rate)
            loss = task.loss(compute_logits(model, batch), batch)
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(model.parameters(), options.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            progress.step += 1
            window.add(loss.detach(), norm)

            is_last = _spent(progress, options) >= 1
            is_due = progress.step % options.log_every == 0
            evaluates = progress.step % options.evaluate_every == 0
            saves = progress.step % options.checkpoint_every == 0
            stops = bool(_agreed(accelerator, float(interrupted.is_set())))
            if is_due or evaluates or saves or is_last or stops:
                window.require_finite(progress, rate, model, batch, folder)
            if counted:
                progress.seconds += (seconds := time.perf_counter() - begin)
                window.add_time(seconds, batch)
            counted = True
            if is_due:
                values = window.take()
                log.write("train", {**values, "learning_rate": rate})
                remaining = _remaining(progress, options)
                display.update(_spent(progress, options), _in_words(values), remaining)
            if evaluates and not stops:
                metrics, evaluated_at = measure(), progress.step
            if saves:
                save()
                saved_at = progress.step
            if stops:
                status = "interrupted"
                break
            if evaluated_at == progress.step and _reached(task, metrics, options):
                status = "reached"
                break

        if status != "interrupted" and evaluated_at != progress.step:
            metrics = measure()
            if _reached(task, metrics, options):
                status = "reached"
        if saved_at != progress.step:
            save()
        if accelerator.is_main_process:
            folder.save_model(accelerator.unwrap_model(model), best=False)
        accelerator.wait_for_everyone()
    return Outcome(
        status=status,
        folder=folder,
        step=progress.step,
        metrics=metrics,
        is_main_process=accelerator.is_main_process,
    )


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a request to stop after the step; a second one stops at once."""
    requested = threading.Event()

    def request(*_: object) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    if threading.current_thread() is not threading.main_thread():
        yield requested  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGINT, request)
    try:
        yield requested
    finally:
        signal.signal(signal.SIGINT, before)


def _accelerator(options: TrainingOptions) -> Accelerator:
    precision = "bf16" if options.precision == "bfloat16" else "no"
    # Without cpu=True accelerate takes several processes on a machine without a GPU for one each.
    return Accelerator(mixed_precision=precision, cpu=not torch.accelerator.is_available())


def _display(title: str, console: Console | None, accelerator: Accelerator) -> Display:
    return Display(title, console if accelerator.is_main_process else Console(quiet=True))


def _agreed(accelerator: Accelerator, value: float) -> float:
    """Return the mean of `value` over the processes, which must all decide alike."""
    if accelerator.num_processes == 1:
        return value
    shared = torch.tensor(value, device=accelerator.device)
    return accelerator.reduce(shared, reduction="mean").item()


def _spent(progress: Progress, options: TrainingOptions) -> float:
    """Return the share of the budget that is spent, by steps or by seconds, whichever is more."""
    by_steps = progress.step / options.max_steps if options.max_steps else 0.0
    by_seconds = progress.seconds / options.max_seconds if options.max_seconds else 0.0
    return max(by_steps, by_seconds)


def _remaining(progress: Progress, options: TrainingOptions) -> float:
    """Return the seconds of training that remain at the rate so far."""
    spent = _spent(progress, options)
    return progress.seconds * (1 - spent) / spent if spent > 0 else 0.0


def _better(task: Any, value: float, than: float) -> bool:
    return value > than if task.higher_is_better else value < than


def _reached(task: Any, metrics: dict[str, float], options: TrainingOptions) -> bool:
    if options.stop_at is None:
        return False
    value = metrics[task.headline]
    return value >= options.stop_at if task.higher_is_better else value <= options.stop_at


def _in_words(values: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
