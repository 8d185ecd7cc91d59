"""Facts about models that name a class."""

from __future__ import annotations

import pytest
import torch
from tests.models.small_models import FOCUS, tokens
from torch.nn import functional

from polewise import PolewiseConfig, PolewiseForSequenceClassification
from polewise.models.pooling import pool

pytest.importorskip("transformers")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_classification_reads_numbers_and_ignores_padding(causal, pooling):
    torch.manual_seed(0)
    config = PolewiseConfig(
        num_input_features=2, num_labels=3, hidden_size=8, num_hidden_layers=1,
        mixer_options=FOCUS | {"causal": causal}, pooling=pooling,
    )  # fmt: skip
    model = PolewiseForSequenceClassification(config)
    x, mask = torch.randn(2, 20, 2), torch.ones(2, 20, dtype=torch.long)
    mask[1, 12:] = 0
    output = model(input_values=x, attention_mask=mask, labels=torch.tensor([0, 2]))
    assert torch.isfinite(output.loss)
    alone = model(input_values=x[1:, :12]).logits
    torch.testing.assert_close(output.logits[1:], alone, rtol=1e-4, atol=1e-5)


def test_a_class_is_read_from_the_mean_of_all_steps_or_from_the_last():
    torch.manual_seed(0)
    options = {"num_input_features": 2, "hidden_size": 8, "num_hidden_layers": 1}
    x, mask = torch.randn(2, 9, 2), torch.ones(2, 9, dtype=torch.long)
    mask[0, -1], mask[1] = 0, 0  # a row of eight steps, and one of none
    model = PolewiseForSequenceClassification(PolewiseConfig(**options, mixer_options=FOCUS))
    hidden = model.model(input_values=x[:1, :8]).last_hidden_state
    for pooling, pooled in (("mean", hidden.mean(1)), ("last", hidden[:, -1])):
        model.config.pooling = pooling
        logits = model(input_values=x, attention_mask=mask).logits
        torch.testing.assert_close(logits[:1], model.score(pooled))
        torch.testing.assert_close(logits[1], model.score.bias)
    with pytest.raises(ValueError, match=r"pooling.*lats"):
        PolewiseConfig(**options, pooling="lats")


def test_numbers_of_another_shape_are_named_and_of_another_precision_read():
    config = PolewiseConfig(num_input_features=2, num_labels=3, hidden_size=8, num_hidden_layers=1)
    model = PolewiseForSequenceClassification(config)
    mask = torch.arange(20) < torch.tensor([20, 3, 4, 5])[:, None]
    for shape in ((4, 20), (4, 20, 3)):
        with pytest.raises(ValueError, match=r"input_values must have shape \(batch, length, 2\)"):
            model(input_values=torch.zeros(shape), attention_mask=mask)
    x = torch.randn(4, 20, 2, dtype=torch.float64)
    assert torch.equal(model(input_values=x).logits, model(input_values=x.float()).logits)


def test_the_mean_of_a_long_row_in_half_precision_is_that_of_the_row():
    hidden = torch.full((1, 70_000, 2), 3.0, dtype=torch.float16)
    mask = torch.ones(1, 70_000)
    mask[0, -1] = 0
    assert pool(hidden, mask, "mean").tolist() == [[3.0, 3.0]]


def test_numbers_under_a_mask_are_not_looked_at_in_training_either():
    torch.manual_seed(0)
    config = PolewiseConfig(
        num_input_features=2, num_labels=3, hidden_size=8, num_hidden_layers=1, mixer_options=FOCUS
    )
    model = PolewiseForSequenceClassification(config)
    x, mask = torch.randn(1, 9, 2), torch.ones(1, 9, dtype=torch.long)
    x[0, 3], mask[0, 3] = torch.nan, 0
    model(input_values=x, attention_mask=mask, labels=torch.tensor([1])).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["numbers", "several labels", "one of several"])
def test_a_share_of_a_larger_batch_is_a_share_of_its_loss(kind):
    """As a Trainer sums the losses of the parts that it accumulates."""
    labels = {
        "numbers": torch.randn(4),
        "several labels": torch.randint(0, 2, (4, 3)).float(),
        "one of several": torch.randint(0, 3, (4,)),
    }[kind]
    torch.manual_seed(0)
    config = PolewiseConfig(
        hidden_size=8, num_hidden_layers=1, vocab_size=30, mixer_options=FOCUS,
        num_labels=1 if kind == "numbers" else 3,
    )  # fmt: skip
    model, ids, count = PolewiseForSequenceClassification(config), tokens(4, 6), labels.numel()
    whole = model(ids, labels=labels).loss
    parts = [
        model(ids[rows], labels=labels[rows], num_items_in_batch=count).loss
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("kind", ["regression", "single_label", "multi_label"])
def test_the_loss_is_that_of_the_kind_of_labels(kind):
    torch.manual_seed(0)
    config = PolewiseConfig(
        hidden_size=8, num_hidden_layers=1, vocab_size=30, mixer_options=FOCUS,
        num_labels=1 if kind == "regression" else 3,
    )  # fmt: skip
    model, ids = PolewiseForSequenceClassification(config), tokens(4, 6)
    labels, measure = {
        "regression": (torch.randn(4, 1), functional.mse_loss),
        "single_label": (torch.tensor([2, 0, 1, 2]), functional.cross_entropy),
        "multi_label": (
            torch.randint(0, 2, (4, 3)).float(), functional.binary_cross_entropy_with_logits,
        ),
    }[kind]  # fmt: skip
    output = model(ids, labels=labels)
    torch.testing.assert_close(output.loss, measure(output.logits, labels))


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (torch.tensor([3, 1, 5, 2]), None),
        (torch.rand(4, 3) < 0.5, None),
        (torch.randint(0, 2, (4, 3)), "multi_label_classification"),
    ],
)
def test_integers_and_truths_are_numbers_where_no_class_is_named(labels, problem):
    torch.manual_seed(0)
    config = PolewiseConfig(
        hidden_size=8, num_hidden_layers=1, vocab_size=30, mixer_options=FOCUS,
        num_labels=1 if labels.ndim == 1 else 3, problem_type=problem,
    )  # fmt: skip
    model, ids = PolewiseForSequenceClassification(config), tokens(4, 6)
    loss = model(ids, labels=labels).loss
    loss.backward()
    torch.testing.assert_close(loss, model(ids, labels=labels.float()).loss)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_classes_are_integers_of_any_size(dtype):
    config = PolewiseConfig(
        hidden_size=8, num_hidden_layers=1, vocab_size=30, mixer_options=FOCUS, num_labels=3
    )
    model, ids = PolewiseForSequenceClassification(config), tokens(4, 6)
    output = model(ids, labels=torch.tensor([2, 0, 1, 2], dtype=dtype))
    wanted = functional.cross_entropy(output.logits, torch.tensor([2, 0, 1, 2]))
    torch.testing.assert_close(output.loss, wanted)


def test_who_asks_for_a_cache_of_a_classification_gets_none():
    config = PolewiseConfig(hidden_size=8, num_hidden_layers=1, mixer_options=FOCUS)
    model = PolewiseForSequenceClassification(config)
    torch.testing.assert_close(
        model(tokens(1, 9), use_cache=True).logits, model(tokens(1, 9)).logits
    )


def test_what_was_read_before_is_no_part_of_a_class():
    config = PolewiseConfig(hidden_size=8, num_hidden_layers=1, mixer_options=FOCUS)
    model = PolewiseForSequenceClassification(config)
    cache = model.model(tokens(1, 9), use_cache=True).cache
    with pytest.raises(ValueError, match="cache must be None"):
        model(tokens(1, 9), cache=cache)


@pytest.mark.parametrize(
    ("num_labels", "problem", "labels", "message"),
    [
        (3, "regression", torch.ones(4), r"\(4, 3\), a number for each score; got \(4,\)"),
        (1, None, torch.ones(1), r"\(4,\) or \(4, 1\), a number for each score; got \(1,\)"),
        (3, None, torch.ones(4, 3).long(), r"an integer for each row; got \(4, 3\)"),
        (3, "single_label_classification", [0, 1, 2, 0], "an integer for each row; got list"),
    ],
)
def test_labels_of_another_shape_are_refused_and_not_spread(num_labels, problem, labels, message):
    config = PolewiseConfig(
        hidden_size=8, num_hidden_layers=1, vocab_size=30, mixer_options=FOCUS,
        num_labels=num_labels, problem_type=problem,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"labels must have shape .*{message}"):
        PolewiseForSequenceClassification(config)(tokens(4, 6), labels=labels)
