"""What is compared gets the same: batches, and within seconds the same cores and threads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from polewise.options import require_at_least
from polewise.recipes.studies.ledger import Ledger
from polewise.recipes.studies.study import Study
from polewise.recipes.studies.trial_run import processes
from polewise.training.environment import describe_environment


def require_places(study: Study, jobs: int) -> None:
    """Raise ValueError where a budget in seconds would be shared by runs on one core or GPU."""
    gpus = torch.cuda.device_count()
    places = gpus or _usable_cores()
    require_at_least("jobs", jobs, 1)
    if jobs > 1 and processes().num_processes > 1:
        raise ValueError(
            f"jobs must be 1 where {processes().num_processes} processes were launched to train "
            f"each run together; got {jobs}."
        )
    timed = [each.name for each in study.comparisons if each.training.max_seconds is not None]
    if timed and jobs > places:
        what = "GPUs" if gpus else "cores"
        raise ValueError(
            f"jobs must be at most {places}, the {what} that this process may use: {timed[0]} has "
            f"a budget in seconds, which runs that share one would not have equally; got {jobs}."
        )


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require_alike(ledger: Ledger, jobs: int) -> None:
    """Raise ValueError where runs would have more, or less, than those they are compared with:
    batches, or threads and processor where the budget is in seconds."""
    threads = 1 if jobs > 1 else torch.get_num_threads()
    coming = [trial.comparison for trial in (*ledger.left(), *ledger.to_come())]
    names = {each.name for each in coming}
    timed = {each.name for each in coming if each.training.max_seconds is not None}
    here = _computes_with(describe_environment())
    for row in ledger.results.rows.values():
        together = row.get("num_processes", 1)
        if row["comparison"] in names and together != processes().num_processes:
            raise ValueError(
                f"each run must be trained by {together} process(es), as those of "
                f"{row['comparison']} in {ledger.results.path} were, for each draws batches of its "
                f"own; got {processes().num_processes}. Start as many, or choose another --out."
            )
        machine = _computes_with(row["environment"])
        if row["comparison"] in timed and machine not in (None, here):
            raise ValueError(
                f"a budget in seconds buys other steps on another machine: those of "
                f"{row['comparison']} in {ledger.results.path} had {machine}, this one has {here}. "
                "Choose another --out."
            )
        before = row["environment"]["num_threads"]
        if row["comparison"] in timed and before != threads:
            how = "--jobs 2" if before == 1 else "--jobs 1"
            raise ValueError(
                f"jobs must give every run {before} thread(s), as those of {row['comparison']} in "
                f"{ledger.results.path} had, for their budget is in seconds; got {threads}. Choose "
                f"{how} with OMP_NUM_THREADS={before}, or another --out."
            )


def _computes_with(environment: Mapping[str, Any]) -> str | None:
    """GPUs, or the instructions of the processor; older rows do not say these."""
    return ", ".join(sorted(set(environment["gpus"]))) or environment.get("vector_instructions")
