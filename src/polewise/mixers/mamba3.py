r"""Mamba-3: a state space whose poles turn, by an angle that every token chooses.

For a sequence x, with H heads of P channels and a state of N x P numbers in each:

    z, u, B, C, d, a, l, w = W x                gate, values, maps, step, rate, balance, angles
    step, rate   = softplus(d + b),  softplus(a)                      one a head
    decay, angle = exp(-step rate),  pi step tanh(w)                  N/4 angles
    lam          = sigmoid(l)
    B, C         = RMSNorm(B) + b_B,  RMSNorm(C) + b_C                biases of each head
    S[t]         = decay R[t] (S[t-1] + (1 - lam) step B[t-1] u[t-1]^T) + lam step B[t] u[t]^T
    y[t]         = C[t]^T S[t] + D u[t]
    output       = W_o (y * SiLU(z))

R[t] turns pairs of the state's N channels: two real numbers are one complex one, and decay and
angle its pole. `lam` weighs the token against the one before (the trapezoidal rule).

B and C are turned in place of the state, so the recursion runs as an associative filter with real
poles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polewise.layers import RmsNorm, StepSize, heads_for, require_input
from polewise.ops import associative_filter, turn
from polewise.ops.padding import hide_padding, newest
from polewise.ops.precision import angle_dtype
from polewise.options import require_at_least, require_multiple, require_types

SLOWEST = 1e-4
"""The smallest rate of forgetting, as published."""


@dataclass(frozen=True, kw_only=True)
class Mamba3Config:
    """A state space whose poles turn, by angles that every token chooses."""

    causal: ClassVar[bool] = True

    dim: int
    """Channels."""
    heads: int | None = None
    """Heads, each with a decay of its own; divides `expand * dim`. None is one for every 64 inner
    channels, as published."""
    state_dim: int = 64
    """Numbers kept for every inner channel."""
    turning: int | None = None
    """Pairs of them that turn, at most `state_dim / 2`; None is a quarter, half of the numbers.
    0 leaves the poles real."""
    expand: int = 2
    """Inner channels for every channel."""

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("dim", "state_dim", "expand"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least("heads", self.num_heads, 1)
        require_multiple("expand * dim", self.inner, "heads", self.num_heads)
        if self.turning is not None:
            require_at_least("turning", self.turning, 0)
            if 2 * self.turning > self.state_dim:
                raise ValueError(
                    f"turning must be at most state_dim / 2 = {self.state_dim // 2} pairs; "
                    f"got {self.turning}."
                )

    @property
    def inner(self) -> int:
        """Channels of all heads."""
        return self.expand * self.dim

    @property
    def num_heads(self) -> int:
        """Heads, chosen or by default."""
        return heads_for(self.inner, 64) if self.heads is None else self.heads

    @property
    def pairs(self) -> int:
        """Pairs of a head's numbers that turn."""
        return self.state_dim // 4 if self.turning is None else self.turning

    def build(self) -> Mamba3:
        return Mamba3(self)


class Mamba3State(NamedTuple):
    """What a segment hands to the next one. Batch first, constant in length."""

    key: Float[Tensor, "batch 1 heads state_dim"]
    """B of the last token, which the next one weighs again."""
    value: Float[Tensor, "batch 1 heads head_dim"]
    products: Float[Tensor, "batch heads 1 state_dim head_dim"]


class Mamba3(nn.Module):
    """The selective state space with a complex pole for every token: its closest relative here
    is the memory of Focus, whose radius every step chooses and whose angle is learned.

    Implemented: the turning poles, the trapezoidal rule, data-dependent rates, norms and biases
    of B and C, gate and skip, no short convolution, all with the published start. Not
    implemented: several inputs and outputs per head (MIMO), the output norm of hybrid models,
    groups of B and C (all heads share one).

    Source: Lahoti, Li, Chen et al. 2026 (arXiv 2603.15569), and the authors' published module.
    """

    causal = True
    filter_parameters: ClassVar[tuple[str, ...]] = ("key_bias", "query_bias", "skip")

    def __init__(self, config: Mamba3Config) -> None:
        super().__init__()
        self.config = config
        heads, state_dim = config.num_heads, config.state_dim
        # Published as one projection, the gradients of whose parts autograd copies into one tensor.
        self.to_gate = nn.Linear(config.dim, config.inner, bias=False)
        self.to_values = nn.Linear(config.dim, config.inner, bias=False)
        self.parts = [state_dim] * 2 + [heads] * 3 + [config.pairs]
        self.to_parts = nn.Linear(config.dim, sum(self.parts), bias=False)
        self.step = StepSize(heads)
        self.key_norm = RmsNorm(state_dim)
        self.query_norm = RmsNorm(state_dim)
        self.key_bias = nn.Parameter(torch.empty(heads, state_dim))
        self.query_bias = nn.Parameter(torch.empty(heads, state_dim))
        self.skip = nn.Parameter(torch.empty(heads))
        self.to_output = nn.Linear(config.inner, config.dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in (self.key_bias, self.query_bias, self.skip):
            nn.init.ones_(parameter)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: Mamba3State | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Mamba3State]:
        """Mix the sequence, as the contract in `polewise.mixers` says."""
        heads = self.config.num_heads
        require_input(x, self.config.dim, state, causal=self.causal)
        x = hide_padding(x, lengths)
        k, q, step, rate, balance, angle = self.to_parts(x).split(self.parts, -1)
        k = self.key_norm(k)[:, :, None] + self.key_bias
        q = self.query_norm(q)[:, :, None] + self.query_bias
        step = self.step(step)
        # Float32 or wider from here: sums of angles, and products that stay for long.
        v, k, q, rate, balance, angle = (
            part.to(step.dtype) for part in (self.to_values(x), k, q, rate, balance, angle)
        )
        v = v.unflatten(-1, (heads, -1))
        decay = (-step * functional.softplus(rate).clamp(min=SLOWEST)).exp()
        # Padding is zeros and turns nothing, so the sum of all angles is that of the real steps.
        angle = torch.pi * step[..., None] * angle.tanh()[:, :, None]
        now = balance.sigmoid() * step
        y, state = _filter(q, k, v, decay, angle, now, step - now, lengths, state)
        y = (y + self.skip.to(y.dtype)[:, None] * v).flatten(2).to(x.dtype)
        return hide_padding(self.to_output(y * functional.silu(self.to_gate(x))), lengths), state


def _filter(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    angle: Tensor,
    now: Tensor,
    late: Tensor,
    lengths: Tensor | None,
    state: Mamba3State | None,
) -> tuple[Tensor, Mamba3State]:
    """S[t] = decay R[t] (S[t-1] + late k[t-1] v[t-1]^T) + now k[t] v[t]^T, read by q[t].

    A token's product enters twice, now and one step late. So the filter takes every product one
    step late, with both weights, and the newest one is read directly.
    """
    batch, _, heads, state_dim = k.shape
    if state is None:
        state = Mamba3State(
            k.new_zeros(batch, 1, heads, state_dim),
            k.new_zeros(batch, 1, heads, v.shape[-1]),
            k.new_zeros(batch, heads, 1, state_dim, v.shape[-1]),
        )
    # The state holds the last product as far as it has entered: nothing is left to come.
    entered = k.new_zeros(batch, 1, heads)
    wide = angle_dtype(angle.device)
    turned = angle.to(wide).cumsum(1).remainder(2 * torch.pi).to(angle.dtype)
    turned_in_all = angle.to(wide).sum(1).remainder(2 * torch.pi).to(angle.dtype)
    y, products = associative_filter(
        turn(q, -turned),
        _one_late(state.key, turn(k, -turned)),
        _one_late(state.value, v),
        decay,
        step=decay * (_one_late(entered, now) + late),
        lengths=lengths,
        state=state.products.to(k.dtype),
    )
    y = y + (now * (q * k).sum(-1))[..., None] * v
    key, value = newest(state.key, k, lengths), newest(state.value, v, lengths)
    # Back from the turned frame; then the newest product joins.
    products = turn(products.mT, turned_in_all[:, :, None, None]).mT
    last = newest(entered, now, lengths)[..., None] * value
    products = products + key[:, 0, :, None, :, None] * last[:, 0, :, None, None, :]
    return y, Mamba3State(key, value, products)


def _one_late(before: Tensor, x: Tensor) -> Tensor:
    """Every step's predecessor."""
    return torch.cat([before.to(x.dtype), x], 1)[:, : x.shape[1]]
