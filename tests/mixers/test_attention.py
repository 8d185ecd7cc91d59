"""Facts about the Transformer's attention: other people's gives the same."""

from __future__ import annotations

import pytest
import torch

from polewise.mixers import AttentionConfig
from polewise.ops import turn


def test_it_is_the_attention_of_llama():
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    torch.manual_seed(0)
    ours = AttentionConfig(dim=16, heads=2).build()
    config = LlamaConfig(
        hidden_size=16, num_attention_heads=2, attention_bias=True, attn_implementation="sdpa"
    )
    theirs = LlamaAttention(config, layer_idx=0)
    layers = {
        "q_proj": ours.to_query,
        "k_proj": ours.to_key,
        "v_proj": ours.to_value,
        "o_proj": ours.to_output,
    }
    for name, layer in layers.items():
        theirs.get_submodule(name).load_state_dict(layer.state_dict())
    x = torch.randn(2, 30, 16)
    rotation = LlamaRotaryEmbedding(config)(x, torch.arange(30)[None])
    expected, _ = theirs(x, position_embeddings=rotation, attention_mask=None)
    torch.testing.assert_close(ours(x)[0], expected, rtol=1e-4, atol=1e-5)


def test_with_sight_both_ways_every_step_sees_all():
    torch.manual_seed(0)
    ours = AttentionConfig(dim=8, heads=2, causal=False).build().double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    q, k, v = (
        layer(x).unflatten(-1, (2, 4)) for layer in (ours.to_query, ours.to_key, ours.to_value)
    )
    angle = ours._angles(torch.arange(9)[None], x.dtype)
    seen = torch.einsum("bihd,bjhd->bhij", turn(q, angle), turn(k, angle)) / 4**0.5
    expected = torch.einsum("bhij,bjhd->bihd", seen.softmax(-1), v).flatten(2)
    torch.testing.assert_close(ours(x)[0], ours.to_output(expected), rtol=1e-9, atol=1e-11)


def test_in_float64_only_distances_count_however_far_the_sequence_is():
    torch.manual_seed(0)
    mixer = AttentionConfig(dim=8, heads=1).build().double()
    q, k = torch.randn(2, 1, 5, 1, 8, dtype=torch.float64)

    def products(start):
        time = start + torch.arange(5)[None]
        angle = mixer._angles(time, q.dtype)
        return turn(q, angle)[0, :, 0] @ turn(k, angle)[0, :, 0].T

    torch.testing.assert_close(products(1_000_000), products(0), rtol=1e-8, atol=1e-8)


def test_learned_positions_and_neighbours_are_added_to_what_is_read():
    torch.manual_seed(0)
    plain, ours = (
        AttentionConfig(dim=8, **options).build().double()
        for options in ({}, {"positions": 20, "conv_width": 2})
    )
    ours.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 17, 8, dtype=torch.float64)
    placed = x + ours.position_embedding[:17]
    before = torch.cat([torch.zeros_like(x[:, :1]), placed[:, :-1]], 1)
    now, last = ours.short_conv.kernel
    expected, _ = plain(placed + now * placed + last * before)
    torch.testing.assert_close(ours(x)[0], expected, rtol=1e-10, atol=1e-12)


def test_a_sequence_longer_than_the_learned_positions_is_refused_in_pieces_too():
    mixer = AttentionConfig(dim=8, positions=20).build()
    _, state = mixer(torch.randn(2, 17, 8))
    mixer(torch.randn(2, 9, 8), state, lengths=torch.tensor([3, 0]))
    for x, before in ((torch.randn(2, 21, 8), None), (torch.randn(2, 4, 8), state)):
        with pytest.raises(ValueError, match=r"must end within positions = 20 steps.* ends at 21"):
            mixer(x, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 8, "heads": 3}, "dim must be a multiple of 2"),
        ({"dim": 8, "base": -1.0}, "base must be a positive number; got -1.0"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        AttentionConfig(**options)


def test_it_goes_through_every_transform():
    torch.manual_seed(0)
    mixer = AttentionConfig(dim=4, heads=1).build().double()
    x, direction = torch.randn(2, 1, 5, 4, dtype=torch.float64)

    def total(x):
        return mixer(x)[0].square().sum()

    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(total(leaf), leaf)
    by_row = torch.func.vmap(torch.func.grad(total))(torch.stack([x, x]))
    torch.testing.assert_close(by_row[1], wanted)
    _, slope = torch.func.jvp(total, (x,), (direction,))
    torch.testing.assert_close(slope, (wanted * direction).sum())
    curvature = torch.func.hessian(total)(x).reshape(20, 20) @ direction.flatten()
    before, after = (torch.func.grad(total)(x + step * direction) for step in (-1e-6, 1e-6))
    change = ((after - before) / 2e-6).flatten()
    torch.testing.assert_close(curvature, change, rtol=1e-5, atol=1e-6)
