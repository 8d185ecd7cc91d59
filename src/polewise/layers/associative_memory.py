"""Filtered key-value products with their projections: what lets a model recall."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polewise.layers.rms_norm import RmsNorm
from polewise.layers.short_conv import ShortConv
from polewise.ops import associative_filter
from polewise.ops.padding import hide_padding
from polewise.ops.shards import Shards, associative_state_before


def memory_heads(dim: int, heads: int | None) -> int:
    """One for every 32 channels unless a number is given."""
    return max(dim // 32, 1) if heads is None else heads


class AssociativeMemoryState(NamedTuple):
    """Batch first; constant in length."""

    neighbours: Float[Tensor, "batch 2 channels"]
    """The last two projected keys and values, for the short convolution."""
    products: Float[Tensor, "batch heads parts key_dim value_dim"]


class AssociativeMemory(nn.Module):
    r"""Read what was stored under a key.

    $$ S_t = \rho_t e^{j\varphi_t} S_{t-1} + \beta_t k_t v_t^\top, \qquad
       y_t = \operatorname{RMSNorm}\big(
       (\operatorname{Re}(q_t^\top S_t) + d\, v_t) \odot \operatorname{SiLU}(W_g c_t)\big) $$

    Keys and queries have norm 1. Keys and values pass a short convolution first, so that a
    value can be stored under the key that stood before it. What is forgotten, $\rho_t$, what is
    stored, $\beta_t$ in (0, 1), and what is let out are chosen at every step from a context $c$
    that may know more than $x$ does. Keys and queries must not: one that holds its neighbours does
    not look like the other, which held others.

    Args:
        dim: channels in.
        heads: independent memories.
        key_dim, value_dim: their sizes, per head; channels out are `heads * value_dim`.
        turning: complex poles, an angle per head and step; else real ones.
        causal: look back only; else the sum of both directions.

    Source: ours (see `associative_filter`); gate, skip $d$ and norm are those of Mamba-2 (Dao & Gu
    2024).
    """

    filter_parameters = ("decay_bias", "write_bias", "skip")

    def __init__(
        self,
        dim: int,
        heads: int,
        key_dim: int,
        value_dim: int,
        *,
        turning: bool = False,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.key_dim, self.value_dim = heads, key_dim, value_dim
        self.turning, self.causal = turning, causal
        self.shards: Shards | None = None
        # Queries, then keys and values; what is let out, stored and forgotten: side by side.
        mixed = heads * (key_dim + value_dim)
        self.parts = [heads * key_dim, mixed]
        self.projection = nn.Linear(dim, sum(self.parts), bias=False)
        self.gate_parts = [heads * value_dim, heads, heads * (1 + turning)]
        self.to_gates = nn.Linear(dim, sum(self.gate_parts), bias=False)
        self.short_conv = ShortConv(mixed)
        self.skip = nn.Parameter(torch.ones(heads))
        self.decay_bias = nn.Parameter(torch.empty(heads))
        self.write_bias = nn.Parameter(torch.empty(heads))
        self.norm = RmsNorm(value_dim, eps=1e-5)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Memories of 16 to 1024 steps, one a head: sigmoid(log(m - 1)) = 1 - 1/m.
        order = torch.arange(self.heads, device=self.decay_bias.device)
        memory = 16 * 64 ** (order / max(self.heads - 1, 1))
        with torch.no_grad():
            self.decay_bias.copy_((memory - 1).log())
            self.write_bias.fill_(2)  # nearly everything is stored at first
        nn.init.ones_(self.skip)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: AssociativeMemoryState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
        *,
        context: Float[Tensor, "batch length dim"] | None = None,
    ) -> tuple[Float[Tensor, "batch length channels"], AssociativeMemoryState | None]:
        """What `x` recalls; `context` is `x` itself unless given."""
        if self.shards is not None:
            self.shards.require_whole(x, state, lengths)
        q, mixed = self.projection(x).split(self.parts, -1)
        gates = self.to_gates(x if context is None else context)
        gate, write, pole = gates.split(self.gate_parts, -1)
        mixed, neighbours = self.short_conv(mixed, state.neighbours if state else None, lengths)
        per_head = (self.heads, -1)
        q, mixed = q.unflatten(-1, per_head), mixed.unflatten(-1, per_head)
        k, v = mixed.split([self.key_dim, self.value_dim], -1)
        decay, angle = self._poles(pole)
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        k = k * (write + self.write_bias).sigmoid()[..., None].to(k.dtype)
        before = state.products if state else None
        if self.shards is not None:
            before = associative_state_before(k, v, decay, angle, self.shards)
        y, products = associative_filter(q, k, v, decay, angle, lengths=lengths, state=before)
        if not self.causal:
            parts = [part for part in (q, k, v, decay, angle) if part is not None]
            reverse, _ = associative_filter(*(hide_padding(p, lengths).flip(1) for p in parts))
            y = y + reverse.flip(1)
        y = y + self.skip[:, None].to(y.dtype) * v
        y = self.norm(y * functional.silu(gate).unflatten(-1, per_head)).flatten(2)
        return y, AssociativeMemoryState(neighbours, products) if self.causal else None

    def _poles(self, pole: Tensor) -> tuple[Tensor, Tensor | None]:
        """Decay in (0, 1) and, if the poles turn, angle in (-pi, pi), at every step and head."""
        pole = pole.to(torch.promote_types(pole.dtype, torch.float32))
        decay = (pole[..., : self.heads] + self.decay_bias).sigmoid()
        return decay, torch.pi * pole[..., self.heads :].tanh() if self.turning else None
