"""Facts about MEGA: it is the published recursion."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from polewise.layers import DampedEma
from polewise.mixers import MegaConfig
from polewise.models import Block


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def average_by_definition(ema, x):
    """The published equations, number by number."""
    p, a = ema.step.sigmoid(), ema.damping.sigmoid()
    h = torch.zeros(x.shape[0], *p.shape, dtype=x.dtype)
    outputs = []
    for x_t in x.unbind(1):
        h = (1 - p * a) * h + p * ema.into * x_t[:, None]
        past = 0 if ema.skip is None else ema.skip * x_t
        outputs.append((ema.out * h).sum(1) / math.sqrt(len(p)) + past)
    return torch.stack(outputs, 1)


def test_the_moving_average_is_the_published_one():
    torch.manual_seed(0)
    ema, x = DampedEma(5, 4).double(), drawn(2, 30, 5)
    torch.testing.assert_close(ema(x)[0], average_by_definition(ema, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
def test_the_mixer_is_the_published_one(causal):
    torch.manual_seed(0)
    mega = MegaConfig(dim=8, chunk_length=6, memories=3, causal=causal).build().double()
    x = drawn(2, 17, 8)
    n = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    average = average_by_definition(mega.ema, n)
    if not causal:
        assert mega.reverse_ema.skip is None  # the original has one for both
        average = average + average_by_definition(mega.reverse_ema, n.flip(1)).flip(1)
    u, z, r, c = mega.from_average(functional.silu(average)).split([8, 2, 16, 8], -1)
    z = functional.silu(z)
    q, k = (z * mega.scale[i] + mega.shift[i] for i in (0, 1))
    v = functional.silu(mega.to_value(n))
    distance = torch.arange(17)[:, None] - torch.arange(17)
    same = torch.arange(17)[:, None] // 6 == torch.arange(17) // 6
    visible = same & (distance >= 0) if causal else same
    bias = mega.position_bias()[0][
        (distance if causal else distance + 5).clamp(0, 5 if causal else 10)
    ]
    logits = (q @ k.transpose(1, 2) / math.sqrt(2) + bias).masked_fill(~visible, -math.inf)
    attended = logits.softmax(-1) @ v
    h = functional.silu(c + mega.from_attention(functional.silu(r) * attended))
    torch.testing.assert_close(mega(x)[0], u.sigmoid() * (h - x), rtol=1e-10, atol=1e-10)


def test_it_starts_as_published():
    torch.manual_seed(0)
    mega = MegaConfig(dim=128).build()
    for linear in (mega.to_value, mega.from_average, mega.from_attention):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert linear.bias is None or not linear.bias.any()
    assert mega.scale.std().item() == pytest.approx(0.02, rel=0.3)
    assert not mega.shift.any()


def test_a_block_weighs_the_sequence_itself_against_the_candidate():
    """u h + (1 - u) x: with a candidate of 0 and u = 1/2, half of x, however large x is."""
    block = Block(MegaConfig(dim=8).build().double(), 8, 0)
    with torch.no_grad():
        for linear in (block.mixer.from_average, block.mixer.from_attention):
            for parameter in linear.parameters():
                parameter.zero_()
    x = 30 * drawn(2, 17, 8)
    torch.testing.assert_close(block(x)[0], x / 2)
