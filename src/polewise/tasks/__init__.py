"""Problems to learn: data, loss and metric. One file per problem; none of them knows a model."""

from polewise.tasks.forecast import ForecastTask as ForecastTask
from polewise.tasks.images import ImagesTask as ImagesTask
from polewise.tasks.induction import InductionTask as InductionTask
from polewise.tasks.listops import ListOpsTask as ListOpsTask
from polewise.tasks.mqar import MqarTask as MqarTask
from polewise.tasks.recall import RecallTask as RecallTask
from polewise.tasks.selective_copy import SelectiveCopyTask as SelectiveCopyTask
from polewise.tasks.series import SeriesTask as SeriesTask
from polewise.tasks.spoken_digits import SpokenDigitsTask as SpokenDigitsTask
from polewise.tasks.task import Batch as Batch
from polewise.tasks.task import Metrics as Metrics
from polewise.tasks.task import Task as Task
from polewise.tasks.task import TaskSpec as TaskSpec
from polewise.tasks.task import best_of as best_of
from polewise.tasks.task import is_better as is_better
from polewise.tasks.task import on_test_part as on_test_part
from polewise.tasks.task import reaches as reaches
from polewise.tasks.text import TextTask as TextTask

AnyTask = (
    RecallTask
    | MqarTask
    | SelectiveCopyTask
    | InductionTask
    | ListOpsTask
    | TextTask
    | ImagesTask
    | SpokenDigitsTask
    | SeriesTask
    | ForecastTask
)
"""One of the tasks that a run can be of."""

TASKS: dict[str, type[AnyTask]] = {
    "recall": RecallTask,
    "mqar": MqarTask,
    "selective_copy": SelectiveCopyTask,
    "induction": InductionTask,
    "listops": ListOpsTask,
    "text": TextTask,
    "images": ImagesTask,
    "spoken_digits": SpokenDigitsTask,
    "series": SeriesTask,
    "forecast": ForecastTask,
}
"""The tasks by the name that the command line and run folders use."""
