"""Facts about a block and a whole stack: what the equations in their docstrings say."""

from __future__ import annotations

import torch
from torch import nn

from polewise import PolewiseConfig, PolewiseForCausalLM
from polewise.models import Block

OPTIONS = {"chunk_length": 8, "bin_length": 8, "windows": 2}


class Doubling(nn.Module):
    def forward(self, x, state=None, lengths=None):
        return 2 * x, state


def normed(x, norm):
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.weight


def by_definition(block, x):
    """Pre-norm halves around a mixer that doubles."""
    h = x + 2 * normed(x, block.mixer_norm)
    up, down = block.feed_forward.up, block.feed_forward.down
    inner = normed(h, block.feed_forward_norm) @ up.weight.T + up.bias
    return h + (inner * inner.sigmoid()) @ down.weight.T + down.bias


def drawn_block(**options):
    torch.manual_seed(0)
    block = Block(Doubling(), 8, 12, **options).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


def test_a_block_is_two_normed_halves():
    block, x = drawn_block(), 5 * torch.randn(2, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x)[0], by_definition(block, x))


def test_dropout_drops_what_the_halves_add_in_training_alone():
    block, x = drawn_block(dropout=0.5), torch.randn(1, 4000, 8, dtype=torch.float64)
    torch.testing.assert_close(block.eval()(x)[0], by_definition(block, x))
    block.feed_forward = None
    added = (block.train()(x)[0] - x) / (2 * normed(x, block.mixer_norm))
    dropped = added.abs() < 1e-12
    assert 0.45 < dropped.double().mean() < 0.55
    torch.testing.assert_close(added[~dropped], torch.full_like(added[~dropped], 2))


def test_activation_checkpoints_drop_what_was_dropped_on_the_way_forward():
    torch.manual_seed(0)
    config = PolewiseConfig(
        mixer_options=OPTIONS, hidden_size=8, num_hidden_layers=2, dropout=0.3, use_cache=False
    )
    model, ids, found = PolewiseForCausalLM(config).train(), torch.randint(256, (2, 20)), []
    for checkpoints in (False, True):
        if checkpoints:
            model.activation_checkpointing_enable()
        torch.manual_seed(1)
        model(ids, labels=ids).loss.backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
        model.zero_grad()
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_embeddings_come_in_with_unit_variance_and_a_norm_comes_last():
    torch.manual_seed(0)
    config = PolewiseConfig(mixer_options=OPTIONS, hidden_size=64, num_hidden_layers=1)
    model, ids = PolewiseForCausalLM(config), torch.arange(256)[None]
    x = model.model.embed(ids)
    torch.testing.assert_close(x, 8 * model.lm_head.weight[None])
    assert 0.95 < x.std() < 1.05
    block, last = model.model.backbone.blocks[0], model.model.backbone.norm
    torch.testing.assert_close(model(ids).logits, model.lm_head(normed(block(x)[0], last)))
