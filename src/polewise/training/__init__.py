"""Training: a run, its folder, and the loop that fills it. Importing it needs the extra `train`."""

from polewise.training.building import build_model as build_model
from polewise.training.errors import LostProcessError as LostProcessError
from polewise.training.errors import NonFiniteError as NonFiniteError
from polewise.training.errors import SaveError as SaveError
from polewise.training.errors import StalledError as StalledError
from polewise.training.errors import TrainingError as TrainingError
from polewise.training.evaluation import compute_logits as compute_logits
from polewise.training.evaluation import evaluate as evaluate
from polewise.training.loop import Outcome as Outcome
from polewise.training.loop import resume as resume
from polewise.training.loop import train as train
from polewise.training.memory import keep_freed_memory as keep_freed_memory
from polewise.training.memory import release_freed_memory as release_freed_memory
from polewise.training.optimizer import build_optimizer as build_optimizer
from polewise.training.run import ModelOptions as ModelOptions
from polewise.training.run import ModelShape as ModelShape
from polewise.training.run import Run as Run
from polewise.training.run import TrainingOptions as TrainingOptions
from polewise.training.run import run_from_json as run_from_json
from polewise.training.run import run_to_json as run_to_json
from polewise.training.run_folder import RunFolder as RunFolder
