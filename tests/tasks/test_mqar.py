"""Facts about multi-query associative recall."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from polewise.tasks import MqarTask
from polewise.tasks.task import IGNORED

SMALL = MqarTask(train_on="16:2,24:5", test_on="16:4,32:3", vocab_size=40, num_eval=30)


def test_every_query_asks_for_the_value_beside_its_key_and_every_key_is_asked_once():
    for batch in [*SMALL.eval_batches(), *islice(SMALL.train_batches(0), 2)]:
        for tokens, labels in zip(batch["inputs"].tolist(), batch["labels"].tolist(), strict=True):
            asked = [t for t, label in enumerate(labels) if label != IGNORED]
            pairs = len(asked)
            dictionary = dict(zip(tokens[: 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
            assert len(dictionary) == len(set(dictionary.values())) == pairs
            assert {tokens[t] for t in asked} == set(dictionary)
            assert all(dictionary[tokens[t]] == labels[t] for t in asked)
            assert all(t >= 2 * pairs and t % 2 == 0 for t in asked)
            rest = set(range(2 * pairs, len(tokens))) - set(asked)
            assert all(tokens[t] == 0 for t in rest)


def test_keys_are_the_lower_half_and_values_the_upper():
    task = MqarTask(train_on="64:16", test_on="64:4", vocab_size=66, batch_size=200)
    inputs = next(task.train_batches(0))["inputs"]
    assert set(inputs[:, 0:32:2].unique().tolist()) == set(range(1, 33))
    assert set(inputs[:, 1:32:2].unique().tolist()) == set(range(33, 66))


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_places_are_weighted_draws_without_replacement(power):
    """Against numpy's own sequential draws, slot by slot, for the first key and the last."""
    task = MqarTask(
        train_on="20:4", test_on="20:4", vocab_size=40, batch_size=20000, gap_power=power
    )
    batch = next(task.train_batches(0))
    where = (batch["inputs"][:, 8:, None] == batch["inputs"][:, None, 0:8:2]).int().argmax(1) // 2
    weight = np.arange(1, 7) ** (power - 1)
    generator = np.random.default_rng(1)
    share = weight / weight.sum()
    drawn = np.stack([generator.choice(6, 4, replace=False, p=share) for _ in range(20000)])
    for pair in (0, 3):
        ours = torch.bincount(where[:, pair], minlength=6) / 20000
        theirs = torch.from_numpy(np.bincount(drawn[:, pair], minlength=6) / 20000)
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=0.02)


def test_accuracy_counts_queries_and_every_cell_alike():
    right = {"all": [], "16_4": [], "32_3": []}
    torch.manual_seed(0)
    sums: dict[str, list] = {}
    for batch in SMALL.eval_batches():
        logits = torch.randn(*batch["inputs"].shape, 40)
        good = torch.rand(batch["labels"].shape) < 0.5
        target = torch.where(good, batch["labels"].clamp(min=0), 0)
        logits.scatter_(2, target[..., None], 100.0)
        for row, labels in zip(logits.argmax(-1), batch["labels"], strict=True):
            asked = labels != IGNORED
            share = float((row[asked] == labels[asked]).double().mean())
            right["all"].append(share)
            right[f"{len(labels)}_{int(asked.sum())}"].append(share)
        for name, (total, count) in SMALL.metrics(logits, batch).items():
            before = sums.get(name, [0.0, 0])
            sums[name] = [before[0] + float(total), before[1] + int(count)]
    means = {name: total / count for name, (total, count) in sums.items()}
    assert means["accuracy"] == pytest.approx(np.mean(right["all"]))
    assert means["accuracy_16_4"] == pytest.approx(np.mean(right["16_4"]))
    assert means["accuracy_32_3"] == pytest.approx(np.mean(right["32_3"]))


def test_random_filler_leaves_keys_values_and_labels_as_they_were():
    task = MqarTask(train_on="32:4", test_on="32:4", vocab_size=64, random_filler=True)
    batch = next(task.train_batches(0))
    asked = batch["labels"] != IGNORED
    assert bool((batch["inputs"][:, 8:][~asked[:, 8:]] != 0).any())
    for tokens, labels in zip(batch["inputs"].tolist(), batch["labels"].tolist(), strict=True):
        dictionary = dict(zip(tokens[:8:2], tokens[1:8:2], strict=True))
        for t, label in enumerate(labels):
            assert label == IGNORED or dictionary[tokens[t]] == label


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_on": "64x4"}, "train_on must be written as length:pairs"),
        ({"test_on": ""}, "test_on must be written as length:pairs"),
        ({"train_on": "63:4"}, "train_on must have even lengths"),
        ({"train_on": "64:17"}, "at least 4 tokens a pair"),
        ({"vocab_size": 256}, "vocab_size must be larger than every length"),
        ({"vocab_size": 513}, "vocab_size must be even"),
        ({"gap_power": 0.0}, "gap_power must lie above 0"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        MqarTask(**options)
