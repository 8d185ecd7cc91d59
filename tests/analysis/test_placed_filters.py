"""Facts about the filters read out of a trained model."""

import pytest
import torch
from torch.nn import functional

from polewise.analysis import PlacedFilters, placed_filters
from polewise.analysis.figures import draw_frequency_responses, draw_poles
from polewise.layers import AdaptiveFilters
from polewise.mixers import FocusConfig
from polewise.mixers.watching import watch_poles
from polewise.tasks import RecallTask
from polewise.training import ModelOptions, build_model


def model_and_batch(mixer="focus", **options):
    task = RecallTask(length=30, batch_size=3)
    torch.manual_seed(0)
    options = {"bin_length": 8, "chunk_length": 8, **options}
    model = build_model(
        task.spec,
        ModelOptions(mixer=mixer, mixer_options=options, hidden_size=6, num_layers=2),
    )
    return model, next(task.train_batches(0))


@pytest.mark.parametrize(
    ("mixer", "hypernetwork"),
    [
        ("focus", "recurrent"),
        ("focus", "none"),
        ("published_focus", "recurrent"),
        ("published_focus", "shared_recurrent"),
    ],
)
def test_every_layer_shows_a_stable_pole_for_each_filter(mixer, hypernetwork):
    model, batch = model_and_batch(mixer, hypernetwork=hypernetwork, filters=2)
    placed = placed_filters(model, batch)
    assert len(placed) == 2
    for filters in placed:
        assert filters.poles.shape == (3, 4, 64 if mixer == "focus" else 6, 2)
        assert filters.poles.abs().max() < 1
        assert filters.poles.imag.min() >= 0
        assert filters.moving == (hypernetwork != "none")


@pytest.mark.parametrize("hypernetwork", ["recurrent", "none"])
def test_figures_say_whether_the_filters_move(hypernetwork, tmp_path):
    model, batch = model_and_batch(hypernetwork=hypernetwork, memory=False, filters=1)
    placed = placed_filters(model, batch)[0]
    for draw in (draw_poles, draw_frequency_responses):
        path = draw(tmp_path / "figure.png", placed)
        assert path.stat().st_size > 10_000
        fixed = "the same for every sequence" in " ".join(
            path.with_suffix(".txt").read_text().split()
        )
        assert fixed == (hypernetwork == "none")


@pytest.mark.parametrize("turning", [True, False])
def test_without_filters_the_poles_are_those_of_the_memory(turning):
    model, batch = model_and_batch(memory_every=1, heads=3, memory_turning=turning)
    for placed in placed_filters(model, batch):
        assert placed.poles.shape == (3, batch["inputs"].shape[1], 3, 32)  # keys of 64
        assert 0 < placed.poles.abs().min() <= placed.poles.abs().max() < 1
        assert placed.poles.imag.min() >= 0
        assert (placed.poles.imag.max() > 0) == turning
        assert placed.poles[:, :1].sub(placed.poles[:, 1:2]).abs().max() > 0  # at every step
        with pytest.raises(ValueError, match="must filter channels; it filters keys and values"):
            placed.frequency_response(torch.zeros(1))


@pytest.mark.parametrize("realisation", ["normal", "direct", "square"])
def test_the_response_is_that_of_the_filter_the_mixer_runs(realisation):
    config = FocusConfig(
        dim=5,
        value_dim=5,
        filters=2,
        bin_length=2048,
        hypernetwork="none",
        realisation=realisation,
        max_decay=0.98,
    )
    focus = config.build().double()
    with torch.no_grad():
        focus.filters.mix.normal_()
    impulse = torch.zeros(1, 2048, 5, dtype=torch.float64)
    impulse[:, 0] = 1
    coefficients = focus.coefficients(impulse)
    output, _ = focus.filters(impulse, None, torch.zeros(1, dtype=torch.int64))
    wanted = torch.fft.rfft(output[0].detach(), dim=0).T

    placed = PlacedFilters(
        name="focus",
        realisation=realisation,
        coefficients=coefficients.detach(),
        mix=focus.filters.mix.detach(),
    )
    frequency = torch.linspace(0, 0.5, 1025, dtype=torch.float64)
    torch.testing.assert_close(placed.frequency_response(frequency)[0, 0], wanted)


def test_padding_has_no_filters():
    model, batch = model_and_batch(hypernetwork="recurrent", memory=False, filters=1)
    padded = {name: functional.pad(value, (0, 17)) for name, value in batch.items()}
    padded["lengths"] = torch.full((3,), batch["inputs"].shape[1])
    for with_padding, without in zip(
        placed_filters(model, padded), placed_filters(model, batch), strict=True
    ):
        torch.testing.assert_close(with_padding.coefficients, without.coefficients)


def test_looking_changes_nothing():
    model, batch = model_and_batch()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    placed_filters(model, batch)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("mixer", "options"),
    [
        ("attention", {}),
        ("focus", {"memory": False}),
        ("focus", {"memory": False, "chunk_length": 4}),
    ],
)
def test_a_model_without_filters_shows_none(mixer, options):
    task = RecallTask(length=6)
    chosen = ModelOptions(mixer=mixer, mixer_options=options, hidden_size=8, num_layers=1)
    model = build_model(task.spec, chosen)
    assert placed_filters(model, next(task.train_batches(0))) == []


def impulse_responses(model, dim, length):
    """What the first layer's filters make of an impulse in the middle, by frequency."""
    x = torch.zeros(1, length, dim, dtype=torch.float64)
    x[:, length // 2] = 1
    y, _ = model(x, None, torch.zeros(1, dtype=torch.int64))
    turned = torch.fft.rfft(y[0].detach().roll(-(length // 2), 0), dim=0)
    return turned.T


@pytest.mark.parametrize("realisation", ["normal", "direct"])
def test_the_response_of_a_layer_that_looks_both_ways_is_that_of_both(realisation):
    config = FocusConfig(
        dim=3, heads=1, value_dim=3, filters=2, realisation=realisation, max_decay=0.95,
        causal=False, memory=False,
    )  # fmt: skip
    focus = config.build().double()
    with torch.no_grad():
        focus.filters.mix.normal_()
    placed = PlacedFilters(
        name="focus",
        realisation=realisation,
        coefficients=focus.coefficients(torch.zeros(1, 1, 3, dtype=torch.float64)).detach(),
        mix=focus.filters.mix.detach(),
    )
    frequency = torch.linspace(0, 0.5, 513, dtype=torch.float64)
    wanted = impulse_responses(focus.filters, 3, 1024)
    torch.testing.assert_close(placed.frequency_response(frequency)[0, 0], wanted)


def test_the_published_transform_multiplies_by_the_conjugate():
    filters = AdaptiveFilters(2, 1, 256, realisation="circular", causal=False).double()
    x = torch.zeros(1, 256, 2, dtype=torch.float64)
    x[:, 0] = 1
    placed = PlacedFilters(
        name="published",
        realisation="circular",
        coefficients=filters.coefficients(x, None).detach(),
        mix=filters.mix.detach(),
    )
    y, _ = filters(x, None, torch.zeros(1, dtype=torch.int64))
    response = placed.frequency_response(torch.arange(129, dtype=torch.float64) / 256)
    torch.testing.assert_close(response[0, 0], torch.fft.rfft(y[0].detach(), dim=0).T)


@pytest.mark.parametrize("causal", [True, False])
def test_a_shorter_row_has_the_filters_that_it_has_alone(causal):
    config = FocusConfig(
        dim=4, memory=False, filters=1, hypernetwork="recurrent", windows=1, bin_length=8,
        causal=causal,
    )  # fmt: skip
    torch.manual_seed(0)
    mixer, x = config.build(), torch.randn(2, 32, 4)
    with watch_poles(mixer) as seen:
        mixer(x, None, torch.tensor([32, 11]))
    (placing,) = seen.values()
    alone = mixer.coefficients(x[1:, :11]).double()
    torch.testing.assert_close(placing.coefficients()[1:, :2], alone)


def test_poles_that_the_past_chooses_are_watched_in_whole_sequences():
    mixer = FocusConfig(dim=4, memory=False, filters=1, hypernetwork="recurrent").build()
    x = torch.randn(1, 9, 4)
    _, state = mixer(x)
    with watch_poles(mixer), pytest.raises(ValueError, match="state must be None while poles"):
        mixer(x, state)
