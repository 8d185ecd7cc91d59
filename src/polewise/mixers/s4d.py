r"""S4D: fixed complex poles in every channel, then a gate.

For a sequence x, in every channel with N/2 complex modes n:

    pole_n    = exp(step A_n),   A_n = -rate_n + i frequency_n
    s_n[t]    = pole_n s_n[t-1] + x[t]
    y[t]      = 2 Re sum_n C_n (pole_n - 1) / A_n s_n[t] + D x[t]         zero-order hold
    output    = a * sigmoid(b),   (a, b) = W GELU(y)

Every mode is a normal-form filter whose poles never change: a layer of Focus without memory, with
many filters in each channel and no short convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polewise.layers import fixed_filters, require_input
from polewise.ops.padding import hide_padding
from polewise.ops.precision import accumulator_dtype
from polewise.ops.shards import Shards
from polewise.options import require_at_least, require_multiple, require_types


@dataclass(frozen=True, kw_only=True)
class S4dConfig:
    """Constant complex poles in every channel, then a gate."""

    causal: ClassVar[bool] = True

    dim: int
    """Channels."""
    state_dim: int = 64
    """Numbers kept for every channel: half as many complex modes."""

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least("dim", self.dim, 1)
        require_at_least("state_dim", self.state_dim, 2)
        require_multiple("state_dim", self.state_dim, "2", 2)

    def build(self) -> S4d:
        return S4d(self)


class S4dState(NamedTuple):
    """What a segment hands to the next one. Batch first, constant in length."""

    modes: Float[Tensor, "batch modes dim 2"]


class S4d(nn.Module):
    """The diagonal state space, `(batch, length, dim)` to the same shape.

    Computed as recurrences instead of the original's FFT: exact at any length, and streaming.

    Source: Gu, Gupta, Goel, Re 2022 (arXiv 2206.11893): S4D-Lin, zero-order hold; its
    published start, and learning rate of poles and steps.
    """

    causal = True
    filter_parameters: ClassVar[tuple[str, ...]] = ("log_step", "log_rate", "frequency")
    filter_learning_rate_limit = 1e-3

    def __init__(self, config: S4dConfig) -> None:
        super().__init__()
        self.config = config
        self.shards: Shards | None = None
        modes = config.state_dim // 2
        self.log_step = nn.Parameter(torch.empty(config.dim))
        self.log_rate = nn.Parameter(torch.empty(modes, config.dim))
        self.frequency = nn.Parameter(torch.empty(modes, config.dim))
        self.readout = nn.Parameter(torch.empty(2, modes, config.dim))
        self.skip = nn.Parameter(torch.empty(config.dim))
        self.to_output = nn.Linear(config.dim, 2 * config.dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # The published start: steps of 0.001 to 0.1, all modes fading alike, harmonics of pi.
        order = torch.arange(len(self.frequency), dtype=torch.float32, device=self.frequency.device)
        nn.init.uniform_(self.log_step, math.log(1e-3), math.log(1e-1))
        nn.init.constant_(self.log_rate, math.log(0.5))
        nn.init.normal_(self.readout, std=0.5**0.5)
        nn.init.normal_(self.skip)
        with torch.no_grad():
            self.frequency.copy_((math.pi * order)[:, None].expand_as(self.frequency))

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: S4dState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], S4dState]:
        """Mix the sequence, as the contract in `polewise.mixers` says."""
        require_input(x, self.config.dim, state, causal=self.causal)
        x = hide_padding(x, lengths)
        if self.shards is not None:
            self.shards.require_whole(x, state, lengths)
        y, modes = fixed_filters(
            x, *self._filters(accumulator_dtype(x)), self.skip,
            state=state.modes if state else None, lengths=lengths, shards=self.shards,
        )  # fmt: skip
        y = functional.glu(self.to_output(functional.gelu(y)), -1)
        return hide_padding(y, lengths), S4dState(modes)

    def _filters(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Radius and angle of every pole, and what is read from its state."""
        step, rate = self.log_step.to(dtype).exp(), self.log_rate.to(dtype).exp()
        frequency = self.frequency.to(dtype)
        decay, angle = (-step * rate).exp(), step * frequency
        # (pole - 1) / A, with real numbers only: over |A|^2, times the conjugate of A.
        # The difference to 1 of a pole near it, without cancelling.
        real = torch.expm1(-step * rate) * angle.cos() - 2 * (angle / 2).sin().square()
        imag = decay * angle.sin()
        square = rate**2 + frequency**2
        held_real = (imag * frequency - real * rate) / square
        held_imag = (-real * frequency - imag * rate) / square
        c_real, c_imag = self.readout.to(dtype)
        weight_real = c_real * held_real - c_imag * held_imag
        weight_imag = c_real * held_imag + c_imag * held_real
        return decay, angle, torch.stack([2 * weight_real, -2 * weight_imag], -1)
