"""Facts about selective copying."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from polewise.tasks import SelectiveCopyTask
from polewise.tasks.task import IGNORED

SMALL = SelectiveCopyTask(length=20, num_tokens=5, vocab_size=9, num_eval=30, batch_size=16)


def test_the_answers_are_the_data_tokens_in_order():
    for batch in [*SMALL.eval_batches(), *islice(SMALL.train_batches(0), 3)]:
        for tokens, labels in zip(batch["inputs"].tolist(), batch["labels"].tolist(), strict=True):
            data = [token for token in tokens[:20] if token != 0]
            assert tokens[20:] == [8] * 5
            assert set(data) <= set(range(1, 8))
            assert labels == [IGNORED] * 20 + data


def test_data_stand_anywhere_and_are_any_token():
    task = SelectiveCopyTask(length=6, num_tokens=2, vocab_size=5, batch_size=6000)
    batch = next(task.train_batches(0))
    data = batch["inputs"][:, :6]
    # Two of six places, and every pair of places as often as any other: 15 of them.
    pairs = torch.stack([row.nonzero().flatten() for row in data])
    counts = torch.bincount(pairs[:, 0] * 6 + pairs[:, 1])
    assert (counts > 0).sum() == 15
    assert (counts[counts > 0] / 6000 - 1 / 15).abs().max() < 0.015
    shares = torch.bincount(data[data != 0], minlength=5)[1:4] / 12000
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), rtol=0, atol=0.02)


def test_nothing_but_data_is_possible():
    batch = next(SelectiveCopyTask(length=4, num_tokens=4, batch_size=3).train_batches(0))
    assert torch.equal(batch["inputs"][:, :4], batch["labels"][:, 4:])


def test_the_data_seed_alone_chooses_what_is_held_out():
    def held_out(seed):
        task = SelectiveCopyTask(length=20, num_tokens=5, num_eval=30, data_seed=seed)
        return torch.cat([batch["inputs"] for batch in task.eval_batches()])

    assert torch.equal(held_out(0), held_out(0))
    assert not torch.equal(held_out(0), held_out(1))


def test_loss_and_accuracy_count_the_markers_alone():
    batch = next(SMALL.train_batches(0))
    torch.manual_seed(0)
    logits = torch.randn(16, 25, 9)
    right, nats = [], []
    for row, labels in zip(logits, batch["labels"].tolist(), strict=True):
        for scores, label in zip(row[20:], labels[20:], strict=True):
            right.append(int(scores.argmax()) == label)
            nats.append(float(scores.logsumexp(0) - scores[label]))
    metrics = SMALL.metrics(logits, batch)
    assert float(metrics["accuracy"][0]) / metrics["accuracy"][1] == pytest.approx(np.mean(right))
    assert float(metrics["loss"][0]) / metrics["loss"][1] == pytest.approx(np.mean(nats), rel=1e-5)
    assert float(SMALL.loss(logits, batch)) == pytest.approx(np.mean(nats), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 5000}, "num_tokens must be at most length, 4096; got 5000"),
        ({"vocab_size": 3}, "vocab_size must be an integer of at least 4; got 3"),
        ({"length": 0}, "length must be an integer of at least 1; got 0"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        SelectiveCopyTask(**options)
