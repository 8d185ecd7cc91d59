"""Facts about Mamba-2: it is the published recursion, and others' implementation of it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from polewise.mixers import Mamba2Config, Mamba3Config
from polewise.training import TrainingOptions
from polewise.training.optimizer import parameter_groups


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def built(**options):
    torch.manual_seed(0)
    return Mamba2Config(**options).build().double()


def moved(mixer):
    """Away from the start, where norms and skips are 1."""
    with torch.no_grad():
        for seed, parameter in enumerate(mixer.parameters()):
            parameter.add_(0.3 * drawn(*parameter.shape, seed=seed))
    return mixer


def by_definition(mixer, x):
    """The published equations, token by token."""
    config = mixer.config
    z, mixed, d = mixer.to_gate(x), mixer.to_mixed(x), mixer.to_step(x)
    past = functional.pad(mixed, (0, 0, config.conv_width - 1, 0))
    kernel = mixer.short_conv.kernel.T[:, None].flip(-1)
    mixed = functional.conv1d(past.mT, kernel, mixer.short_conv.bias, groups=len(kernel)).mT
    u, b, c = functional.silu(mixed).split([config.inner, *[config.state_dim] * 2], -1)
    u = u.unflatten(-1, (config.num_heads, -1))
    step = (1 + (d + mixer.step.bias).exp()).log()
    memory = torch.zeros(len(x), config.num_heads, config.state_dim, u.shape[-1], dtype=x.dtype)
    outputs = []
    for t in range(x.shape[1]):
        decay = (-step[:, t] * mixer.log_rate.exp()).exp()
        added = torch.einsum("bh,bn,bhp->bhnp", step[:, t], b[:, t], u[:, t])
        memory = decay[..., None, None] * memory + added
        y = torch.einsum("bn,bhnp->bhp", c[:, t], memory) + mixer.skip[:, None] * u[:, t]
        y = y.flatten(1) * functional.silu(z[:, t])
        outputs.append(y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * mixer.norm.weight)
    return mixer.to_output(torch.stack(outputs, 1))


def test_the_mixer_is_the_published_recursion():
    mixer, x = moved(built(dim=6, heads=3, state_dim=5)), drawn(2, 75, 6)
    torch.testing.assert_close(mixer(x)[0], by_definition(mixer, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [1, 5, 100])
def test_the_same_weights_give_the_outputs_of_transformers(length):
    from transformers import Mamba2Config as TheirConfig
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    ours = moved(built(dim=16, heads=4, state_dim=8)).float()
    theirs = Mamba2Mixer(
        TheirConfig(
            hidden_size=16, num_heads=4, head_dim=8, state_size=8, expand=2, n_groups=1,
            num_hidden_layers=1, chunk_size=16,
        ),
        layer_idx=0,
    )  # fmt: skip
    projections = (ours.to_gate, ours.to_mixed, ours.to_step)
    same = {
        "in_proj.weight": torch.cat([each.weight for each in projections]),
        "conv1d.weight": ours.short_conv.kernel.flip(0).T[:, None],
        "conv1d.bias": ours.short_conv.bias,
        "dt_bias": ours.step.bias,
        "A_log": ours.log_rate,
        "D": ours.skip,
        "norm.weight": ours.norm.weight,
        "out_proj.weight": ours.to_output.weight,
    }
    theirs.load_state_dict(same)
    x = drawn(2, length, 16).float()
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dim", "heads"), [(4, 1), (64, 2), (100, 2), (128, 4), (512, 16)])
def test_heads_are_of_the_published_size_at_any_width(dim, heads):
    assert Mamba2Config(dim=dim).num_heads == heads
    assert Mamba3Config(dim=dim).num_heads == heads


def test_steps_and_decays_start_as_published():
    mixer = built(dim=64, heads=64)
    step = functional.softplus(mixer.step.bias)
    assert step.min() >= 1e-3 - 1e-9
    assert step.max() <= 1e-1 + 1e-9
    assert step.log().std() > 1  # spread over both decades
    rate = mixer.log_rate.exp()
    assert rate.min() >= 1
    assert rate.max() <= 16


def test_what_makes_a_pole_is_not_decayed():
    mixer = built(dim=8)
    groups = {
        group["name"]: group["params"]
        for group in parameter_groups(mixer, TrainingOptions(max_steps=1))
    }
    filters = {id(parameter) for parameter in groups["filter"]}
    assert filters == {id(mixer.log_rate), id(mixer.step.bias), id(mixer.skip)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be an integer of at least 1"),
        ({"dim": 9, "heads": 4}, r"expand \* dim must be a multiple of heads; got 18 and 4"),
        ({"dim": 8, "conv_width": 0}, "conv_width must be an integer of at least 1"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        Mamba2Config(**options)
