"""Sums of the past that fade: a few filters with one real pole in every channel."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from polewise.ops import normal_form_filter
from polewise.ops.shards import Shards, normal_form_state_before


def decaying_sums(
    x: Float[Tensor, "batch length dim"],
    decay: Float[Tensor, "memories dim"],
    gain: Float[Tensor, "memories dim"],
    skip: Float[Tensor, " dim"] | float = 0.0,
    *,
    state: Float[Tensor, "batch memories dim"] | None = None,
    lengths: Int[Tensor, " batch"] | None = None,
    shards: Shards | None = None,
) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch memories dim"]]:
    r"""Weigh every channel's decaying sums of its past.

    $$ y_t = \sum_j g_j s_{j,t} + d x_t, \qquad s_{j,t} = \rho_j s_{j,t-1} + x_t $$

    Args:
        x: the sequence.
        decay: $\rho$, each between 0 and 1.
        gain: $g$.
        skip: $d$.
        state: the sums after the segment before; None is a start from nothing.
        lengths: real steps in each row; padding takes no time.
        shards: where the sequence is split over processes.

    Returns:
        y, and the sums after the last real step.

    Raises:
        ValueError: a state of another number of sums.
    """
    if state is not None and state.shape[1] != len(decay):
        raise ValueError(f"state must hold {len(decay)} memories; got {state.shape[1]}.")
    batch, length, dim = x.shape
    angle = decay.new_zeros(batch, min(length, 1), dim)
    y, ends = skip * x, []
    for j in range(len(decay)):
        pole = decay[j].expand_as(angle)
        before = None if state is None else functional.pad(state[:, j, :, None], (0, 1))
        if shards is not None:
            before = normal_form_state_before(x, pole, angle, length, shards)
        mix = torch.stack([gain[j], torch.zeros_like(gain[j])], -1)
        filtered, end = normal_form_filter(
            x, pole, angle, max(length, 1), mix=mix, lengths=lengths, state=before
        )
        y = y + filtered
        ends.append(end[..., 0])
    return y, torch.stack(ends, 1)
