"""Facts about states, whatever their tree."""

from __future__ import annotations

import pytest
import torch

from polewise import FocusConfig, states


@pytest.fixture
def mixer():
    torch.manual_seed(0)
    return FocusConfig(
        dim=8, chunk_length=8, filters=1, bin_length=8, hypernetwork="recurrent"
    ).build()


def test_a_saved_state_continues_as_if_never_saved(mixer, tmp_path):
    x = torch.randn(2, 30, 8)
    _, state = mixer(x)
    states.save(state, tmp_path / "state")
    _, fresh = mixer(x[:, :3])
    again = states.load(tmp_path / "state", fresh)
    assert type(again) is type(state)
    torch.testing.assert_close(mixer(x, again)[0], mixer(x, state)[0])


def test_a_state_of_another_model_is_refused(mixer, tmp_path):
    _, state = mixer(torch.randn(1, 30, 8))
    states.save(state, tmp_path / "state")
    _, other = mixer(torch.randn(2, 3, 8))
    with pytest.raises(
        ValueError, match=r"another model or batch: state.position must have shape \(2\)"
    ):
        states.load(tmp_path / "state", other)


def test_rows_can_be_repeated_and_reordered(mixer):
    x = torch.randn(2, 20, 8)
    _, state = mixer(x)
    chosen = torch.tensor([1, 1, 0])
    y, _ = mixer(x[chosen], states.select_batch(state, chosen))
    torch.testing.assert_close(y, mixer(x, state)[0][chosen])


def test_detaching_cuts_the_gradient_and_moving_keeps_positions_whole(mixer):
    _, state = mixer(torch.randn(1, 20, 8, requires_grad=True))
    assert not any(leaf.requires_grad for leaf in states.tensors(states.detach(state)))
    moved = states.to(state, dtype=torch.float64)
    assert moved.position.dtype == torch.int64
    assert moved.filter.dtype == torch.float64
    assert states.num_bytes(moved) > states.num_bytes(state)
