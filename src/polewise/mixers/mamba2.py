r"""Mamba-2: a state space whose step size and maps are chosen by every token.

For a sequence x, with H heads of P channels and a state of N x P numbers in each:

    z, u, B, C, d = W x                        gate, values, in and out maps, step
    u, B, C       = SiLU(conv(u, B, C))        a short convolution of every channel
    step          = softplus(d + b)            one a head
    S[t]          = exp(-step exp(a)) S[t-1] + step B[t] u[t]^T
    y[t]          = C[t]^T S[t] + D u[t]
    output        = W_o RMSNorm(y * SiLU(z))

The recursion is the associative filter with real poles: B are its keys, C its queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polewise.layers import RmsNorm, ShortConv, StepSize, gated_output, heads_for, require_input
from polewise.ops import associative_filter
from polewise.ops.padding import hide_padding
from polewise.options import require_at_least, require_multiple, require_types


@dataclass(frozen=True, kw_only=True)
class Mamba2Config:
    """A state space whose step size and maps are chosen by every token."""

    causal: ClassVar[bool] = True
    contains_feed_forward: ClassVar[bool] = True

    dim: int
    """Channels."""
    heads: int | None = None
    """Heads, each with a decay of its own; divides `expand * dim`. None is one for every 64 inner
    channels, as published."""
    state_dim: int = 64
    """Numbers kept for every inner channel."""
    expand: int = 2
    """Inner channels for every channel."""
    conv_width: int = 4
    """Taps of the short convolution."""

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("dim", "state_dim", "expand", "conv_width"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least("heads", self.num_heads, 1)
        require_multiple("expand * dim", self.inner, "heads", self.num_heads)

    @property
    def inner(self) -> int:
        """Channels of all heads."""
        return self.expand * self.dim

    @property
    def num_heads(self) -> int:
        """Heads, chosen or by default."""
        return heads_for(self.inner, 64) if self.heads is None else self.heads

    def build(self) -> Mamba2:
        return Mamba2(self)


class Mamba2State(NamedTuple):
    """What a segment hands to the next one. Batch first, constant in length."""

    neighbours: Float[Tensor, "batch history channels"]
    """The last inputs of the short convolution."""
    products: Float[Tensor, "batch heads 1 state_dim head_dim"]


class Mamba2(nn.Module):
    """The selective state space with one decay per head and step.

    B and C are shared by all heads (one group), as published; its learned initial state and
    limits of the step are left out.

    Source: Dao & Gu 2024 (arXiv 2405.21060), with its published start, but for output maps that
    its models rescale by their depth.
    """

    causal = True
    filter_parameters: ClassVar[tuple[str, ...]] = ("log_rate", "skip")

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.config = config
        mixed = config.inner + 2 * config.state_dim
        # Published as one projection, the gradients of whose parts autograd copies into one tensor.
        self.to_gate = nn.Linear(config.dim, config.inner, bias=False)
        self.to_mixed = nn.Linear(config.dim, mixed, bias=False)
        self.to_step = nn.Linear(config.dim, config.num_heads, bias=False)
        self.short_conv = ShortConv(mixed, config.conv_width, bias=True, silu=True)
        self.step = StepSize(config.num_heads)
        self.log_rate = nn.Parameter(torch.empty(config.num_heads))
        self.skip = nn.Parameter(torch.empty(config.num_heads))
        self.norm = RmsNorm(config.inner)
        self.to_output = nn.Linear(config.inner, config.dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.short_conv.reset_uniform()
        with torch.no_grad():
            self.log_rate.uniform_(1, 16).log_()
        nn.init.ones_(self.skip)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: Mamba2State | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Mamba2State]:
        """Mix the sequence, as the contract in `polewise.mixers` says."""
        config = self.config
        require_input(x, config.dim, state, causal=self.causal)
        x = hide_padding(x, lengths)
        step = self.step(self.to_step(x))
        mixed, neighbours = self.short_conv(
            self.to_mixed(x), state.neighbours if state else None, lengths
        )
        v, *maps = mixed.split([config.inner, config.state_dim, config.state_dim], -1)
        v = v.unflatten(-1, (config.num_heads, -1))
        k, q = (part[:, :, None] for part in maps)
        decay = (-step * self.log_rate.to(step.dtype).exp()).exp()
        y, products = associative_filter(
            q, k, v, decay, step=step, skip=self.skip, lengths=lengths,
            state=state.products if state else None,
        )  # fmt: skip
        y = gated_output(y.flatten(2), self.to_gate(x), self.norm, self.to_output)
        return hide_padding(y, lengths), Mamba2State(neighbours, products)
