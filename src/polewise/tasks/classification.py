"""What all tasks with one class a sequence measure."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from polewise.tasks.task import Batch, Metrics


def class_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of logits (batch, classes), in nats."""
    return F.cross_entropy(logits, batch["labels"])


def class_metrics(logits: Tensor, batch: Batch) -> Metrics:
    """Return `accuracy` and `loss` (nats) of logits (batch, classes)."""
    labels = batch["labels"]
    total = F.cross_entropy(logits, labels, reduction="sum")
    return {
        "accuracy": ((logits.argmax(-1) == labels).sum(), len(labels)),
        "loss": (total, len(labels)),
    }
