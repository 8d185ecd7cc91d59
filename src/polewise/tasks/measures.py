"""What tasks measure: one class a sequence, or the tokens that carry a label."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from polewise.tasks.task import IGNORED, Batch, Metrics


def class_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of logits (batch, classes), in nats."""
    return functional.cross_entropy(logits, batch["labels"])


def class_metrics(logits: Tensor, batch: Batch) -> Metrics:
    """Return `accuracy` and `loss` (nats) of logits (batch, classes)."""
    labels = batch["labels"]
    total = functional.cross_entropy(logits, labels, reduction="sum")
    return {
        "accuracy": ((logits.argmax(-1) == labels).sum(), len(labels)),
        "loss": (total, len(labels)),
    }


def token_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of logits (batch, length, tokens) where there is a label, in
    nats."""
    labels = batch["labels"].flatten()
    return functional.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORED)


def token_metrics(logits: Tensor, batch: Batch) -> Metrics:
    """Return `accuracy` and `loss` (nats) of logits (batch, length, tokens) where there is a
    label."""
    labels = batch["labels"]
    labelled = labels != IGNORED
    right = (logits.argmax(-1) == labels) & labelled
    total = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return {"accuracy": (right.sum(), labelled.sum()), "loss": (total, labelled.sum())}
