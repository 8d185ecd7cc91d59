"""A model's answer to a batch, and its measures over the held-out data."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from polewise.tasks import Batch, Task


def compute_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return the model's float32 logits, or forecast, for the tokens or values of a batch."""
    inputs = batch["inputs"]
    arguments = {"input_values" if inputs.is_floating_point() else "input_ids": inputs}
    if "lengths" in batch:
        positions = torch.arange(inputs.shape[1], device=inputs.device)
        arguments["attention_mask"] = (positions < batch["lengths"][:, None]).long()
    return model(**arguments).logits.float()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    accelerator: Accelerator | None = None,
    *,
    before_batch: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Return the task's metrics over all held-out batches.

    Sums and counts are kept in float64 and divided once, so batches of different sizes weigh what
    they hold. With several processes each takes its share of the batches. What `before_batch`
    raises, in all processes alike, ends it.
    """
    device = next(model.parameters()).device
    index, stride = (0, 1)
    if accelerator is not None:
        index, stride = accelerator.process_index, accelerator.num_processes
    was_training = model.training
    model.eval()
    totals: dict[str, Tensor] = {}
    batches = iter(task.eval_batches())
    try:
        while group := list(islice(batches, stride)):
            before_batch()
            # The last group may not go round. All go through the model alike, because sharded
            # parameters are put together in every pass.
            weight = float(index < len(group))
            batch = group[min(index, len(group) - 1)]
            batch = {name: value.to(device) for name, value in batch.items()}
            for name, (total, count) in task.metrics(compute_logits(model, batch), batch).items():
                pair = torch.tensor([float(total), float(count)], dtype=torch.float64) * weight
                totals[name] = totals.get(name, torch.zeros(2, dtype=torch.float64)) + pair
    finally:
        model.train(was_training)
    if stride > 1:
        parts = gather_object([totals])  # batches may differ in the names of their measures
        totals = {name: torch.zeros(2, dtype=torch.float64) for part in parts for name in part}
        for part in parts:
            for name, pair in part.items():
                totals[name] += pair
    return {name: float(pair[0] / pair[1]) for name, pair in totals.items()}
