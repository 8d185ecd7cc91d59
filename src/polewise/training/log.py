"""What a run writes down while it trains."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

from accelerate import Accelerator

from polewise.training.errors import explained_saving
from polewise.training.progress import Progress
from polewise.training.run_folder import RunFolder

Kind = Literal["train", "eval", "skip", "spike", "roll_back"]
"""What a line of `metrics.jsonl` is about."""


class MetricsLog:
    """`metrics.jsonl` and TensorBoard, written by the main process only.

    Raises:
        SaveError: from every method but `close`, when something cannot be written. TensorBoard's
            file then ends; `metrics.jsonl` goes on as soon as it can.
    """

    def __init__(self, folder: RunFolder, progress: Progress, accelerator: Accelerator) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.progress = folder, progress
        self.is_main_process = accelerator.is_main_process
        self.writer: Any = None
        if self.is_main_process:
            with explained_saving("the log", folder.path):
                folder.forget_metrics_after(progress.step)
                self.writer = SummaryWriter(str(folder.path), purge_step=progress.step + 1)

    def write(self, kind: Kind, values: dict[str, float]) -> None:
        """Write one line, at the step where the run stands."""
        if not self.is_main_process:
            return
        where = {"step": self.progress.step, "seconds": round(self.progress.seconds, 3)}
        with explained_saving("the log", self.folder.path):
            self.folder.append_metrics({"kind": kind, **where, **values})
            writer, self.writer = self.writer, None
            if writer is not None:
                for name, value in values.items():
                    writer.add_scalar(f"{kind}/{name}", value, self.progress.step)
                self.writer = writer

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self.writer is not None:
            with contextlib.suppress(OSError):
                self.writer.close()
