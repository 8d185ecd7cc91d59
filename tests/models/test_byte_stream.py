"""Facts about the costs of a stream of bytes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from polewise import PolewiseConfig, PolewiseForCausalLM, states
from polewise.models.byte_stream import byte_costs, start_of_stream

TEXT = bytes(range(256))


def small_model(vocab_size=256):
    torch.manual_seed(0)
    options = {"chunk_length": 8, "bin_length": 8}
    config = PolewiseConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        intermediate_size=16,
        mixer_options=options,
    )
    return PolewiseForCausalLM(config).double().eval()


MODEL = small_model()


@pytest.mark.parametrize("length", [1, 2, 100, 256])
def test_a_cost_is_the_logarithm_of_the_probability(length):
    costs, _ = byte_costs(MODEL, TEXT[:length])
    ids = torch.tensor([list(TEXT[:length])])
    with torch.no_grad():
        nats = functional.cross_entropy(MODEL(ids).logits[0, :-1], ids[0, 1:], reduction="none")
    torch.testing.assert_close(costs[1:], nats / math.log(2))
    assert costs[0] == 8
    assert costs.shape == (length,)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 256), max_size=5).map(sorted))
def test_any_split_gives_the_costs_and_the_state_of_one_pass(cuts):
    whole, end = byte_costs(MODEL, TEXT)
    state, parts = None, []
    for first, last in zip([0, *cuts], [*cuts, len(TEXT)], strict=True):
        costs, state = byte_costs(MODEL, TEXT[first:last], state)
        parts.append(costs)
    torch.testing.assert_close(torch.cat(parts), whole)
    for mine, theirs in zip(states.tensors(state), states.tensors(end), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_state_does_not_grow():
    _, early = byte_costs(MODEL, TEXT[:1])
    _, late = byte_costs(MODEL, TEXT * 4, early)
    assert states.num_bytes(early) == states.num_bytes(late)


def test_a_state_is_saved_and_loaded(tmp_path):
    _, state = byte_costs(MODEL, TEXT)
    states.save(state, tmp_path / "state")
    loaded = states.load(tmp_path / "state", like=start_of_stream(MODEL))
    wanted, _ = byte_costs(MODEL, b"more", state)
    torch.testing.assert_close(byte_costs(MODEL, b"more", loaded)[0], wanted, rtol=0, atol=0)


def test_no_bytes_cost_nothing_and_leave_the_state():
    _, state = byte_costs(MODEL, TEXT)
    costs, after = byte_costs(MODEL, b"", state)
    assert costs.shape == (0,)
    assert after is state


def test_a_vocabulary_that_is_not_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocabulary of 256 bytes; got 30"):
        byte_costs(small_model(vocab_size=30), b"\1\2")
