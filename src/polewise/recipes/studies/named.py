"""The studies by name.

The `cpu` size of each takes at most three hours on two cores, that is six core hours, or 21,600
seconds of one core, grid and seeds included: `Study.total_seconds` adds up `expected_seconds` of
every run, and a test holds it to that. Those are means over the committed rows, evaluations
included, of two machines of which one is half as fast as the other.

A budget in seconds is that of a run with a core of its own, nothing else running: `--jobs 2` on two
cores. Twenty minutes each are twenty minutes of wall clock for two runs.
"""

from __future__ import annotations

from collections.abc import Callable

from polewise.options import require_choice
from polewise.recipes.studies.ablations import ablations
from polewise.recipes.studies.classification import audio, permuted, slow_filters, table4
from polewise.recipes.studies.cost import table5
from polewise.recipes.studies.elsewhere import elsewhere
from polewise.recipes.studies.plan import question_of
from polewise.recipes.studies.recall import mqar, table1
from polewise.recipes.studies.study import Size, Study
from polewise.recipes.studies.text import leak, table2, text

STUDIES: dict[str, Callable[[Size], Study]] = {
    "table1": table1,
    "table2": table2,
    "text": text,
    "table4": table4,
    "permuted": permuted,
    "slow_filters": slow_filters,
    "audio": audio,
    "table5": table5,
    "mqar": mqar,
    "ablations": ablations,
    "leak": leak,
    "elsewhere": elsewhere,
}
"""Every study by name. A new one is a function, its own file perhaps, and a line here."""


def build_study(name: str, size: Size) -> Study:
    """Return a study, with all its runs checked.

    Raises:
        ValueError: no study of that name; the nearest is suggested.
    """
    require_choice("study", name, STUDIES)
    return STUDIES[name](size)


def question(name: str) -> str:
    """Return what a study asks."""
    return question_of(STUDIES[name])
