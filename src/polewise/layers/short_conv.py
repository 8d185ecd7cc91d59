"""A short causal convolution: neighbours meet."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polewise.ops.padding import hide_padding, newest
from polewise.ops.shards import Shards


class ShortConv(nn.Module):
    """$y_t = \\sum_{i=0}^{w-1} h_i x_{t-i}$ with one small kernel per channel.

    Written as a sum of shifts, which is fast for the usual three taps and keeps a NaN from
    reaching earlier outputs.
    """

    def __init__(self, dim: int, width: int = 3) -> None:
        super().__init__()
        self.width = width
        self.shards: Shards | None = None
        self.kernel = nn.Parameter(torch.empty(width, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # All steps of the window count alike from the start, in each channel its own way: a
        # kernel that began at the present step alone learns to bind neighbours much later.
        nn.init.normal_(self.kernel, std=self.width**-0.5)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: Float[Tensor, "batch history dim"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch history dim"]]:
        """`y`, and the last `width - 1` inputs of each row."""
        history, length = self.width - 1, x.shape[1]
        x = hide_padding(x, lengths)
        if self.shards is not None:
            state = self.shards.window_before(x, history)
        if state is None:
            state = x.new_zeros(x.shape[0], history, x.shape[2])
        past = torch.cat([state.to(x.dtype), x], 1)
        y = self.kernel[0] * x
        for tap in range(1, self.width):
            y = y + self.kernel[tap] * past[:, history - tap : history - tap + length]
        return y, newest(state, x, lengths)
