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

    def __init__(self, folder: RunFolder, accelerator: Accelerator) -> None:
        self.folder, self.is_main_process = folder, accelerator.is_main_process
        self.progress = Progress()
        self.writer: Any = None

    def begin(self, progress: Progress, *, also: Kind | None = None) -> None:
        """Go on from where a run stands: what was written after it is dropped, but for the kind
        `also`."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self.progress = progress
        if not self.is_main_process:
            return
        with explained_saving("the log", self.folder.path):
            lines, progress.lines = progress.lines, len(self.folder.read_metrics())
            progress.lines = self.folder.keep_metrics(lines, progress.step, also=also)
            self.writer = SummaryWriter(str(self.folder.path), purge_step=progress.step + 1)

    def write(self, kind: Kind, values: dict[str, float]) -> None:
        """Write one line, at the step where the run stands."""
        if not self.is_main_process:
            return
        where = {"step": self.progress.step, "seconds": round(self.progress.seconds, 3)}
        with explained_saving("the log", self.folder.path):
            self.folder.append_metrics({"kind": kind, **where, **values})
            self.progress.lines += 1
            # Put back when all is written; after a failure nothing more goes to TensorBoard.
            writer, self.writer = self.writer, None
            if writer is not None:
                for name, value in values.items():
                    writer.add_scalar(f"{kind}/{name}", value, self.progress.step)
                self.writer = writer

    def close(self) -> None:
        """Finish the TensorBoard file."""
        writer, self.writer = self.writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()
