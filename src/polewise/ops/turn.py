"""Pairs of channels as complex numbers, turned by an angle: rotary positions, poles that turn.

Turning what is asked and what is kept by the sum of all angles so far is turning the memory itself,
step by step: e^{j (theta[t] - theta[s])} stands between them. So a memory with complex poles runs
as one with real poles.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def turn(
    x: Float[Tensor, "*shape channels"], angle: Float[Tensor, "*#shape pairs"]
) -> Float[Tensor, "*shape channels"]:
    r"""$y_i + j y_{n+i} = e^{j \theta_i} (x_i + j x_{n+i})$ for the first $2n$ channels.

    Args:
        x: channels last. Those after the first $2n$ come back as they are.
        angle: $\theta$ in radians for each of $n$ pairs, in a dtype that holds it well.
    """
    pairs = angle.shape[-1]
    cosine, sine = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    real, imag, rest = x.split([pairs, pairs, x.shape[-1] - 2 * pairs], -1)
    return torch.cat([real * cosine - imag * sine, imag * cosine + real * sine, rest], -1)
