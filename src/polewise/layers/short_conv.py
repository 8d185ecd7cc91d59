"""A short causal convolution: neighbours meet."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polewise.ops.padding import hide_padding, newest
from polewise.ops.shards import Shards


class ShortConv(nn.Module):
    """$y_t = \\sum_{i=0}^{w-1} h_i x_{t-i}$ with one small kernel per channel.

    Nothing is transformed, so a NaN does not reach earlier outputs.
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
        start = x.new_zeros(x.shape[0], history, x.shape[2]) if state is None else state.to(x.dtype)
        kernel = self.kernel.to(x.dtype)
        # Compiled convolutions of float64 and of single steps are slower than the sum.
        fast = x.device.type == "cpu" and x.dtype != torch.float64 and length > 1
        if fast and state is None:
            # The convolution has zeros of its own: its gradient keeps x, not a copy with zeros.
            y = _depthwise(x, kernel, zeros=history)[:, :length]
        else:
            convolve = _depthwise if fast else _sum_of_shifts
            y = convolve(torch.cat([start, x], 1), kernel)
        return y, newest(start, x, lengths)


def _sum_of_shifts(past: Tensor, kernel: Tensor) -> Tensor:
    """The equation. `past` begins `width - 1` steps before the first output."""
    width, length = len(kernel), past.shape[1] - len(kernel) + 1
    y = kernel[0] * past[:, width - 1 :]
    for tap in range(1, width):
        y = y + kernel[tap] * past[:, width - 1 - tap : width - 1 - tap + length]
    return y


def _depthwise(past: Tensor, kernel: Tensor, zeros: int = 0) -> Tensor:
    """The same, with so many zeros at both ends, as a convolution of images one pixel high, whose
    channels lie side by side, for which a CPU has compiled code."""
    images = past[:, None].movedim(-1, 1)
    y = functional.conv2d(
        images, kernel.flip(0).T[:, None, None], padding=(0, zeros), groups=images.shape[1]
    )
    return y.movedim(1, -1)[:, 0]
