"""Facts about studies: what is planned, and in what order."""

import math
from dataclasses import replace

import pytest

from polewise.recipes.studies import (
    STUDIES,
    Measured,
    build_study,
    question,
)
from polewise.recipes.studies.parameter_matching import count_parameters
from polewise.training.building import planned_model

SIZES = ("cpu", "gpu")
THREE_HOURS_ON_TWO_CORES = 2 * 3 * 3600


@pytest.fixture(scope="module", params=STUDIES)
def name(request):
    return request.param


@pytest.fixture(scope="module", params=SIZES)
def study(request, name):
    return build_study(name, request.param)


def test_every_run_of_a_study_can_be_built_and_has_a_name_of_its_own(study):
    trials = list(study.trials())
    assert len({trial.name for trial in trials}) == len(trials)
    of_each_system = {(trial.comparison.name, trial.system.name): trial for trial in trials}
    assert len(of_each_system) == sum(len(each.systems) for each in study.comparisons)
    for trial in of_each_system.values():
        planned_model(trial.run)


def test_the_systems_of_a_comparison_have_equal_parameters_within_two_percent(study):
    """But for those stacked in whole layers without feed-forwards: 4 % more at most, and one layer
    more would be beyond that."""
    for comparison in study.comparisons:
        spec = comparison.task.spec
        deep = [each for each in comparison.systems if each.model.intermediate_size == 0]
        others = [each for each in comparison.systems if each not in deep]
        sizes = [count_parameters(spec, system.model) for system in others]
        if not others:  # the ablations of Focus: as many layers
            assert len({system.model.num_layers for system in deep}) == 1
            continue
        assert max(sizes) <= 1.02 * min(sizes), (comparison.name, sizes)
        for system in deep:
            deeper = replace(system.model, num_layers=system.model.num_layers + 1)
            assert count_parameters(spec, system.model) <= 1.045 * min(sizes), system.name
            assert count_parameters(spec, deeper) > 1.035 * min(sizes), system.name


def test_the_cpu_size_of_a_study_takes_at_most_three_hours_on_two_cores(name):
    study = build_study(name, "cpu")
    assert study.total_seconds is not None
    assert 0 < study.total_seconds <= THREE_HOURS_ON_TWO_CORES
    for comparison in study.comparisons:
        if comparison.training.max_seconds is not None:
            assert comparison.expected_seconds > comparison.training.max_seconds


def test_every_study_asks_one_question_in_a_line(name):
    assert question(name).count("?") == 1


def test_an_unknown_study_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'table1'"):
        build_study("tabel1", "cpu")


def test_the_grid_comes_first_then_the_best_rate_with_further_seeds(tiny_study):
    study = tiny_study(num_seeds=3)
    grid = study.open_trials({})
    assert [trial.name for trial in grid] == [
        "short/attention/rate-0.001-seed-0",
        "short/mega/rate-0.001-seed-0",
        "short/attention/rate-0.01-seed-0",
        "short/mega/rate-0.01-seed-0",
    ]
    values = [0.1, 0.9, 0.5, math.nan]
    measured = {trial.name: Measured(value, 10) for trial, value in zip(grid, values, strict=True)}
    further = [trial.name for trial in study.open_trials(measured)]
    assert further == [
        "short/attention/rate-0.01-seed-1",
        "short/mega/rate-0.001-seed-1",
        "short/attention/rate-0.01-seed-2",
        "short/mega/rate-0.001-seed-2",
    ]
    assert study.num_trials == len(grid) + len(further)
    assert {trial.name for trial in study.trials()} >= {*measured, *further}


def test_runs_whose_rate_is_not_known_are_counted_as_to_come(tiny_study):
    study = tiny_study(num_seeds=3)
    assert len(study.trials_to_come({})) == 4
    diverged = {trial.name: Measured(math.nan, 0) for trial in study.open_trials({})}
    assert study.open_trials(diverged) == study.trials_to_come(diverged) == []


def test_a_short_grid_trains_a_share_of_the_budget_and_then_every_seed_in_full(tiny_study):
    study = tiny_study(max_steps=20, num_seeds=2, grid_share=0.25)
    grid = study.open_trials({})
    assert {trial.run.training.max_steps for trial in grid} == {5}
    measured = {trial.name: Measured(0.5, 5) for trial in grid}
    further = study.open_trials(measured)
    assert {trial.run.training.max_steps for trial in further} == {20}
    assert sorted(trial.seed for trial in further) == [0, 0, 1, 1]
    assert study.num_trials == len(grid) + len(further)


def test_only_the_best_few_systems_get_further_seeds(tiny_study):
    study = tiny_study(num_seeds=3, num_finalists=1, grid_share=0.5, names=("attention", "mega"))
    assert study.num_trials == 4 + 2 + 2
    measured = {trial.name: Measured(0.5, 2) for trial in study.open_trials({})}
    firsts = study.open_trials(measured)
    assert [trial.seed for trial in firsts] == [0, 0]
    assert len(study.trials_to_come({})) == 4
    assert len(study.trials_to_come(measured)) == 2
    measured |= {t.name: Measured(0.9 if "mega" in t.name else 0.1, 4) for t in firsts}
    further = [trial.name for trial in study.open_trials(measured)]
    assert further == ["short/mega/rate-0.001-seed-1", "short/mega/rate-0.001-seed-2"]
    assert study.trials_to_come(measured) == []
    for number in (0, 3):
        with pytest.raises(ValueError, match=r"num_finalists must lie in \[1, 2\]"):
            tiny_study(num_finalists=number)


def test_among_equal_rates_the_one_of_fewest_steps_is_best(tiny_study):
    study = tiny_study(num_seeds=2)
    steps = {0.001: 8, 0.01: 4}
    measured = {t.name: Measured(1.0, steps[t.learning_rate]) for t in study.open_trials({})}
    assert {trial.learning_rate for trial in study.open_trials(measured)} == {0.01}


def test_planned_time_counts_short_runs_by_their_share(tiny_study):
    study = tiny_study(num_seeds=2, grid_share=0.25, expected_seconds=100.0)
    assert study.total_seconds == 4 * 25 + 4 * 100
    assert tiny_study(num_seeds=2, expected_seconds=100.0).total_seconds == 4 * 100 + 2 * 100
    assert tiny_study().total_seconds is None


def test_names_that_are_no_folders_and_names_given_twice_are_refused(tiny_study):
    comparison = tiny_study().comparisons[0]
    with pytest.raises(ValueError, match="name must be a plain folder name; got 'a/b'"):
        replace(comparison, name="a/b")
    with pytest.raises(ValueError, match=r"systems must be distinct.*attention"):
        replace(comparison, systems=comparison.systems[:1] * 2)
