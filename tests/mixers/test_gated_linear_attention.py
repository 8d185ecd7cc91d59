"""Facts about gated linear attention: each decay is the published recursion."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from polewise import states
from polewise.mixers import GatedLinearAttentionConfig


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def built(**options):
    torch.manual_seed(0)
    return GatedLinearAttentionConfig(**options).build().double()


def by_definition(mixer, x):
    """The published equations, token by token."""
    config = mixer.config
    mixed = mixer.to_query_key_value(x)
    if config.conv_width:
        past = functional.pad(mixed, (0, 0, config.conv_width - 1, 0))
        kernel = mixer.short_conv.kernel.T[:, None].flip(-1)
        mixed = functional.silu(functional.conv1d(past.mT, kernel, groups=len(kernel)).mT)
    q, k, v = (p.unflatten(-1, (config.num_heads, -1)) for p in mixed.split(mixer.parts, -1))
    if config.decay == "constant":
        decay = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(config.num_heads)], dtype=x.dtype)
        decay = decay[:, None].expand_as(k)
    elif config.decay == "head":
        decay = (mixer.to_decay(x).sigmoid() ** (1 / 16))[..., None].expand_as(k)
    else:
        down, up = mixer.to_decay
        decay = (up(down(x)).sigmoid() ** (1 / 16)).unflatten(-1, (config.num_heads, -1))
    shape = (len(x), config.num_heads, config.head_key_dim, config.head_value_dim)
    memory = torch.zeros(shape, dtype=x.dtype)
    outputs = []
    for t in range(x.shape[1]):
        memory = decay[:, t, :, :, None] * memory + k[:, t, :, :, None] * v[:, t, :, None, :]
        y = torch.einsum("bhk,bhkv->bhv", q[:, t], memory) / config.head_key_dim**0.5
        y = y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * mixer.norm.weight
        outputs.append(functional.silu(mixer.to_gate(x[:, t])) * y.flatten(1))
    return mixer.to_output(torch.stack(outputs, 1)), memory


@pytest.mark.parametrize("conv_width", [0, 3])
@pytest.mark.parametrize("decay", ["key", "head", "constant"])
def test_the_mixer_is_the_published_recursion(decay, conv_width):
    mixer = built(dim=6, heads=2, key_dim=4, value_dim=5, decay=decay, conv_width=conv_width)
    with torch.no_grad():
        mixer.norm.weight.add_(drawn(5))
    x = drawn(2, 75, 6)
    y, state = mixer(x)
    wanted, memory = by_definition(mixer, x)
    torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state.products, memory, rtol=1e-9, atol=1e-9)


def test_a_constant_decay_has_nothing_to_learn():
    assert built(dim=8, decay="constant").to_decay is None


def test_the_state_is_of_the_published_size():
    mixer = built(dim=64).float()
    for length in (1, 300):
        _, state = mixer(torch.randn(1, length, 64))
        assert states.num_bytes(state) == 4 * 32 * 64  # key and value channels of one head


@pytest.mark.parametrize(("dim", "heads"), [(64, 1), (256, 1), (512, 2), (700, 2), (1024, 4)])
def test_heads_are_of_the_published_size_at_any_width(dim, heads):
    assert GatedLinearAttentionConfig(dim=dim).num_heads == heads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 8, "decay": "head_wise"}, "decay must be one of key, head, constant"),
        ({"dim": 8, "key_dim": 0}, "key_dim must be an integer of at least 1"),
        ({"dim": 8, "conv_width": -1}, "conv_width must be an integer of at least 0"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        GatedLinearAttentionConfig(**options)
