"""The study of what a step costs."""

from __future__ import annotations

from polewise.recipes.studies.plan import in_steps, study_of
from polewise.recipes.studies.study import Comparison, Size, Study
from polewise.recipes.studies.systems import PEERS, RELATIVES, equal_systems, mixers_named
from polewise.tasks import RecallTask


def table5(size: Size) -> Study:
    """What does a training step take, in time and memory, as sequences grow? (paper, Table 5)

    Six steps of recall, one sequence at a time, for their cost alone: the accuracy says nothing.
    The memory is the whole process's; what does not fit is told and left out. Sequences are padded
    to the multiple of 64 after their length and two.
    """
    cpu = size == "cpu"

    def steps(length: int, seconds: float | None) -> Comparison:
        task = RecallTask(length=length, num_eval=1, batch_size=1, align_to=64)
        return Comparison(
            name=f"{length}",
            task=task,
            systems=equal_systems(
                task.spec,
                mixers_named(*PEERS, *RELATIVES, chunk_length=64, length=length),
                dim=64 if cpu else 256,
                num_layers=2 if cpu else 6,
            ),
            training=in_steps(6),
            learning_rates=(1e-3,),
            expected_seconds=seconds,
            subject="cost",
        )

    lengths: dict[int, float | None] = dict.fromkeys((2048, 8192, 32768, 131072))
    if cpu:
        lengths = {512: 10.0, 2048: 10.0, 8192: 30.0, 16384: 90.0}
    comparisons = (steps(*each) for each in lengths.items())
    return study_of(table5, size, *comparisons)
