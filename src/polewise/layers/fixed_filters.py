"""A few second-order filters in every channel whose poles never move."""

from __future__ import annotations

from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polewise.ops import normal_form_filter
from polewise.ops.precision import accumulator_dtype
from polewise.ops.shards import Shards, normal_form_state_before

FOREVER = 2**31 - 1
"""Steps of a bin that no sequence outlasts."""


def fixed_filters(
    x: Float[Tensor, "batch length dim"],
    decay: Float[Tensor, "filters dim"],
    angle: Float[Tensor, "filters dim"],
    mix: Float[Tensor, "filters dim 2"],
    skip: Float[Tensor, " dim"] | None = None,
    *,
    state: Float[Tensor, "batch filters dim 2"] | None = None,
    lengths: Int[Tensor, " batch"] | None = None,
    shards: Shards | None = None,
) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch filters dim 2"]]:
    r"""Sum the filters of every channel.

    $$ y_t = \sum_j \operatorname{Re}(\bar c_j s_{j,t}) + d x_t, \qquad
       s_{j,t} = \rho_j e^{i \varphi_j} s_{j,t-1} + x_t $$

    The whole sequence is one bin, however long.

    Args:
        x: the sequence.
        decay: $\rho$, each between 0 and 1.
        angle: $\varphi$, radians a step.
        mix: $c$, real and imaginary part.
        skip: $d$; None is 0.
        state: $s$ after the segment before; None is a start from nothing.
        lengths: real steps in each row; padding takes no time.
        shards: where the sequence is split over processes.

    Returns:
        y, and $s$ after the last real step.

    Raises:
        ValueError: a state of another number of filters.
    """
    if state is not None and state.shape[1] != len(decay):
        raise ValueError(f"state must hold {len(decay)} filters; got {state.shape[1]}.")
    batch, length, dim = x.shape
    given, x = x.dtype, x.to(accumulator_dtype(x))  # summed in float32 or wider
    state = None if state is None else state.to(x.dtype)
    one_bin = batch, min(length, 1), dim
    parts, ends = [], []
    for j in range(len(decay)):
        poles = decay[j].expand(one_bin), angle[j].expand(one_bin)
        before = None if state is None else state[:, j]
        if shards is not None:
            before = normal_form_state_before(x, *poles, FOREVER, shards)
        filtered, end = normal_form_filter(
            x, *poles, FOREVER, mix=mix[j], skip=None if j or skip is None else skip.to(x.dtype),
            lengths=lengths, state=before,
        )  # fmt: skip
        parts.append(filtered)
        ends.append(end)
    return reduce(torch.add, parts).to(given), torch.stack(ends, 1)
