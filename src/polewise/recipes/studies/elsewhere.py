"""A study of tasks on which neither the default of Focus nor a setting of it was chosen."""

from __future__ import annotations

from typing import Any

from polewise.recipes.studies.plan import in_steps, study_of
from polewise.recipes.studies.study import Comparison, Size, Study
from polewise.recipes.studies.systems import DEEP, MEMORIES, PEERS, equal_systems, mixers_named
from polewise.tasks import ForecastTask, InductionTask, ListOpsTask, SelectiveCopyTask, SeriesTask

_GENERATED = (3e-3, 1e-2)
_MEASURED = (1e-3, 3e-3)


def elsewhere(size: Size) -> Study:
    """Who is ahead where nothing was chosen: copying, induction, lists, vowels, forecasts?

    Two tasks of tokens in models of two layers, as in `table1`; then four in which Focus and
    Mamba-2 are stacked without feed-forwards, as in `audio`: ListOps of a size for a CPU and with
    the original's rules, on its test set. The gpu size has the published tasks.
    """
    if size == "cpu":
        copying = SelectiveCopyTask(length=64, num_tokens=4)
        # What is trained at one length is tested at longer ones too.
        induction = InductionTask(length=64, test_lengths="64,128,256,1024", batch_size=64)
        lists = ListOpsTask(min_length=32, max_length=128, max_arguments=5, num_eval=1000)
        forecast = ForecastTask(subtract_last=True, eval_stride=8)
    else:
        copying, induction, lists = SelectiveCopyTask(), InductionTask(), ListOpsTask()
        forecast = ForecastTask(subtract_last=True)
    original = ListOpsTask(
        source="d20s", min_length=0, max_length=1000, max_depth=20, max_arguments=5, num_eval=1000
    )
    return study_of(
        elsewhere,
        size,
        _comparison("selective-copy", copying, size, steps=(600, 20_000), seconds=110),
        _comparison("induction", induction, size, steps=(500, 20_000), seconds=130),
        _comparison("listops", lists, size, steps=(800, 20_000), seconds=170, deep=True),
        _comparison(
            "listops-d20s", original, size, steps=(800, 20_000), seconds=300, deep=True,
            rates=(3e-3,),
        ),
        _comparison(
            "vowels", SeriesTask(), size, steps=(300, 300), seconds=25, deep=True,
            rates=_MEASURED, num_seeds=3,
        ),
        _comparison(
            "etth1", forecast, size, steps=(250, 2500), seconds=130, deep=True, rates=_MEASURED
        ),
    )  # fmt: skip


def _comparison(
    name: str,
    task: Any,
    size: Size,
    *,
    steps: tuple[int, int],
    seconds: float,
    deep: bool = False,
    rates: tuple[float, ...] = _GENERATED,
    num_seeds: int = 1,
) -> Comparison:
    cpu = size == "cpu"
    names: tuple[str, ...] = (*PEERS, *MEMORIES, "focus-fixed-filters", "attention-conv")
    names = (*names, *(("mamba2-deep",) if deep else ()))
    return Comparison(
        name=name,
        task=task,
        systems=equal_systems(
            task.spec,
            mixers_named(*names, chunk_length=32, length=task.spec.length),
            dim=64 if cpu else 256,
            num_layers=2 if cpu else 6,
            deep=DEEP if deep else (),
        ),
        training=in_steps(steps[0] if cpu else steps[1]),
        learning_rates=rates,
        num_seeds=num_seeds,
        expected_seconds=seconds if cpu else None,
    )
