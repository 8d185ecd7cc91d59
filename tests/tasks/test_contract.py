"""What holds for every task: its command, its name in a run, a model built from its shape."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from itertools import islice
from pathlib import Path

import pytest
import torch

from polewise.cli import COMMANDS
from polewise.cli.parsing import choose_command, parse
from polewise.tasks import (
    TASKS,
    ForecastTask,
    ImagesTask,
    InductionTask,
    ListOpsTask,
    MqarTask,
    RecallTask,
    SelectiveCopyTask,
    SeriesTask,
    SpokenDigitsTask,
    TextTask,
)
from polewise.tasks.data_sets import DATA_SETS, locate
from polewise.training import (
    ModelOptions,
    Run,
    TrainingOptions,
    build_model,
    compute_logits,
    evaluate,
    run_from_json,
    run_to_json,
)

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "tasks.md"

SMALL = {
    "recall": RecallTask(length=6, num_eval=6, batch_size=4),
    "mqar": MqarTask(train_on="8:2", test_on="8:1,12:2", vocab_size=20, num_eval=6, batch_size=4),
    "selective_copy": SelectiveCopyTask(length=8, num_tokens=2, num_eval=6, batch_size=4),
    "induction": InductionTask(length=8, test_lengths="5,12", num_eval=6, batch_size=4),
    "listops": ListOpsTask(min_length=4, max_length=20, num_eval=6, batch_size=4),
    "text": TextTask(length=8, eval_bytes=40, batch_size=4),
    "images": ImagesTask(source="digits", num_eval=6, batch_size=4),
    "spoken_digits": SpokenDigitsTask(length=4096, samples_per_step=256, batch_size=50),
    "series": SeriesTask(batch_size=30),
    "forecast": ForecastTask(horizon=3, length=12, eval_stride=400, batch_size=4),
}

NEEDS = {"spoken_digits": "spoken_digits", "series": "japanese_vowels", "forecast": "etth1"}


@pytest.fixture(params=TASKS)
def task(request):
    if (needed := NEEDS.get(request.param)) is not None:
        paths = [locate(file) for file in DATA_SETS[needed].files]
        if None in paths:
            pytest.skip(f"{needed} is not on disk; `polewise data` says where it belongs")
    return SMALL[request.param]


def small_run(task):
    model = ModelOptions(
        mixer="focus",
        mixer_options={"chunk_length": 4, "bin_length": 4},
        hidden_size=8,
        num_layers=1,
    )
    return Run(task=task, model=model, training=TrainingOptions(max_steps=1))


def test_a_run_resumed_at_any_step_sees_the_batches_it_would_have_seen(task):
    whole = list(islice(task.train_batches(3), 4))
    later = islice(task.train_batches(3, first_step=2), 2)
    for one, other in zip(whole[2:], later, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(whole[0]["inputs"], whole[1]["inputs"])


def test_a_model_built_from_the_shape_of_a_task_learns_and_is_measured(task):
    run = small_run(task)
    torch.manual_seed(0)
    model = build_model(task.spec, run.model)
    task.prepare()
    for batch in islice(task.train_batches(0), 2):
        loss = task.loss(compute_logits(model, batch), batch)
        assert loss.shape == ()
        loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    measured = evaluate(model, task)
    assert task.headline in measured
    assert all(torch.isfinite(torch.tensor(value)) for value in measured.values())
    assert evaluate(model, task) == measured  # the held-out data are the same at every call


def test_what_stands_in_the_padding_changes_nothing(task):
    batch = next(iter(task.eval_batches()))
    if "lengths" not in batch:
        pytest.skip("all inputs have the same length")
    model = build_model(task.spec, small_run(task).model).eval()
    inputs = batch["inputs"]
    positions = torch.arange(inputs.shape[1])
    padding = positions >= batch["lengths"][:, None]
    assert padding.any()
    other = inputs.masked_fill(padding.view(*padding.shape, *[1] * (inputs.ndim - 2)), 7)
    with torch.no_grad():
        before, after = (
            compute_logits(model, {**batch, "inputs": each}) for each in (inputs, other)
        )
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("name", TASKS)
def test_a_run_of_any_task_survives_json_unchanged(name):
    run = small_run(SMALL[name])
    assert run.task_name == name
    assert run_from_json(json.loads(json.dumps(run_to_json(run)))) == run


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_command_and_a_row_in_the_guide(name):
    assert f"train {name}" in COMMANDS
    assert f"| `{name}` |" in GUIDE.read_text()


@pytest.mark.parametrize(
    "field", [f"{n}.{f.name}" for n, t in SMALL.items() for f in dataclasses.fields(t)]
)
def test_every_option_refuses_a_value_of_another_type(field):
    name, option = field.split(".")
    with pytest.raises(ValueError, match=rf"^{option} must"):
        TASKS[name](**{option: object()})


COMMANDS_OF_THE_GUIDE = re.findall(
    r"^    (polewise train .*)$", GUIDE.read_text(), flags=re.MULTILINE
)


@pytest.mark.parametrize("command", COMMANDS_OF_THE_GUIDE)
def test_a_command_of_the_guide_is_understood(command):
    name, words = choose_command(shlex.split(command)[1:], COMMANDS)
    assert parse(name, COMMANDS[name], words) is not None
