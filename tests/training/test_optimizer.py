"""Facts about the optimiser's groups and the learning rate."""

import pytest
import torch
from torch import nn

from polewise.training import ModelOptions, TrainingOptions, build_model
from polewise.training.optimizer import (
    build_optimizer,
    learning_rate_share,
    parameter_groups,
    set_learning_rate,
)


class Filter(nn.Module):
    filter_parameters = ("poles", "inner")

    def __init__(self):
        super().__init__()
        self.poles = nn.Parameter(torch.ones(3, 2))
        self.inner = nn.Linear(2, 2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.filter = Filter()
        self.linear = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


def names_by_group(model, **options):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, TrainingOptions(max_steps=1, **options))
    return {
        group["name"]: sorted(names[id(parameter)] for parameter in group["params"])
        for group in groups
    }


def test_norms_biases_embeddings_and_filter_parameters_do_not_decay():
    model = Model()
    assert names_by_group(model) == {
        "decay": ["linear.weight"],
        "no_decay": ["embedding.weight", "linear.bias", "norm.bias", "norm.weight"],
        "filter": ["filter.inner.bias", "filter.inner.weight", "filter.poles"],
    }
    assert "embedding.weight" in names_by_group(model, decay_embeddings=True)["decay"]
    decays = {
        group["name"]: group["weight_decay"]
        for group in parameter_groups(model, TrainingOptions(max_steps=1, weight_decay=0.3))
    }
    assert decays == {"decay": 0.3, "no_decay": 0.0, "filter": 0.0}


def test_every_parameter_of_focus_is_in_one_group_and_its_poles_are_filter_parameters():
    from polewise.tasks import RecallTask

    options = {"heads": 2}  # one that copies, and one whose keys turn
    model = build_model(
        RecallTask().spec, ModelOptions(hidden_size=8, num_layers=1, mixer_options=options)
    )
    groups = names_by_group(model)
    together = sorted(name for names in groups.values() for name in names)
    assert together == sorted(name for name, _ in model.named_parameters())
    for name in ("log_rate", "log_frequency", "step.bias", "skip"):
        assert any(each.endswith(f"mixer.{name}") for each in groups["filter"]), name


def test_filter_parameters_may_learn_at_a_rate_of_their_own():
    options = TrainingOptions(max_steps=1, learning_rate=0.5, filter_learning_rate=0.1)
    optimizer = build_optimizer(Model(), options)
    groups = optimizer.param_groups
    begun = {group["name"]: group["lr"] for group in groups}
    set_learning_rate(optimizer, 0.5)
    assert begun == {group["name"]: group["lr"] for group in groups}
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"decay": 0.5, "no_decay": 0.5, "filter": pytest.approx(0.05)}


def test_a_class_may_say_how_fast_its_filter_parameters_learn_at_most():
    class Careful(Filter):
        filter_learning_rate_limit = 1e-3

    model = nn.ModuleList([Model(), Careful()])
    for peak, share in ((1e-2, 1.0), (5e-4, 1.0), (1e-2, 0.01)):
        options = TrainingOptions(max_steps=1, learning_rate=peak, filter_learning_rate=share)
        optimizer = build_optimizer(model, options)
        set_learning_rate(optimizer, peak)
        careful, free = (
            next(g["lr"] for g in optimizer.param_groups if any(p is part for p in g["params"]))
            for part in (model[1].poles, model[0].filter.poles)
        )
        assert free == pytest.approx(share * peak)
        assert careful == pytest.approx(min(share * peak, 1e-3))


@pytest.mark.parametrize("name", ["forward", "pole", "inner.pole"])
def test_filter_parameters_that_name_something_else_are_refused(name):
    class Wrong(nn.Module):
        filter_parameters = (name,)

        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

    with pytest.raises(TypeError, match="filter_parameters of Wrong must name parameters"):
        parameter_groups(Wrong(), TrainingOptions(max_steps=1))


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine():
    options = TrainingOptions(max_steps=1, warmup=0.2, final_learning_rate=0.1)
    shares = [learning_rate_share(progress, options) for progress in (0, 0.1, 0.2, 0.6, 1, 1.3)]
    assert shares == pytest.approx([0, 0.5, 1, 0.55, 0.1, 0.1])


def test_without_warm_up_the_learning_rate_begins_at_its_peak():
    assert learning_rate_share(0, TrainingOptions(max_steps=1, warmup=0)) == 1
