"""What a launcher (accelerate, torchrun, a scheduler) has started, as the loop sees it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch.distributed import DistError

from polewise.training.errors import LostProcessError, TrainingError
from polewise.training.run import TrainingOptions

_SECONDS_TO_ANSWER = 600.0
_A_YEAR = 365 * 86400.0

_told_by_a_run = False
"""Whether it was a run that told accelerate how this process works."""


def join_processes(options: TrainingOptions) -> Accelerator:
    """Meet the other processes of this launch, if there are any.

    Raises:
        ValueError: the launcher asks for an engine that a run cannot use, or for a precision or
            compilation that the run does not.
        LostProcessError: they do not come.
    """
    _require_engine(options)
    # accelerate would shard in a way of its own, and on GPUs only; see `asks_for_sharding`.
    asked = os.environ.pop("ACCELERATE_USE_FSDP", None)
    # A process may wait for another's data; one that is silent for longer is lost.
    waits = options.accumulate * options.data_timeout + _SECONDS_TO_ANSWER
    patience = timedelta(seconds=min(waits, _A_YEAR))
    # accelerate keeps the precision of the first run of a process, and refuses another. What a
    # caller has told it stays; that the processes have met stays too.
    global _told_by_a_run
    if _told_by_a_run:
        AcceleratorState._reset_state()
    _told_by_a_run = not AcceleratorState._shared_state
    try:
        with naming_lost_processes():
            return Accelerator(
                mixed_precision="bf16" if options.precision == "bfloat16" else "no",
                # Without it accelerate takes processes on a machine without a GPU for one each.
                cpu=not torch.accelerator.is_available(),
                kwargs_handlers=[InitProcessGroupKwargs(timeout=patience)],
            )
    finally:
        if asked is not None:
            os.environ["ACCELERATE_USE_FSDP"] = asked


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Turn an exchange that failed, because another process has gone, into a LostProcessError."""
    try:
        yield
    except TrainingError:  # ours, whatever its paths are called
        raise
    except RuntimeError as error:
        if not isinstance(error, DistError) and not re.search("gloo|nccl", str(error), re.I):
            raise
        reason = str(error).splitlines()[0].split("] ", 1)[-1].split(". ")[0]
        raise LostProcessError(
            "every process of the run must go on; another has ended or does not answer. Look at "
            "its own messages, then resume the run: it goes on from the newest checkpoint. "
            f"({reason})"
        ) from error


def asks_for_sharding(options: TrainingOptions) -> bool:
    """Whether parameters are to be sharded: the options say so, or `accelerate launch` does."""
    return options.shard_parameters or os.environ.get("ACCELERATE_USE_FSDP") == "true"


def _require_engine(options: TrainingOptions) -> None:
    """Raise ValueError for what `accelerate launch` can be told and the loop cannot do, or is told
    by options of its own."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", "bf16" if options.precision == "bfloat16" else "no"):
        raise ValueError(
            f"the launcher must not choose the precision; it asks for {precision}, the run for "
            f"{options.precision}. Launch with --mixed_precision no; a new run chooses by "
            "--precision."
        )
    dynamo = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if dynamo != "no":
        raise ValueError(
            f"the launcher must not compile the model; it asks for {dynamo}. Launch with "
            "--dynamo_backend no; a new run chooses by --compile."
        )
    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}") == "true":
            raise ValueError(
                f"the launcher must use data parallel or FSDP2; it asks for {name}, which the "
                "training loop does not know."
            )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and os.environ.get("FSDP_VERSION") != "2":
        raise ValueError(
            "the launcher must use FSDP version 2 (--fsdp_version 2); it asks for version "
            f"{os.environ.get('FSDP_VERSION', '1')}."
        )
