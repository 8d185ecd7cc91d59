"""Studies: questions with all the runs that answer them, at a size for a CPU and one for a GPU."""

from polewise.recipes.studies.named import STUDIES as STUDIES
from polewise.recipes.studies.named import build_study as build_study
from polewise.recipes.studies.named import question as question
from polewise.recipes.studies.results import Results as Results
from polewise.recipes.studies.results import read_results as read_results
from polewise.recipes.studies.running import StudyOutcome as StudyOutcome
from polewise.recipes.studies.running import run_study as run_study
from polewise.recipes.studies.study import Comparison as Comparison
from polewise.recipes.studies.study import Measured as Measured
from polewise.recipes.studies.study import Size as Size
from polewise.recipes.studies.study import Study as Study
from polewise.recipes.studies.study import System as System
from polewise.recipes.studies.study import Trial as Trial
from polewise.recipes.studies.systems import equal_systems as equal_systems
