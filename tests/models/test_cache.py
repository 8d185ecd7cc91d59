"""Facts about the cache that transformers hands from step to step."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.models.small_models import language_model, tokens

from polewise import states

pytest.importorskip("transformers")


def test_training_returns_no_cache_and_evaluation_does(model):
    ids = tokens(1, 5)
    assert model(ids).cache.get_seq_length() == 5
    assert model(ids, use_cache=False).cache is None
    assert language_model().train()(ids).cache is None


def test_a_replica_on_one_of_several_devices_returns_tensors_alone(model, monkeypatch):
    monkeypatch.setattr(model.model, "_is_replica", True, raising=False)  # as DataParallel does
    assert model(tokens(1, 4)).cache is None


def test_a_snapshot_is_a_way_back(model):
    ids = tokens(2, 30)
    cache = model(ids[:, :10], use_cache=True).cache
    before = cache.copy()
    first = model(ids[:, 10:20], cache=cache).logits
    model(ids[:, 20:], cache=cache)
    assert (cache.get_seq_length(), before.get_seq_length()) == (30, 10)
    assert torch.equal(model(ids[:, 10:20], cache=before).logits, first)


def test_a_cache_can_be_reordered_repeated_cut_and_cleared(model):
    ids = tokens(3, 20)
    whole = model(ids).logits

    def read():
        return model(ids[:, :12], use_cache=True).cache

    cache = read()
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    again = model(ids[[2, 0, 1], 12:], cache=cache).logits
    torch.testing.assert_close(again, whole[[2, 0, 1], 12:])
    cache = read()
    cache.batch_select_indices(torch.tensor([True, False, True]))
    assert cache.batch_size == 2
    torch.testing.assert_close(model(ids[[0, 2], 12:], cache=cache).logits, whole[[0, 2], 12:])
    cache = read()
    cache.batch_repeat_interleave(2)
    rows = [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(model(ids[rows, 12:], cache=cache).logits, whole[rows, 12:])
    cache.crop(0)
    with pytest.raises(ValueError, match=r"tokens_to_remove must be 0.*copy"):
        cache.crop(-1)
    cache.reset()
    assert (len(cache), cache.batch_size, cache.get_seq_length(), cache.num_bytes()) == (
        0,
        -1,
        0,
        0,
    )


def test_a_cache_in_another_precision_goes_on_from_the_same_place(model):
    ids = tokens(2, 11)
    cache = model(ids[:, :7], use_cache=True).cache
    assert cache.to("cpu") is cache
    wide = cache.to(torch.float64)
    assert {leaf.dtype for leaf in states.tensors(wide.state)} <= {torch.float64, torch.int64}
    assert wide.get_seq_length() == cache.get_seq_length() == 7
    y = copy.deepcopy(model).double()(ids[:, 7:], cache=wide).logits
    torch.testing.assert_close(y.float(), model(ids).logits[:, 7:], rtol=1e-3, atol=1e-4)


def test_a_cache_may_be_given_by_its_former_name(model):
    first = model(tokens(1, 4), use_cache=True)
    before = first.past_key_values.copy()
    now = model(tokens(1, 1), cache=first.cache)
    with pytest.warns(FutureWarning, match="Use `cache` instead"):
        former = model(tokens(1, 1), past_key_values=before)
    assert former.cache is before
    torch.testing.assert_close(former.logits, now.logits, rtol=0, atol=0)
