"""What mixers ask of what they are given."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polewise.ops.shards import Shards
from polewise.states import tensors


def require_input(x: Tensor, dim: int, state: object = None, *, causal: bool = True) -> None:
    """Check that `x` is a sequence of `dim` channels, and that a state can be used with it.

    Raises:
        ValueError: another shape, a state of other rows, or one where the mixer looks both ways.
    """
    if x.ndim != 3 or x.shape[-1] != dim:
        raise ValueError(f"x must have shape (batch, length, {dim}); got {tuple(x.shape)}.")
    if state is not None and not causal:
        raise ValueError(
            "state must be None without causal: filtering backwards in time needs the whole "
            "sequence. Set causal=True to stream."
        )
    rows = x.shape[0]
    for part in tensors(state):
        if part.shape[0] != rows:
            raise ValueError(f"state must have as many rows as x, {rows}; got {part.shape[0]}.")


def steps_before(
    x: Float[Tensor, "batch length ..."],
    position: Int[Tensor, " batch"] | None,
    shards: Shards | None = None,
) -> Int[Tensor, " batch"]:
    """Steps before the first of `x`, row by row: those that its state has seen, `position`, and
    those of the pieces that processes before this one have."""
    if position is None:
        position = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    return position if shards is None else position + shards.rank * x.shape[1]
