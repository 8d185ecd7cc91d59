"""Thousands of configurations or files, in processes that may crash, hang or run out of memory."""

from __future__ import annotations

import io
import random
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.faults.configurations import random_configuration, try_configuration
from benchmarks.faults.files import prepare_files, try_file
from benchmarks.faults.processes import processes, started

SECONDS_TO_HANG = 120
MOST_MEMORY = 12 * 2**30
"""Address space of a process that tries inputs: one that asks for more fails, and alone."""


def try_many(
    what: str, count: int, seed: int, folder: Path, step: Callable[[], object] = lambda: None
) -> dict[str, int]:
    """Try `count` configurations or files in processes of their own; count what came of them.

    Raises:
        AssertionError: a process crashed, hung, or met what is not documented.
    """
    answers: Counter[str] = Counter()
    batch = 250
    for first in range(0, count, batch):
        numbers = range(first, min(first + batch, count))
        receiver, sender = processes().Pipe(duplex=False)
        with started(_try_batch, what, seed, numbers, str(folder), sender) as process:
            sender.close()
            for number in numbers:
                assert receiver.poll(SECONDS_TO_HANG), f"{what} {number} of seed {seed} hangs"
                try:
                    answer = receiver.recv()
                except EOFError:
                    process.join()
                    raise AssertionError(
                        f"{what} {number} of seed {seed}: crashed with {process.exitcode}"
                    ) from None
                assert not answer.startswith("UNDOCUMENTED"), answer
                answers[answer] += 1
                step()
            answers["most megabytes"] = max(answers["most megabytes"], receiver.recv())
    return dict(answers)


def _try_batch(what: str, seed: int, numbers: range, folder: str, sender: Any) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    with tempfile.TemporaryDirectory(dir=folder) as own:
        if what == "files":
            prepare_files(Path(own))
        sys.stdout = sys.stderr = io.StringIO()
        for number in numbers:
            chance = random.Random(f"{what} {seed} {number}")
            try:
                if what == "files":
                    answer = try_file(Path(own), chance)
                else:
                    answer = try_configuration(random_configuration(chance), Path(own))
            except BaseException as error:
                answer = f"UNDOCUMENTED {what} {number} of seed {seed}: {error!r}"
            sender.send(answer)
        sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
