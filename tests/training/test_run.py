"""Facts about the description of a run."""

import json
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Literal

import pytest

from polewise import MIXERS, FocusConfig
from polewise.recipes import demo_text, digits, etth1, focus_recall
from polewise.tasks import TASKS, RecallTask, TaskSpec
from polewise.training import (
    ModelOptions,
    Run,
    TrainingOptions,
    build_model,
    run_from_json,
    run_to_json,
)


@pytest.mark.parametrize(
    "run",
    [focus_recall(), demo_text(), digits(), etth1()],
    ids=["recall", "text", "digits", "etth1"],
)
def test_a_run_survives_json_unchanged(run):
    assert run_from_json(json.loads(json.dumps(run_to_json(run)))) == run


def test_a_task_that_nobody_knows_is_named():
    unknown = replace(focus_recall(), task=SimpleNamespace())
    with pytest.raises(ValueError, match=r"task must be one of recall.*got SimpleNamespace"):
        _ = unknown.task_name


def test_a_run_in_json_names_every_option_of_its_mixer():
    written = run_to_json(focus_recall())["model"]["mixer_options"]
    assert {*written, "dim"} == {each.name for each in fields(FocusConfig)}


def test_an_unknown_option_in_json_is_answered_with_the_nearest():
    values = run_to_json(focus_recall())
    values["training"]["learning_rat"] = 1
    with pytest.raises(ValueError, match=r"'learning_rat'\. Did you mean 'learning_rate'"):
        run_from_json(values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": "fokus"}, "Did you mean 'focus'"),
        ({"mixer_options": {"chunk_lenght": 8}}, "Did you mean 'chunk_length'"),
        ({"mixer_options": {"chunk_length": "8"}}, "chunk_length must be of type int; got '8'"),
        ({"mixer_options": {"chunk_length": True}}, "chunk_length must be of type int; got True"),
        ({"mixer_options": {"chunk_length": -1}}, "chunk_length must"),
        ({"hidden_size": 0}, "hidden_size must be an integer of at least 1; got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\); got 1.0"),
        ({"intermediate_size": -1}, "intermediate_size must be an integer of at least 0; got -1"),
    ],
)
def test_impossible_model_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        ModelOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "max_steps must be given, or max_seconds; got neither"),
        ({"max_steps": 0}, "max_steps must be positive; got 0"),
        ({"max_steps": 1, "learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"max_steps": 1, "warmup": 1.5}, "warmup must be between 0 and 1; got 1.5"),
        ({"max_steps": 1, "betas": (0.9, 1.0)}, "betas must be in"),
        ({"max_steps": 1, "seed": -1}, "seed must be between"),
        (
            {"max_steps": 1, "precision": "float16"},
            r"precision must be one of float32, bfloat16; .* Did you mean 'bfloat16'",
        ),
    ],
)
def test_impossible_training_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**options)


def test_a_model_has_the_shape_its_task_asks_for():
    options = ModelOptions(
        mixer="attention", hidden_size=8, num_layers=3, intermediate_size=12, dropout=0.2
    )
    language = build_model(TaskSpec(kind="language", length=5, vocab_size=7), options)
    assert language.config.vocab_size == 7
    assert language.config.num_hidden_layers == 3
    assert language.config.intermediate_size == 12
    assert language.config.dropout == 0.2
    shape = TaskSpec(kind="classification", length=5, num_features=2, num_classes=4)
    classifier = build_model(shape, options)
    assert classifier.config.num_input_features == 2
    assert classifier.config.num_labels == 4


def test_options_of_a_mixer_of_ones_own_are_asked_for_their_types(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class OwnConfig:
        dim: int
        width: int = 4

    monkeypatch.setitem(MIXERS, "own", OwnConfig)
    with pytest.raises(ValueError, match=r"width must be of type int; got '8'"):
        ModelOptions(mixer="own", mixer_options={"width": "8"})


def test_options_of_a_mixer_of_ones_own_come_back_from_a_file(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class OwnConfig:
        dim: int
        sizes: tuple[int, ...] = (3, 5)
        pairs: tuple[tuple[int, float], ...] | None = None
        order: Literal[1, 2] = 2

        def build(self):
            raise AssertionError("its options alone are asked for")

    monkeypatch.setitem(MIXERS, "own", OwnConfig)
    options = {"sizes": (1, 2, 3), "pairs": ((1, 0.5),)}
    run = Run(
        task=RecallTask(),
        model=ModelOptions(mixer="own", mixer_options=options),
        training=TrainingOptions(max_steps=1),
    )
    assert run_from_json(json.loads(json.dumps(run_to_json(run)))) == run
    with pytest.raises(
        ValueError, match=r"sizes must be of type tuple\[int, \.\.\.\]; got \(1, 'a"
    ):
        ModelOptions(mixer="own", mixer_options={"sizes": [1, "a"]})
    with pytest.raises(ValueError, match="order must be one of 1, 2; got 3"):
        ModelOptions(mixer="own", mixer_options={"order": 3})


def test_a_task_made_from_one_of_ours_has_the_name_it_was_given(monkeypatch):
    class Mine(RecallTask):
        pass

    run = Run(task=Mine(), model=ModelOptions(), training=TrainingOptions(max_steps=1))
    assert run.task_name == "recall"  # until it has one
    monkeypatch.setitem(TASKS, "mine", Mine)
    assert run.task_name == "mine"
    assert type(run_from_json(run_to_json(run)).task) is Mine
