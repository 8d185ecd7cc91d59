"""One process's part in a run: what is there while it trains, and what can be done with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from polewise.layers.sharding import shard_sequence, whole_sequence
from polewise.tasks import Batch, TextTask
from polewise.training.checkpoint import (
    checkpoint_limit,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from polewise.training.data_source import DataSource
from polewise.training.diagnosis import diagnose, first_bad_parameter
from polewise.training.display import Display
from polewise.training.errors import NonFiniteError, SaveError, StalledError
from polewise.training.evaluation import compute_logits, evaluate
from polewise.training.log import Kind, MetricsLog
from polewise.training.optimizer import build_optimizer, set_learning_rate
from polewise.training.progress import Progress, StepWindow
from polewise.training.random_state import seed_everything
from polewise.training.run import Run, TrainingOptions, build_model
from polewise.training.run_folder import RunFolder
from polewise.training.stopping import StopRequest

# Every process draws its own batches, unless all work on the same: seeds a large prime apart.
_SEED_STRIDE = 1_000_003
_MOST_ROLLBACKS = 3


class Session:
    """Model, optimiser, data, log and progress of a run, and the verbs of the loop."""

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        checkpoint: Path | None,
        accelerator: Accelerator,
        display: Display,
    ) -> None:
        self.task, self.options = run.task, run.training
        self.folder, self.accelerator, self.display = folder, accelerator, display
        seed_everything(self.options.seed)
        model = build_model(self.task.spec, run.model)
        self.splits = self.options.split_sequence and accelerator.num_processes > 1
        if self.splits:
            shard_sequence(model)
        optimizer = build_optimizer(model, self.options)
        self.progress = Progress()
        if checkpoint is not None:
            self.progress = load_checkpoint(checkpoint, model, optimizer)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.metrics: dict[str, float] = {}
        self.complaints: set[str] = set()
        self.begin_where_it_stands()

    def begin_where_it_stands(self) -> None:
        """Let the log and the data go on from the run's progress."""
        self.evaluated_at = self.saved_at = -1
        self.log = MetricsLog(self.folder, self.progress, self.accelerator)
        stream = 0 if self.splits else self.accelerator.process_index
        batches = self.task.train_batches(
            self.options.seed + _SEED_STRIDE * stream,
            first_step=self.progress.data_step * self.options.accumulate,
        )
        self.source = DataSource(batches, self.options.data_timeout)

    def close(self) -> None:
        """Let go of the data, and finish the TensorBoard file."""
        self.source.close()
        self.log.close()

    def take_batches(self, stop: StopRequest) -> list[Batch] | None:
        """Return the batches of one step, on the device; None if asked to stop before they came.

        Where the data fails nothing of the step has begun, so the run is saved as it stands.
        """
        try:
            batches = self.source.take(self.options.accumulate, stop)
        except (StalledError, ValueError) as error:
            if self.saved_at != self.progress.step:
                self.save()
            kind = StalledError if isinstance(error, StalledError) else ValueError
            raise kind(
                f"{error} The run is saved at step {self.progress.step}; resume it when the data "
                "is as it should be."
            ) from error
        if batches is None:
            return None
        device = self.accelerator.device
        return [{name: value.to(device) for name, value in batch.items()} for batch in batches]

    def take_step(self, batches: list[Batch], rate: float) -> None:
        """Go one step along the mean gradient of the batches; skip it if that is not finite."""
        options, progress, accelerator = self.options, self.progress, self.accelerator
        set_learning_rate(self.optimizer, rate)
        total = torch.zeros((), device=accelerator.device)
        for left, batch in zip(range(len(batches) - 1, -1, -1), batches, strict=True):
            with accelerator.no_sync(self.model) if left else nullcontext():
                loss = self.task.loss(compute_logits(self.model, batch), batch) / len(batches)
                accelerator.backward(loss)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(self.model.parameters(), options.clip_norm)
        # Reading two numbers is the one time in a step that a GPU is waited for.
        loss_value, norm_value = torch.stack([total, norm.to(total)]).tolist()
        healthy = self.agreed(float(isfinite(loss_value) and isfinite(norm_value))) == 1

        progress.step += 1
        progress.data_step += 1
        if healthy:
            self.optimizer.step()
            progress.skipped_in_a_row = 0
            progress.window.add(loss_value, norm_value)
            if (expected := progress.usual.add(loss_value)) is not None:
                self.write("spike", {"loss": loss_value, "expected": expected})
        else:
            progress.skipped += 1
            progress.skipped_in_a_row += 1
            self.write("skip", {"in_a_row": progress.skipped_in_a_row, "in_all": progress.skipped})
        self.optimizer.zero_grad()

    def has_diverged(self, *, looks: bool) -> bool:
        """Whether too many steps were skipped or, where it `looks`, a parameter is not finite."""
        if self.progress.skipped_in_a_row >= self.options.skip_limit:
            return True
        return looks and first_bad_parameter(self.bare_model) is not None

    def roll_back(self, batches: list[Batch], rate: float) -> None:
        """Go back to the last good checkpoint, on with data not seen yet and half the rate.

        Raises:
            NonFiniteError: with a diagnosis, where the options or the past do not allow that.
        """
        self.accelerator.wait_for_everyone()  # until the main process has saved what it saves
        before = self.progress
        try:
            last = find_checkpoint(
                self.folder.checkpoints_path,
                max_bytes=checkpoint_limit(self.bare_model),
                note=self.display.note,
            )
            kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        except ValueError as error:
            last, kept = None, str(error)
        may = self.options.on_skip_limit == "roll_back" and before.rollbacks < _MOST_ROLLBACKS
        what = "the loss or its gradient" if before.skipped_in_a_row else "a parameter"
        first = before.step - max(before.skipped_in_a_row, 1) + 1
        found = (
            f"{what} became NaN or infinite at step {first}; "
            f"{diagnose(self.bare_model, self.task, batches, rate)}; nothing of it was saved"
        )
        if last is None or not may:
            raise NonFiniteError(f"{found}, {kept}")
        self.display.note(f"{found}; back to {last} with half the learning rate")
        self.close()
        self.progress = load_checkpoint(last, self.bare_model, self.optimizer)
        self.progress.data_step = before.data_step
        self.progress.skipped, self.progress.best = before.skipped, before.best
        self.progress.rollbacks = before.rollbacks + 1
        self.begin_where_it_stands()
        self.write("roll_back", {"from_step": before.step, "rollbacks": self.progress.rollbacks})

    def measure(self) -> None:
        """Evaluate, and keep the model if it is the best so far."""
        task, progress = self.task, self.progress
        if self.splits:
            whole_sequence(self.bare_model)
        self.metrics = evaluate(self.model, task, self.accelerator)
        if self.splits:
            shard_sequence(self.bare_model)
        self.evaluated_at = progress.step
        progress.owes_evaluation = False
        self.write("eval", {k: v for k, v in self.metrics.items() if isfinite(v)})
        self.display.note(f"step {progress.step}: " + _in_words(self.metrics))
        value = self.metrics[task.headline]
        if isfinite(value) and (progress.best is None or _better(task, value, progress.best)):
            with self.tolerance():
                self.save_model(best=True)
                progress.best = value

    def log_window(self, rate: float) -> None:
        """Log the means since the last line, and begin the next window."""
        progress, options = self.progress, self.options
        values = progress.window.means()
        progress.window = StepWindow()
        if values:
            self.write("train", {**values, "learning_rate": rate})
            status = _in_words(values)
        else:
            status = f"the last {progress.skipped_in_a_row} steps were skipped"
        self.display.update(
            spent_share(progress, options), status, remaining_seconds(progress, options)
        )

    def save(self) -> None:
        """Write a checkpoint."""
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.folder.checkpoints_path,
                self.bare_model,
                self.optimizer,
                self.progress,
                keep=self.options.keep_checkpoints,
            )
        self.saved_at = self.progress.step

    def save_model(self, *, best: bool) -> None:
        """Write the model for `from_pretrained`; that of a text with the tokenizer of bytes."""
        if self.accelerator.is_main_process:
            tokenizer = None
            if isinstance(self.task, TextTask):
                from polewise.models.tokenizer import byte_tokenizer

                tokenizer = byte_tokenizer()
            self.folder.save_model(self.bare_model, best=best, tokenizer=tokenizer)

    def write(self, kind: Kind, values: dict[str, float]) -> None:
        """Write a line of the log."""
        with self.tolerance():
            self.log.write(kind, values)

    @contextmanager
    def tolerance(self) -> Iterator[None]:
        """Train on after a failed write if the options say so; make each complaint once."""
        try:
            yield
        except SaveError as error:
            if self.options.on_save_error == "stop":
                raise
            if str(error) not in self.complaints:
                self.complaints.add(str(error))
                self.display.note(f"step {self.progress.step}: {error} Training goes on.")

    @property
    def bare_model(self) -> nn.Module:
        """The model without what distributes it."""
        return self.accelerator.unwrap_model(self.model)

    def has_reached_target(self) -> bool:
        """Whether the evaluation of this step satisfies `stop_at`."""
        if self.options.stop_at is None or self.evaluated_at != self.progress.step:
            return False
        value, target = self.metrics[self.task.headline], self.options.stop_at
        return value == target or _better(self.task, value, target)

    def spent(self) -> float:
        """Return the share of the budget that is spent, the same in all processes."""
        return self.agreed(spent_share(self.progress, self.options))

    def agreed(self, value: float) -> float:
        """Return the mean of `value` over the processes, which must all decide alike."""
        if self.accelerator.num_processes == 1:
            return value
        shared = torch.tensor(value, device=self.accelerator.device)
        return self.accelerator.reduce(shared, reduction="mean").item()


def spent_share(progress: Progress, options: TrainingOptions) -> float:
    """Return the share of the budget that is spent, by steps or by seconds, whichever is more."""
    by_steps = progress.step / options.max_steps if options.max_steps else 0.0
    by_seconds = progress.seconds / options.max_seconds if options.max_seconds else 0.0
    return max(by_steps, by_seconds)


def remaining_seconds(progress: Progress, options: TrainingOptions) -> float:
    """Return the seconds of training that remain at the rate so far."""
    spent = spent_share(progress, options)
    return progress.seconds * (1 - spent) / spent if spent > 0 else 0.0


def _better(task: Any, value: float, than: float) -> bool:
    return value > than if task.higher_is_better else value < than


def _in_words(values: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
