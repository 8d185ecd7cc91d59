"""How many bits a byte model needs for a stream, in memory that does not grow.

    cost of x[t] = -log2 p(x[t] | x[0], ..., x[t - 1]),    cost of x[0] = log2 256 = 8

The sum is the length of the best code that follows the model, so its mean, in bits per byte,
compares with any compressor.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


class ByteStreamState(NamedTuple):
    """What a segment hands to the next one."""

    model: Any
    """The model's state; it has read everything but `unread`."""
    unread: Int[Tensor, "1 unread"]
    """The last byte, which the next one follows; empty before the first."""


def start_of_stream(model: nn.Module) -> ByteStreamState:
    """The state before the first byte."""
    device = next(model.parameters()).device
    return ByteStreamState(
        model.initial_state(1),  # type: ignore[operator]
        torch.zeros(1, 0, dtype=torch.int64, device=device),
    )


@torch.no_grad()
def byte_costs(
    model: nn.Module, segment: bytes, state: ByteStreamState | None = None
) -> tuple[Float[Tensor, " length"], ByteStreamState]:
    """What each byte of a segment costs, given all bytes before it.

    A stream cut anywhere, its pieces read one after another with the returned state, gives the
    costs of one pass.

    Args:
        model: a language model of bytes whose `step(ids, state) -> (logits, state)` streams.
        segment: the next bytes.
        state: what the segment before returned; None at the start, where the first byte has
            nothing before it and costs 8.

    Returns:
        costs: in bits, float64, on the CPU. None at all for an empty segment.
        state: for the next segment.

    Raises:
        ValueError: the model's vocabulary is not the 256 bytes.
    """
    state = start_of_stream(model) if state is None else state
    if not segment:
        return torch.zeros(0, dtype=torch.float64), state
    ids = torch.cat([state.unread, torch.tensor([list(segment)], device=state.unread.device)], 1)
    logits, after = model.step(ids[:, :-1], state.model)  # type: ignore[operator]
    if logits.shape[-1] != 256:
        raise ValueError(f"model must have a vocabulary of 256 bytes; got {logits.shape[-1]}.")
    predicted = min(len(segment), logits.shape[1])  # all, but for the first of the stream
    nats = functional.cross_entropy(
        logits[0, logits.shape[1] - predicted :].cpu().double(),  # not every GPU has float64
        ids[0, ids.shape[1] - predicted :].cpu(),
        reduction="none",
    )
    first = nats.new_full((len(segment) - predicted,), math.log(256))
    return torch.cat([first, nats]) / math.log(2), ByteStreamState(after, ids[:, -1:])
