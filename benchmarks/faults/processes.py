"""A process of its own for every run and every reading, so that a crash is seen and counted."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import multiprocessing.process
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PRELOADED = [
    "polewise.models.huggingface", "polewise.recipes", "rich.progress", "torch.utils.tensorboard",
]  # fmt: skip


def processes() -> multiprocessing.context.ForkServerContext:
    """Return a way to start processes in milliseconds: forks of one that imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@contextmanager
def started(target: Callable, *arguments: Any) -> Iterator[multiprocessing.process.BaseProcess]:
    """A process that is not there any more afterwards."""
    process = processes().Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield process
    finally:
        if process.is_alive():
            process.kill()
        process.join()
