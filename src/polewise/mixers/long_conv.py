r"""Long convolutions: a kernel of its own for every channel, then a gate.

y_c      = squash(h_c) * x + d_c x           for each of a few kernels c, * is convolution
output   = a * sigmoid(b),   (a, b) = W GELU(y_1 ... y_C)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polewise.layers import RegularisedConv, require_input
from polewise.ops.padding import hide_padding
from polewise.options import require_at_least, require_types


@dataclass(frozen=True, kw_only=True)
class LongConvConfig:
    """Long convolutions, a kernel of its own for every channel, then a gate."""

    causal: ClassVar[bool] = True

    dim: int
    """Channels."""
    taps: int = 1024
    """Length of the kernels: what lies further back is not seen."""
    kernels: int = 2
    """Kernels in each channel."""
    squash: float = 0.003
    """Soft threshold: every tap moves this far towards 0 and stops there."""

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("dim", "taps", "kernels"):
            require_at_least(name, getattr(self, name), 1)
        if not 0 <= self.squash < inf:
            raise ValueError(f"squash must be at least 0, and finite; got {self.squash}.")

    def build(self) -> LongConv:
        return LongConv(self)


class LongConvState(NamedTuple):
    """What a segment hands to the next one: the last inputs, in proportion to `taps`."""

    history: Float[Tensor, "batch history dim"]


class LongConv(nn.Module):
    """Regularised long convolutions, `(batch, length, dim)` to the same shape.

    Its kernels are as long as `taps` says whatever the length of the sequence, so that a stream
    gives what one pass gives. The published dropout of taps is left out.

    Source: Fu et al. 2023 (arXiv 2302.06646), its squash and its published start.
    """

    causal = True
    uses_fft = True

    def __init__(self, config: LongConvConfig) -> None:
        super().__init__()
        self.config = config
        self.convolutions = nn.ModuleList(
            RegularisedConv(config.dim, config.taps, config.squash) for _ in range(config.kernels)
        )
        self.to_output = nn.Linear(config.kernels * config.dim, 2 * config.dim)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: LongConvState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], LongConvState]:
        """Mix the sequence, as the contract in `polewise.mixers` says."""
        require_input(x, self.config.dim, state, causal=self.causal)
        x = hide_padding(x, lengths)
        history, outputs = state.history if state else None, []
        for convolution in self.convolutions:
            y, after = convolution(x, history, lengths)
            outputs.append(y)
        y = functional.glu(self.to_output(functional.gelu(torch.cat(outputs, -1))), -1)
        return hide_padding(y, lengths), LongConvState(after)
