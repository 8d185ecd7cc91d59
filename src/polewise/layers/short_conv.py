"""A short causal convolution: neighbours meet."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polewise.ops import short_conv
from polewise.ops.precision import accumulator_dtype
from polewise.ops.shards import Shards


class ShortConv(nn.Module):
    r"""$y_t = \phi(b + \sum_{i=0}^{w-1} h_i x_{t-i})$ with one small kernel per channel.

    Args:
        dim: channels.
        width: $w$, taps.
        bias: learn $b$; else it is 0.
        silu: $\phi$ is SiLU; else the identity.
    """

    def __init__(self, dim: int, width: int = 3, *, bias: bool = False, silu: bool = False) -> None:
        super().__init__()
        self.width, self.silu = width, silu
        self.shards: Shards | None = None
        self.kernel = nn.Parameter(torch.empty(width, dim))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # All steps of the window count alike from the start, in each channel its own way: a
        # kernel that began at the present step alone learns to bind neighbours much later.
        nn.init.normal_(self.kernel, std=self.width**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def reset_uniform(self) -> None:
        """Kernel and bias uniform between plus and minus $w^{-1/2}$, the published start of Mamba-2
        and Hyena."""
        bound = self.width**-0.5
        nn.init.uniform_(self.kernel, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: Float[Tensor, "batch history dim"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch history dim"]]:
        """`y`, and the last `width - 1` inputs of each row."""
        if self.shards is not None:
            state = self.shards.window_before(x, self.width - 1)
        kernel = self.kernel.to(accumulator_dtype(x))
        bias = None if self.bias is None else self.bias.to(kernel.dtype)
        state = None if state is None else state.to(x.dtype)
        return short_conv(x, kernel, bias, silu=self.silu, lengths=lengths, state=state)
