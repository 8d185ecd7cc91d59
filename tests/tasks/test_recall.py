"""Facts about associative recall."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from polewise.tasks import RecallTask
from polewise.tasks.task import IGNORED


def first_batch(task, seed=0):
    return next(task.train_batches(seed))


def pairs_of(task, row):
    start = task.padding
    tokens = row.tolist()[start : start + task.length]
    return list(zip(tokens[::2], tokens[1::2], strict=True))


def test_the_query_always_occurs_and_the_answer_is_its_value():
    task = RecallTask(length=20, vocab_size=14, num_eval=64)
    for batch in task.eval_batches():
        for tokens, labels in zip(batch["inputs"], batch["labels"], strict=True):
            dictionary = dict(pairs_of(task, tokens))
            assert dictionary[int(tokens[-1])] == int(labels[-1])


def test_a_key_has_one_value_in_a_sequence_and_others_in_other_sequences():
    task = RecallTask(length=60, batch_size=64)
    rows = [pairs_of(task, row) for row in first_batch(task)["inputs"]]
    for pairs in rows:
        assert len(set(pairs)) == len({key for key, _ in pairs})
    assert len({value for pairs in rows for key, value in pairs if key == 1}) > 7


def test_tokens_are_those_of_a_vocabulary_in_string_order():
    task = RecallTask(length=40, vocab_size=10, batch_size=64)
    inputs = first_batch(task)["inputs"]
    assert set(inputs[:, 0:40:2].unique().tolist()) == {1, 2, 3, 4}
    assert set(inputs[:, 1:40:2].unique().tolist()) == {5, 6, 7, 8}
    assert inputs[:, 40].eq(9).all()
    assert set(inputs[:, 41].unique().tolist()) == {1, 2, 3, 4}


def test_keys_values_and_queries_are_uniform():
    task = RecallTask(length=40, vocab_size=10, batch_size=4000)
    inputs = first_batch(task)["inputs"]
    for tokens in (inputs[:, 0:40:2], inputs[:, 1:40:2], inputs[:, 41]):
        shares = torch.unique(tokens, return_counts=True)[1] / tokens.numel()
        # Values of one sequence hang together, so the fair spread is that of 4000 draws.
        assert (shares - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_a_query_is_uniform_among_the_keys_that_occurred():
    task = RecallTask(length=4, vocab_size=30, batch_size=4000)
    inputs = first_batch(task)["inputs"]
    different = inputs[:, 0] != inputs[:, 2]
    first = (inputs[different, 5] == inputs[different, 0]).double().mean()
    assert abs(first - 0.5) < 5 * 0.5 / int(different.sum()) ** 0.5


def test_training_labels_are_the_next_token_everywhere():
    batch = first_batch(RecallTask(length=12))
    assert torch.equal(batch["labels"][:, :-1], batch["inputs"][:, 1:])
    assert batch["labels"].ne(-100).all()


def test_only_the_last_position_is_evaluated():
    for batch in RecallTask(length=12, num_eval=40).eval_batches():
        assert batch["labels"][:, :-1].eq(-100).all()
        assert batch["labels"][:, -1].ne(-100).all()


@pytest.mark.parametrize("align_to", [1, 5, 8, 32])
def test_alignment_pads_on_the_left_and_the_query_is_never_alone(align_to):
    task = RecallTask(length=30, align_to=align_to)
    plain = first_batch(RecallTask(length=30))
    batch = first_batch(task)
    assert batch["inputs"].shape[1] % align_to == 0
    assert batch["inputs"].shape[1] == task.spec.length
    assert torch.equal(batch["inputs"][:, task.padding :], plain["inputs"])
    assert torch.equal(batch["labels"][:, task.padding :], plain["labels"])
    assert batch["inputs"][:, : task.padding].eq(0).all()
    assert batch["labels"][:, : task.padding].eq(-100).all()


@pytest.mark.parametrize("num_train", [None, 45])
def test_training_resumes_at_any_step(num_train):
    task = RecallTask(length=10, batch_size=16, num_train=num_train)
    steps = list(itertools.islice(task.train_batches(3), 9))
    for first in (1, 5, 8):
        again = next(replace(task).train_batches(3, first_step=first))
        assert torch.equal(again["inputs"], steps[first]["inputs"])
        assert torch.equal(again["labels"], steps[first]["labels"])


def test_seeds_and_steps_give_different_batches():
    task = RecallTask(length=10)
    one, two = itertools.islice(task.train_batches(0), 2)
    assert not torch.equal(one["inputs"], two["inputs"])
    assert not torch.equal(one["inputs"], first_batch(task, seed=1)["inputs"])


def test_an_epoch_of_a_fixed_set_shows_every_sequence_once():
    task = RecallTask(length=10, batch_size=10, num_train=25)
    five = list(itertools.islice(task.train_batches(0), 5))  # two epochs of 25
    rows = [tuple(row.tolist()) for batch in five for row in batch["inputs"]]
    assert len(set(rows[:25])) == 25
    assert set(rows[:25]) == set(rows[25:])
    assert rows[:25] != rows[25:]


def test_held_out_sequences_are_distinct_and_not_in_the_fixed_training_set():
    # Just 20 sequences exist: 2 keys x 2 values when both keys are the same, else 2 orders of the
    # keys x 4 pairs of values x 2 queries. All are used.
    task = RecallTask(length=4, vocab_size=6, num_train=14, num_eval=6, batch_size=14)
    trained = {tuple(row.tolist()) for row in first_batch(task)["inputs"]}
    held = [
        (*tokens.tolist(), int(labels[-1]))
        for batch in task.eval_batches()
        for tokens, labels in zip(batch["inputs"], batch["labels"], strict=True)
    ]
    assert len(set(held)) == 6
    assert not {row[:-1] for row in held} & trained


def test_more_sequences_than_exist_are_refused():
    task = RecallTask(length=2, vocab_size=4, num_eval=2)
    with pytest.raises(ValueError, match=r"num_eval must be at most .* got 2, found 1"):
        task.prepare()


def test_unique_keys_occur_once():
    task = RecallTask(length=16, vocab_size=40, unique_keys=True)
    for row in first_batch(task)["inputs"]:
        keys = [key for key, _ in pairs_of(task, row)]
        assert len(set(keys)) == len(keys)


def test_the_answer_alone_can_be_trained_on():
    whole = RecallTask(length=16, batch_size=8, align_to=8)
    alone = replace(whole, answer_only=True)
    every, answer = first_batch(whole), first_batch(alone)
    assert torch.equal(every["inputs"], answer["inputs"])
    assert every["labels"][:, whole.padding :].ne(IGNORED).all()
    assert answer["labels"][:, :-1].eq(IGNORED).all()
    assert torch.equal(every["labels"][:, -1], answer["labels"][:, -1])


def test_unique_keys_need_a_vocabulary_that_is_large_enough():
    RecallTask(length=28, vocab_size=30, unique_keys=True)
    with pytest.raises(ValueError, match=r"vocab_size must be at least 32 .* got 30"):
        RecallTask(length=30, vocab_size=30, unique_keys=True)


def test_the_window_ceiling_is_that_of_the_formula():
    task = RecallTask(length=4096)
    published = {16: 0.40, 32: 0.67, 64: 0.90, 128: 0.991, 256: 0.9999}
    for window, ceiling in published.items():
        assert task.window_ceiling(window) == pytest.approx(ceiling, abs=0.006)
    assert task.window_ceiling(2) == 0
    assert RecallTask(length=16).window_ceiling(18) == 1


def test_the_window_ceiling_is_what_a_window_finds():
    task = RecallTask(length=256, batch_size=4000)
    inputs = first_batch(task)["inputs"].numpy()
    found = (inputs[:, -16:-2:2] == inputs[:, -1:]).any(axis=1).mean()
    ceiling = task.window_ceiling(16)
    assert abs(found - ceiling) < 5 * np.sqrt(ceiling * (1 - ceiling) / 4000)


def test_a_perfect_model_scores_one_and_a_blind_one_does_not():
    task = RecallTask(length=12, num_eval=32)
    batch = next(iter(task.eval_batches()))
    perfect = torch.nn.functional.one_hot(batch["labels"].clamp(min=0), 30).float()
    right, count = task.metrics(perfect, batch)["accuracy"]
    assert (int(right), int(count)) == (32, 32)
    right, _ = task.metrics(torch.zeros_like(perfect), batch)["accuracy"]
    assert int(right) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 7}, "length must be even"),
        ({"length": 0}, "length must be an integer of at least 2; got 0"),
        ({"vocab_size": 9}, "vocab_size must be even"),
        ({"num_train": 0}, "num_train must be an integer of at least 1; got 0"),
        ({"align_to": 0}, "align_to must be an integer of at least 1; got 0"),
        ({"batch_size": 2.0}, "batch_size must be an integer of at least 1; got 2.0"),
    ],
)
def test_impossible_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        RecallTask(**options)
