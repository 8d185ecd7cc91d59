"""One process's part in a run: what is there while it trains, and what can be done with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import isfinite
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from polewise.layers.sharding import shard_sequence, unshard_sequence
from polewise.models.backbone import Backbone
from polewise.models.block import Block
from polewise.replace_file import flush
from polewise.tasks import Batch, TextTask, is_better
from polewise.training.building import build_model
from polewise.training.checkpoint import (
    checkpoint_limit,
    find_checkpoint,
    forget_checkpoints_after,
    load_checkpoint,
    named_optimizer_state,
    save_checkpoint,
)
from polewise.training.data_source import DataSource
from polewise.training.diagnosis import diagnose, first_bad_optimizer_state, first_bad_parameter
from polewise.training.display import Display, format_number
from polewise.training.errors import NonFiniteError, SaveError, StalledError, explained_saving
from polewise.training.evaluation import compute_logits, evaluate
from polewise.training.fully_sharded import (
    gather_parameters,
    shard_parameters,
    spread_parameters,
    whole_tensor,
)
from polewise.training.launch import asks_for_sharding
from polewise.training.log import Kind, MetricsLog
from polewise.training.optimizer import build_optimizer, set_learning_rate
from polewise.training.progress import Progress, StepWindow, remaining_seconds, spent_share
from polewise.training.random_state import seed_everything
from polewise.training.run import Run
from polewise.training.run_folder import RunFolder
from polewise.training.stopping import StopRequest

# Every process draws its own batches, unless all work on the same: seeds a large prime apart.
_SEED_STRIDE = 1_000_003
_MOST_ROLLBACKS = 3


class _StopEvaluationError(Exception):
    """Someone has asked to stop, in all processes alike."""


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
        self.run, self.task, self.options = run, run.task, run.training
        self.folder, self.accelerator, self.display = folder, accelerator, display
        several = accelerator.num_processes > 1
        self.splits = several and self.options.split_sequence
        self.is_sharded = several and asks_for_sharding(self.options)
        seed_everything(self.options.seed)
        self.model, self.optimizer = self._prepare(build_model(self.task.spec, run.model))
        self.progress = Progress() if checkpoint is None else self._load(checkpoint)
        self.metrics: dict[str, float] = {}
        self.complaints: set[str] = set()
        self.log = MetricsLog(folder, accelerator)
        self.begin_where_it_stands()

    def _prepare(self, model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Lay the model out as the options ask; make its optimiser."""
        options, accelerator = self.options, self.accelerator
        if self.splits:
            shard_sequence(model)
        for part in model.modules():
            if isinstance(part, Backbone):
                part.gradient_checkpointing = options.checkpoint_activations
            if isinstance(part, Block) and options.compile:
                part.compile()
        if not self.is_sharded:
            return accelerator.prepare(model, build_optimizer(model, options))
        # As in evaluation: on its device, in its precision, and not data parallel as well.
        model = accelerator.prepare_model(model, evaluation_mode=True)
        shard_parameters(model, accelerator.device, accelerator.num_processes)
        return model, accelerator.prepare_optimizer(build_optimizer(model, options))

    def _load(self, checkpoint: Path) -> Progress:
        """Restore everything from a checkpoint; return where it stands."""
        if not self.is_sharded:
            return load_checkpoint(checkpoint, self.bare_model, self.optimizer)
        whole = self._copy_of_model("cpu")
        progress = load_checkpoint(checkpoint, whole, self.optimizer)
        spread_parameters(whole, self.bare_model)
        return progress

    def _copy_of_model(self, device: str) -> nn.Module:
        """Return a model like this one, untouched by what distributes or compiles it."""
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return build_model(self.task.spec, self.run.model)

    def whole_model(self) -> nn.Module:
        """Return the model with whole parameters, to be saved by the main process.

        All processes must ask; where parameters are sharded the others get one without numbers.
        """
        if not self.is_sharded:
            return self.bare_model
        whole = self._copy_of_model("cpu" if self.accelerator.is_main_process else "meta")
        gather_parameters(self.bare_model, whole)
        return whole

    def begin_where_it_stands(self, *, also: Kind | None = None) -> None:
        """Let the log and the data go on from the run's progress; lines of the kind `also` stay."""
        self.evaluated_at = self.saved_at = -1
        with self.tolerance():
            self.log.begin(self.progress, also=also)
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
        batches, error = None, None
        try:
            batches = self.source.take(self.options.accumulate, stop)
        except Exception as failed:
            error = failed
        if self.all_say(batches is not None) and batches is not None:
            device = self.accelerator.device
            return [{name: value.to(device) for name, value in batch.items()} for batch in batches]
        if not self.any_says(error is not None):
            return None
        if self.any_says(self.saved_at != self.progress.step):
            self.save()
        if error is not None and not isinstance(error, StalledError | ValueError):
            raise error
        kind = ValueError if isinstance(error, ValueError) else StalledError
        raise kind(
            f"{error or 'the data of another process failed.'} The run is saved at step "
            f"{self.progress.step}; resume it when the data is as it should be."
        ) from error

    def take_step(self, batches: list[Batch], rate: float) -> None:
        """Go one step along the mean gradient of the batches; skip it if that is not finite."""
        options, progress, accelerator = self.options, self.progress, self.accelerator
        set_learning_rate(self.optimizer, rate)
        if rank := accelerator.process_index:
            # Masks of its own: a checkpoint holds the main process's generators alone.
            torch.manual_seed(options.seed + _SEED_STRIDE * rank + progress.data_step)
        total = torch.zeros((), device=accelerator.device)
        for number, batch in enumerate(batches, start=1):
            is_last = number == len(batches)
            with nullcontext() if is_last else accelerator.no_sync(self.model):
                loss = self.task.loss(compute_logits(self.model, batch), batch) / len(batches)
                accelerator.backward(loss)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(self.model.parameters(), options.clip_norm)
        norm = whole_tensor(norm)
        # Reading two numbers is the one time in a step that a GPU is waited for.
        loss_value, norm_value = torch.stack([total, norm.to(total)]).tolist()
        healthy = self.all_say(isfinite(loss_value) and isfinite(norm_value))

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
        """Whether too many steps were skipped or, where it `looks`, a parameter or one of its
        averages is not finite."""
        if self.progress.skipped_in_a_row >= self.options.skip_limit:
            return True
        if not looks:
            return False
        model = self.bare_model
        bad = first_bad_parameter(model) or first_bad_optimizer_state(model, self.optimizer)
        return self.any_says(bad is not None)

    def roll_back(self, batches: list[Batch], rate: float) -> None:
        """Go back to the last good checkpoint, on with data not seen yet and half the rate.

        Raises:
            NonFiniteError: with a diagnosis, where the options or the past do not allow that.
        """
        self.accelerator.wait_for_everyone()  # until the main process has saved what it saves
        before = self.progress
        first = before.step - max(before.skipped_in_a_row, 1) + 1
        try:
            last = find_checkpoint(
                self.folder.checkpoints_path,
                before=first,
                max_bytes=checkpoint_limit(self.bare_model),
                note=self.display.note,
            )
            kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        except ValueError as error:
            last, kept = None, str(error)
        may = self.options.on_skip_limit == "roll_back" and before.rollbacks < _MOST_ROLLBACKS
        what = (
            "the loss or its gradient" if before.skipped_in_a_row else "the model or its optimiser"
        )
        found = (
            f"{what} became NaN or infinite at step {first}; "
            f"{self.diagnosis(batches, rate)}; nothing of it was saved"
        )
        if last is None or not may:
            raise NonFiniteError(f"{found}, {kept}")
        self.display.note(f"{found}; back to {last} with half the learning rate")
        self.source.close()
        self.accelerator.wait_for_everyone()  # until all have chosen the same
        if self.accelerator.is_main_process:
            with self.tolerance():
                forget_checkpoints_after(last)
        self.progress = self._load(last)
        self.progress.data_step = before.data_step
        self.progress.skipped, self.progress.best = before.skipped, before.best
        self.progress.skipped_in_a_row = 0
        self.progress.rollbacks = before.rollbacks + 1
        self.begin_where_it_stands(also="roll_back")
        self.write("roll_back", {"from_step": before.step, "rollbacks": self.progress.rollbacks})

    def diagnosis(self, batches: list[Batch], rate: float) -> str:
        """Return where NaN or infinity came from, in words."""
        model = self.bare_model
        bad_state = None
        if first_bad_parameter(model) is None:
            bad_state = first_bad_optimizer_state(model, self.optimizer)
        if self.splits or self.is_sharded or self.options.compile:
            # `diagnose` hooks single modules, which are split, sharded or compiled here.
            whole = self._copy_of_model("cpu")
            gather_parameters(model, whole)
            model = whole
            batches = [{name: value.cpu() for name, value in batch.items()} for batch in batches]
        found = diagnose(model, self.task, batches, rate)
        return found if bad_state is None else f"{bad_state}; {found}"

    def measure(self, stop: StopRequest) -> bool:
        """Evaluate, and keep the model if it is the best so far.

        Return False if someone asked to stop before the end. Then, and where the data fails or
        memory runs out, the evaluation is owed: whoever resumes begins with it.
        """
        task, progress = self.task, self.progress
        progress.owes_evaluation = True

        def look_up() -> None:
            if self.any_says(stop.signal is not None):
                raise _StopEvaluationError

        if self.splits:
            unshard_sequence(self.bare_model)
        try:
            self.metrics = evaluate(self.model, task, self.accelerator, before_batch=look_up)
        except _StopEvaluationError:
            return False
        except Exception:
            if self.accelerator.num_processes == 1:  # of several the others know nothing of it
                self.save()
            raise
        finally:
            if self.splits:
                shard_sequence(self.bare_model)
        self.evaluated_at = progress.step
        progress.owes_evaluation = False
        self.write("eval", {k: v for k, v in self.metrics.items() if isfinite(v)})
        self.display.note(f"step {progress.step}: " + _in_words(self.metrics))
        value = self.metrics[task.headline]
        if isfinite(value) and (progress.best is None or is_better(task, value, progress.best)):
            saved = False
            with self.tolerance():
                self.save_model(best=True)
                saved = True
            # Only the main process writes; whether there is a better one yet is for all to know.
            if self.all_say(saved):
                progress.best = value
        return True

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
        """Write a checkpoint. All processes must, and the main one does."""
        model, writes = self.whole_model(), self.accelerator.is_main_process
        optimizer_state = {
            name: value.cpu() for name, value in named_optimizer_state(self.optimizer) if writes
        }
        if writes:
            if self.folder.metrics_path.exists():  # a checkpoint counts its lines
                with explained_saving("the log", self.folder.path):
                    flush(self.folder.metrics_path)
            save_checkpoint(
                self.folder.checkpoints_path,
                model,
                optimizer_state,
                self.progress,
                # In the middle of trouble none goes: a roll back needs one from before.
                keep=None if self.progress.skipped_in_a_row else self.options.keep_checkpoints,
            )
        self.saved_at = self.progress.step

    def save_model(self, *, best: bool) -> None:
        """Write the model for `from_pretrained`; that of a text with the tokenizer of bytes.

        All processes must, and the main one does.
        """
        model = self.whole_model()
        if self.accelerator.is_main_process:
            tokenizer = None
            if isinstance(self.task, TextTask):
                from polewise.models.tokenizer import byte_tokenizer

                tokenizer = byte_tokenizer()
            self.folder.save_model(model, best=best, tokenizer=tokenizer)

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
        return self.evaluated_at == self.progress.step and self.run.is_reached(self.metrics)

    def spent(self) -> float:
        """Return the share of the budget that is spent, the same in all processes."""
        return self._mean(spent_share(self.progress, self.options))

    def all_say(self, value: bool) -> bool:
        """Whether it is so in every process; all must ask, and all get the same answer."""
        return self._mean(float(value)) == 1

    def any_says(self, value: bool) -> bool:
        """Whether it is so in one process at least; all must ask, and all get the same answer."""
        return self._mean(float(value)) > 0

    def _mean(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        shared = torch.tensor(value, device=self.accelerator.device)
        return self.accelerator.reduce(shared, reduction="mean").item()


def _in_words(values: dict[str, float]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {format_number(value)}" for name, value in values.items()
    )
