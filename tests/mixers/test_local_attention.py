"""Facts about local attention: torch's attention with the window written out as a mask."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from polewise.mixers import ChunkAttentionConfig, SlidingAttentionConfig


@pytest.mark.parametrize(
    ("config", "sees"),
    [
        (
            ChunkAttentionConfig(dim=8, chunk_length=6, heads=2),
            lambda i, j: (i // 6 == j // 6) & (j <= i),
        ),
        (
            ChunkAttentionConfig(dim=8, chunk_length=6, heads=2, causal=False),
            lambda i, j: i // 6 == j // 6,
        ),
        (
            SlidingAttentionConfig(dim=8, chunk_length=6, heads=2),
            lambda i, j: (j <= i) & (i - j < 6),
        ),
    ],
    ids=["chunks", "chunks both ways", "sliding"],
)
def test_it_is_attention_under_the_windows_mask(config, sees):
    torch.manual_seed(0)
    mixer = config.build().double()
    x = torch.randn(2, 23, 8, dtype=torch.float64)
    q, k, v = (
        part.unflatten(-1, (2, 4)).transpose(1, 2)
        for part in mixer.to_query_key_value(x).split(8, -1)
    )
    i, j = torch.arange(23)[:, None], torch.arange(23)
    distance = i - j if config.causal else i - j + config.chunk_length - 1
    bias = mixer.position_bias()
    mask = bias[:, distance.clamp(0, bias.shape[1] - 1)].masked_fill(~sees(i, j), -math.inf)
    y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    expected = mixer.to_output(y.transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x)[0], expected, rtol=1e-10, atol=1e-10)
