"""Facts about induction heads."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch

from polewise.tasks import InductionTask
from polewise.tasks.task import IGNORED

SMALL = InductionTask(length=10, test_lengths="3,10,40", vocab_size=6, num_eval=20, batch_size=8)


def test_the_answer_is_what_followed_the_special_token_before():
    for batch in [*SMALL.eval_batches(), *islice(SMALL.train_batches(0), 3)]:
        for tokens, labels in zip(batch["inputs"].tolist(), batch["labels"].tolist(), strict=True):
            first = tokens.index(5)
            assert [t for t, token in enumerate(tokens) if token == 5] == [first, len(tokens) - 1]
            assert labels == [IGNORED] * (len(tokens) - 1) + [tokens[first + 1]]
            assert 0 <= labels[-1] < 5


def test_the_first_special_token_stands_at_any_place_that_leaves_room_for_an_answer():
    task = InductionTask(length=10, test_lengths="10", vocab_size=6, batch_size=8000)
    batch = next(task.train_batches(0))
    places = (batch["inputs"] == 5).int().argmax(1)
    shares = torch.bincount(places, minlength=8) / 8000
    torch.testing.assert_close(shares, torch.full((8,), 1 / 8), rtol=0, atol=0.015)
    answers = torch.bincount(batch["labels"][:, -1], minlength=5) / 8000
    torch.testing.assert_close(answers, torch.full((5,), 1 / 5), rtol=0, atol=0.02)


def test_it_trains_at_one_length_and_tests_at_others():
    assert SMALL.spec.length == 40
    assert next(SMALL.train_batches(0))["inputs"].shape == (8, 10)
    tested = [tuple(batch["inputs"].shape) for batch in SMALL.eval_batches()]
    # Of long ones fewer at a time: no more tokens than in a batch of training.
    assert tested == [
        *((num, length) for length in (3, 10) for num in (8, 8, 4)),
        *(10 * [(2, 40)]),
    ]


def test_held_out_sequences_depend_on_the_data_seed_and_on_no_other_length():
    def held_out(**options):
        task = InductionTask(**({"test_lengths": "40", "num_eval": 8} | options))
        return list(task.eval_batches())[-1]["inputs"]

    assert torch.equal(held_out(), held_out(test_lengths="10,40"))
    assert not torch.equal(held_out(), held_out(data_seed=1))


def test_accuracy_counts_the_last_position_of_every_length_alike():
    sums: dict[str, list] = {}
    task = replace(SMALL, length=40)  # all lengths in batches of the same size
    for number, batch in enumerate(task.eval_batches()):
        length = batch["inputs"].shape[1]
        logits = torch.zeros(*batch["inputs"].shape, 6)
        answer = batch["labels"][:, -1].clone()
        answer[: number % 3] += 1  # some are wrong: 0, 1 and 2 rows of a length's batches
        logits[torch.arange(len(answer)), -1, answer] = 100.0
        metrics = SMALL.metrics(logits, batch)
        assert set(metrics) == {"accuracy", f"accuracy_{length}", "loss"}
        for name, (total, count) in metrics.items():
            before = sums.get(name, [0.0, 0])
            sums[name] = [before[0] + float(total), before[1] + int(count)]
    assert {name: total / count for name, (total, count) in sums.items()} == pytest.approx(
        {"accuracy": 0.85, "accuracy_3": 0.85, "accuracy_10": 0.85, "accuracy_40": 0.85,
         "loss": 15.0}, rel=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 2}, "length must be an integer of at least 3; got 2"),
        ({"test_lengths": "64;128"}, "test_lengths must be lengths separated by commas"),
        ({"test_lengths": ""}, "test_lengths must be lengths separated by commas"),
        ({"test_lengths": "64,2"}, "test_lengths must be at least 3; got 2"),
        ({"vocab_size": 2}, "vocab_size must be an integer of at least 3; got 2"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        InductionTask(**options)
