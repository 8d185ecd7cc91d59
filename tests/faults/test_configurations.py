"""A wrong configuration is answered in one line, before anything is made."""

import json

import pytest
from benchmarks.faults.inputs import try_many
from tests.faults.runs import quiet, small_run

from polewise.tasks import InductionTask
from polewise.training import (
    ModelOptions,
    Run,
    RunFolder,
    TrainingOptions,
    resume,
    run_from_json,
    run_to_json,
    train,
)
from polewise.training.building import planned_model
from polewise.training.run import FORMAT


def changed_config(run_copy, change):
    path = run_copy / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_configuration_from_the_first_format_is_read(run_copy):
    def to_first_format(values):
        for name in ("format", "data"):
            del values[name]
        for name in ("accumulate", "on_save_error", "skip_limit", "on_skip_limit", "data_timeout"):
            del values["training"][name]

    changed_config(run_copy, to_first_format)
    assert RunFolder(run_copy).read_run() == small_run()


@pytest.mark.parametrize("written", [FORMAT + 1, 0, -1, "2", 2.0, True, None])
def test_a_configuration_from_a_newer_format_is_refused(written, run_copy):
    changed_config(run_copy, lambda values: values.update(format=written))
    with pytest.raises(ValueError, match="format must be at most 2, the newest"):
        resume(run_copy, console=quiet())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(trainning={}), "'trainning'. Did you mean 'training'"),
        (lambda v: v["training"].update(sed=1), "'sed'. Did you mean 'seed'"),
        (lambda v: v["task"].update(lenght=8), "'lenght'. Did you mean 'length'"),
        (lambda v: v["model"].update(mixer="atention"), "Did you mean 'attention'"),
        (lambda v: v["task"].update(name="recal"), "Did you mean 'recall'"),
        (lambda v: v["task"].update(name=["recall"]), "task must be one of"),
        (lambda v: v.pop("model"), "must have a part 'model'"),
        (lambda v: v.update(task=[]), "must have a part 'task'"),
        (lambda v: v["training"].update(seed="1"), "seed must be of type int; got '1'"),
        (lambda v: v["training"].update(max_steps=2**80), "max_steps must be of type int"),
        (lambda v: v["training"].update(max_seconds=10**400), "max_seconds must be of type float"),
        (lambda v: v["training"].update(betas=[0.9]), "betas must be of type tuple"),
        (lambda v: v["training"].update(on_save_error="go"), "on_save_error must be one of stop,"),
        (lambda v: v["training"].update(decay_embeddings=1), "decay_embeddings must be of type b"),
        (lambda v: v["task"].update(unique_keys="no"), "unique_keys must be of type bool"),
        (lambda v: v["model"].update(mixer_options=[]), "mixer_options must be of type"),
        (lambda v: v["model"].update(num_layers=10**6), "num_layers must be at most 1000"),
    ],
)
def test_a_wrong_configuration_is_explained(change, message, run_copy):
    changed_config(run_copy, change)
    with pytest.raises(ValueError, match=message):
        RunFolder(run_copy).read_run()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"a":' * 100_000, b'{"task": NaN}', b"9" * 6000]
)
def test_a_configuration_that_is_no_json_is_explained(content, run_copy):
    (run_copy / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="run must have a readable config"):
        resume(run_copy, console=quiet())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate must be positive"),
        ({"skip_limit": 0}, "skip_limit must be positive"),
        ({"data_timeout": 0}, "data_timeout must be positive"),
        ({"data_timeout": float("inf")}, "data_timeout must be finite"),
        ({"on_skip_limit": "rollback"}, "Did you mean 'roll_back'"),
        ({"stop_at": float("nan")}, "stop_at must be a finite number"),
        ({"log_every": 1.5}, "log_every must be of type int; got 1.5"),
    ],
)
def test_impossible_options_of_the_guards_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(max_steps=1, **options)


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        ({}, {"hidden_size": 2**40}, "hidden_size, .* must fit into memory; they need at least"),
        ({}, {"hidden_size": 2**17, "intermediate_size": 0}, "must fit into memory"),
        ({"batch_size": 2**50}, {}, "batch_size, length and vocab_size must fit into memory"),
        (
            {},
            {"mixer": "focus", "mixer_options": {"bin_length": 2**40}},
            "the mixer's lengths must fit into memory",
        ),
        ({}, {"mixer_options": {"heads": 3}}, "heads"),
    ],
)
def test_what_cannot_fit_or_be_built_is_refused_without_trying(task, model, message, tmp_path):
    values = run_to_json(small_run())
    values["task"] |= task
    values["model"] |= model
    with pytest.raises(ValueError, match=message):
        train(run_from_json(values), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_checking_whether_a_model_can_be_built_allocates_none():
    large = run_to_json(small_run())
    large["model"] |= {"hidden_size": 1024, "num_layers": 4}
    parameters = list(planned_model(run_from_json(large)).parameters())
    assert sum(parameter.numel() for parameter in parameters) > 10**7
    assert all(parameter.is_meta for parameter in parameters)


def test_options_of_one_mixer_are_no_options_of_another():
    with pytest.raises(ValueError, match="mixer_options must name options of attention"):
        ModelOptions(mixer="attention", mixer_options={"bin_length": 8})


def test_random_configurations_are_answered_or_trained(tmp_path):
    answers = try_many("configurations", 150, seed=1, folder=tmp_path)
    assert answers["refused"] > 50
    assert answers["trained"] > 20


def test_mutated_files_are_refused_or_read(tmp_path):
    answers = try_many("files", 250, seed=1, folder=tmp_path)
    assert answers["refused"] > 100
    assert answers["read"] > 20


def test_a_test_far_longer_than_what_is_trained_on_needs_no_memory_for_the_way_back():
    task = InductionTask(length=16, test_lengths="16,10000000", batch_size=64)
    model = ModelOptions(hidden_size=64)  # 64 such rows would keep a terabyte
    planned_model(Run(task=task, model=model, training=TrainingOptions(max_steps=1)))
