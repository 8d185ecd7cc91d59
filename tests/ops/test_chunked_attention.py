"""Facts about local attention, by chunks and sliding."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.drawing import Draw

from polewise.ops import WindowState, chunked_attention

BATCH, HEADS = 2, 2


@pytest.mark.parametrize(("causal", "sliding"), [(True, False), (True, True), (False, False)])
@settings(deadline=None, max_examples=25)
@given(
    length=st.sampled_from([0, 1, 4, 5, 8, 17]),
    ragged=st.booleans(),
    biased=st.booleans(),
    stateful=st.booleans(),
    backend=st.sampled_from(["torch", None]),
)
def test_attention_by_chunks_equals_the_sum(
    causal, sliding, length, ragged, biased, stateful, backend
):
    draw = Draw()
    q, k = draw.normal(BATCH, length, HEADS, 5), draw.normal(BATCH, length, HEADS, 5)
    v = draw.normal(BATCH, length, HEADS, 3)
    bias = draw.normal(HEADS, 4 if causal else 7) if biased else None
    state = None
    if stateful and causal:
        keys, values = draw.normal(BATCH, 4, HEADS, 5), draw.normal(BATCH, 4, HEADS, 3)
        state = WindowState(keys, values, torch.tensor([2, 9]))
    leaves = [q, k, v, *([] if bias is None else [bias]), *(state[:2] if state else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    exact, ours = [], []
    for each, found in (("reference", exact), (backend, ours)):
        y, _ = chunked_attention(
            q, k, v, 4, bias=bias, causal=causal, sliding=sliding, state=state, backend=each,
            lengths=torch.tensor([length, length // 2]) if ragged else None,
        )  # fmt: skip
        weights = Draw(1).normal(*y.shape)
        found += [y, *torch.autograd.grad(y, leaves, weights, materialize_grads=True)]
    for got, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sliding", [False, True])
@settings(deadline=None, max_examples=15)
@given(cuts=st.lists(st.integers(0, 23), max_size=4))
def test_any_split_of_attention_gives_one_pass(sliding, cuts):
    draw = Draw()
    q, k, v = (draw.normal(BATCH, 23, HEADS, 4) for _ in range(3))
    whole, end = chunked_attention(q, k, v, 5, sliding=sliding)
    outputs, state = [], None
    edges = sorted([0, *cuts, 23])
    for i, j in itertools.pairwise(edges):
        y, state = chunked_attention(
            q[:, i:j], k[:, i:j], v[:, i:j], 5, sliding=sliding, state=state
        )
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), whole)
    for ours, theirs in zip(state, end, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("wide", ["k", "v", "kv"])
def test_keys_and_values_may_be_wider_than_queries(length, wide):
    draw = Draw()
    narrow = {name: draw.normal(1, length, 2, 4).bfloat16() for name in "qkv"}
    mixed = {name: part.float() if name in wide else part for name, part in narrow.items()}
    y, _ = chunked_attention(*mixed.values(), 4)
    exact, _ = chunked_attention(*(part.double() for part in narrow.values()), 4)
    assert y.dtype == mixed["v"].dtype
    rounding = 2**-8 if mixed["v"].dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(y.double(), exact, rtol=rounding, atol=rounding)


def test_a_window_that_autocast_began_goes_on_without_it():
    q = Draw().normal(1, 12, 2, 4).float()
    _, state = chunked_attention(*[q[:, :7].bfloat16()] * 3, 4)
    y, _ = chunked_attention(*[q[:, 7:]] * 3, 4, state=state)
    wanted, _ = chunked_attention(q, q, q, 4)
    torch.testing.assert_close(y, wanted[:, 7:], rtol=0.05, atol=0.05)
    with pytest.raises(TypeError, match=r"state\.keys must be float32"):
        chunked_attention(q, q, q, 4, state=state._replace(keys=state.keys.long()))
    with pytest.raises(TypeError, match="state must be a WindowState; got tuple"):
        chunked_attention(q, q, q, 4, state=tuple(state))


@pytest.mark.parametrize("sliding", [False, True])
def test_a_short_sequence_costs_no_whole_chunk(sliding):
    """A million logits for every pair of places of the chunk would be terabytes."""
    q = Draw().normal(1, 6, 1, 2).float()
    chunk = 100_000
    wanted, _ = chunked_attention(q, q, q, chunk, backend="reference")
    whole, _ = chunked_attention(q, q, q, chunk, sliding=sliding)
    torch.testing.assert_close(whole, wanted)
    first, state = chunked_attention(*[q[:, :3]] * 3, chunk, sliding=sliding)
    rest, _ = chunked_attention(*[q[:, 3:]] * 3, chunk, sliding=sliding, state=state)
    torch.testing.assert_close(torch.cat([first, rest], 1), wanted)


@pytest.mark.parametrize("sliding", [False, True])
def test_huge_numbers_in_the_padding_change_nothing(sliding):
    draw = Draw()
    q, k, v = (draw.normal(2, 10, 2, 4).float() for _ in range(3))
    lengths = torch.tensor([6, 10])
    wanted, _ = chunked_attention(q, k, v, 8, lengths=lengths, sliding=sliding)
    k, v = k.clone(), v.clone()
    k[0, 6:], v[0, 6:] = 3e38, torch.inf
    y, _ = chunked_attention(q, k, v, 8, lengths=lengths, sliding=sliding)
    assert torch.equal(y, wanted)
