"""What a run writes down while it trains."""

from __future__ import annotations

from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from polewise.tasks import Batch
from polewise.training.checkpoint import NonFiniteError, Progress, require_finite
from polewise.training.run_folder import RunFolder


class MetricsLog:
    """`metrics.jsonl` and TensorBoard, written by the main process only."""

    def __init__(self, folder: RunFolder, progress: Progress, accelerator: Accelerator) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.progress = folder, progress
        self.writer: Any = None
        if accelerator.is_main_process:
            folder.forget_metrics_after(progress.step)
            self.writer = SummaryWriter(str(folder.path), purge_step=progress.step + 1)

    def write(self, kind: Literal["train", "eval"], values: dict[str, float]) -> None:
        """Write one line, at the step where the run stands."""
        if self.writer is None:
            return
        where = {"step": self.progress.step, "seconds": round(self.progress.seconds, 3)}
        self.folder.append_metrics({"kind": kind, **where, **values})
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, self.progress.step)

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self.writer is not None:
            self.writer.close()


class StepWindow:
    """The steps since the last line of the log. Sums are kept on the device: reading them after
    every step would stall a GPU."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.device, self.processes = accelerator.device, accelerator.num_processes
        self.healthy = torch.ones((), dtype=torch.bool, device=self.device)
        self._clear()

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Count one step."""
        self.steps += 1
        self.loss += loss
        self.norm += norm
        self.healthy &= torch.isfinite(loss) & torch.isfinite(norm)
        self.healthy_steps += self.healthy

    def add_time(self, seconds: float, batch: Batch) -> None:
        """Count the time of one step, and the positions it went through in all processes."""
        self.seconds += seconds
        self.positions += self.processes * batch["inputs"].shape[0] * batch["inputs"].shape[1]

    def take(self) -> dict[str, float]:
        """Return the means over the window, and begin the next one."""
        values = {
            "loss": self.loss.item() / self.steps,
            "gradient_norm": self.norm.item() / self.steps,
        }
        if self.seconds:
            values["positions_per_second"] = self.positions / self.seconds
        self._clear()
        return values

    def require_finite(
        self, progress: Progress, rate: float, model: nn.Module, batch: Batch, folder: RunFolder
    ) -> None:
        """Raise NonFiniteError, with what can be told about the cause, unless all went well."""
        try:
            if bool(self.healthy):
                return require_finite(model)
            step = progress.step - self.steps + int(self.healthy_steps) + 1
            what = f"the loss or its gradient became NaN or infinite at step {step}"
        except NonFiniteError as error:
            what = f"{error} at step {progress.step}"
        inputs = batch["inputs"]
        if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
            cause = "the inputs of the batch are not finite: look at the data"
        else:
            cause = f"the learning rate was {rate:.2g}: try a smaller one or a longer warm-up"
        last = folder.last_checkpoint()
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise NonFiniteError(f"{what}; {cause}; nothing of it was saved, {kept}")

    def _clear(self) -> None:
        self.steps = self.positions = 0
        self.seconds = 0.0
        self.loss = torch.zeros((), device=self.device)
        self.norm = torch.zeros((), device=self.device)
        self.healthy_steps = torch.zeros((), dtype=torch.int64, device=self.device)
