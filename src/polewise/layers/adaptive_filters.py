"""Filters whose poles a small network moves from bin to bin."""

from __future__ import annotations

from functools import reduce
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polewise.filters import coefficients_to_unconstrained, unconstrained_to_coefficients
from polewise.layers.bin_features import Features
from polewise.layers.fixed_filters import FOREVER
from polewise.ops import circular_filter, direct_form_filter, normal_form_filter
from polewise.ops.padding import hide_padding
from polewise.ops.precision import accumulator_dtype
from polewise.ops.shards import Shards, direct_form_state_before, normal_form_state_before

Realisation = Literal["normal", "direct", "square", "circular"]
"""normal: a contraction for any poles. direct: the paper's coefficients, over the whole stability
triangle. square: the same in the paper's region, (0, 1)^2, and from its start. circular: the
published formula there, which sees the future."""


def unit_noise_gain(decay: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The gain by which white noise leaves a filter in the normal form with unit variance; without
    it slow poles would drown the others."""
    return ((1 - decay) * (1 + decay)).sqrt()  # 1 - decay^2 would cancel


_LAST_BEFORE_ONE = 1 - 2.0**-24


def require_filters(realisation: Realisation, *, turning: bool, max_decay: float) -> None:
    """Check options of `AdaptiveFilters` against each other.

    Raises:
        ValueError: real poles of a form that has none, or a radius on the circle or beyond.
    """
    if not turning and realisation != "normal":
        raise ValueError(
            f"turning must be True for realisation={realisation!r}: its numbers are the "
            "coefficients of a whole section; got False."
        )
    if not 0 < max_decay <= _LAST_BEFORE_ONE:
        raise ValueError(
            "max_decay must lie between 0 and 1, at most 1 - 2^-24 (float32 has nothing between); "
            f"got {max_decay}."
        )


class PoleNetwork(nn.Module):
    """Eq. 3: a channel's pooled values to the numbers that move its poles.

    One small network for all channels and bins; it mixes no channels.
    """

    def __init__(self, windows: int, hidden: int, filters: int, numbers: int) -> None:
        super().__init__()
        self.filters = filters
        self.up = nn.Linear(windows, hidden)
        self.down = nn.Linear(hidden, filters * numbers, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # The published start is for generated weights; these are poles. They start near
        # their base and are moved by what the network sees.
        nn.init.xavier_uniform_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        nn.init.normal_(self.down.weight, std=0.1)

    def forward(
        self, pooled: Float[Tensor, "batch bins windows dim"]
    ) -> Float[Tensor, "batch bins dim filters numbers"]:
        moved = self.down(self.up(pooled.transpose(2, 3)).sigmoid())
        return moved.unflatten(-1, (self.filters, -1))


class AdaptiveFilters(nn.Module):
    r"""A few second-order filters in every channel, with poles of their own in every bin.

    $$ \theta_r = \operatorname{squash}(b + \operatorname{MLP}(e_r)), \qquad
       y_t = \sum_f c_f \cdot \operatorname{filter}_f(x; \theta)_t + d x_t $$

    with $\theta = (\rho, \varphi)$ for the normal form, $(a_1, a_2)$ otherwise. The squash reaches
    every stable pair of poles up to a largest radius and no other, but for the square and the
    circular form, whose squash is the paper's: $(0, 1)^2$, a quarter of the triangle. In the normal
    form $c_f$ weighs real and imaginary part of the state; the others use its first number alone.

    Args:
        dim: channels.
        filters: F, filters in each channel.
        bin_length: steps that share their poles.
        windows: pooled values of a bin and channel that its poles are chosen from; None is fixed
            learned poles.
        hidden: width of the network that chooses.
        realisation: how a pair of poles becomes a filter, see `Realisation`.
        turning: complex poles; False, real ones, of the normal form.
        reset: clear the state where a bin starts.
        max_decay: largest pole radius.
        causal: look back only; else the sum of both directions.

    Source: Lutati et al. 2023, Eq. 3-8; normal form, whole region and state are ours.
    """

    filter_parameters: ClassVar[tuple[str, ...]] = ("base", "mix")

    def __init__(
        self,
        dim: int,
        filters: int,
        bin_length: int,
        *,
        windows: int | None = None,
        hidden: int = 16,
        realisation: Realisation = "normal",
        turning: bool = True,
        reset: bool = False,
        max_decay: float = 0.9999,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.bin_length, self.realisation, self.turning = bin_length, realisation, turning
        self.reset, self.max_decay, self.causal = reset, max_decay, causal
        self.shards: Shards | None = None
        numbers = 1 + turning
        self.to_poles = None
        if windows is not None:
            self.to_poles = PoleNetwork(windows, hidden, filters, numbers)
        self.base = nn.Parameter(torch.empty(dim, filters, numbers))
        self.mix = nn.Parameter(torch.empty(1 if causal else 2, filters, dim, 2))
        self.reset_parameters()

    @property
    def in_bins(self) -> bool:
        """Whether bins differ, or start anew. Poles that do not move are one, however long."""
        return self.to_poles is not None or self.reset or self.realisation == "circular"

    def reset_parameters(self) -> None:
        """Poles spread over all angles and over memories from 2 to 512 steps (direct form: 10), the
        short ones first; all alike in the square."""
        dim, filters, numbers = self.base.shape
        # In float32 whatever the precision of the model: bfloat16 counts to 256.
        order = torch.arange(dim * filters, dtype=torch.float32, device=self.base.device)
        memory = 2 * 256 ** (order / max(dim * filters - 1, 1))
        decay = (1 - 1 / memory).clamp(max=0.999 * self.max_decay)
        # The golden ratio's steps cover (0, 1) evenly for every prefix.
        angle = torch.pi * (order * 0.6180339887 % 1).clamp(0.01, 0.99) ** 2
        if self.realisation == "normal":
            base = torch.stack(
                [torch.logit(decay / self.max_decay), torch.logit(angle / torch.pi)], -1
            )
        elif self.realisation == "direct":
            # The direct form's gain grows without bound for slow poles near angle 0.
            decay = decay.clamp(max=0.9)
            a = torch.stack([-2 * decay * angle.cos(), decay**2], -1)
            base = coefficients_to_unconstrained(a, max_decay=self.max_decay)
        else:
            base = order.new_zeros(len(order), 2)
        with torch.no_grad():
            self.base.copy_(base[:, :numbers].reshape(self.base.shape))
            self.mix.zero_()
            self.mix[..., 0] = filters**-0.5

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        features: Features | None,
        offset: Int[Tensor, " batch"],
        lengths: Int[Tensor, " batch"] | None = None,
        state: Float[Tensor, "batch dim filters 2"] | None = None,
        skip: Float[Tensor, " dim"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch dim filters 2"] | None]:
        """Filter the sequence, whose first step stands at `offset` in its bin, and let d = `skip`
        of it pass.

        The state is None where there is none to hand on: looking both ways, or circular.

        Raises:
            ValueError: a skip of the circular form, which lets nothing pass.
        """
        if self.realisation == "circular" and skip is not None:
            raise ValueError("skip must be None for realisation='circular'; got a tensor.")
        coefficients = self.coefficients(x, features, streaming=state is not None)
        if self.realisation == "circular":
            return self._circular(x, coefficients), None
        if self.causal:
            return self._one_way(x, coefficients, self.mix[0], offset, lengths, state, skip)
        return self._both_ways(x, coefficients, offset, lengths, skip), None

    def coefficients(
        self,
        x: Float[Tensor, "batch length dim"],
        features: Features | None,
        *,
        streaming: bool = False,
    ) -> Float[Tensor, "batch bins dim filters 2"]:
        """The filters chosen for every bin that `x` touches, float32 or wider: (decay, angle) in
        radians a sample for the normal form, (a1, a2) otherwise."""
        dtype = accumulator_dtype(x)
        base = self.base.to(dtype)
        if features is None or self.to_poles is None:
            late = self.bin_length - 1 if streaming else 0
            bins = -(-(late + x.shape[1]) // self.bin_length) if x.shape[1] else 0
            return self._squash(base).expand(x.shape[0], bins, *base.shape[:2], 2)
        moved = self.to_poles(features.pooled.to(x.dtype)).to(dtype)
        known = features.known[..., None, None, None]
        return self._squash(base + torch.where(known, moved, 0))

    def _squash(self, numbers: Tensor) -> Tensor:
        if self.realisation == "normal":
            decay = self.max_decay * numbers[..., 0].sigmoid()
            turn = torch.pi * numbers[..., 1].sigmoid() if self.turning else decay.new_zeros(())
            return torch.stack([decay, turn.expand_as(decay)], -1)
        if self.realisation == "direct":
            return unconstrained_to_coefficients(numbers, max_decay=self.max_decay)
        radius = 1.0 if self.realisation == "circular" else self.max_decay
        a1, a2 = numbers.sigmoid().unbind(-1)
        return torch.stack([radius * a1, radius**2 * a2], -1)

    def _circular(self, x: Tensor, coefficients: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for n, mix in enumerate(self.mix[0]):
            filtered = circular_filter(x, coefficients[:, :, :, n], self.bin_length)
            y = y + mix[:, 0].to(x.dtype) * filtered
        return y

    def _both_ways(
        self,
        x: Tensor,
        coefficients: Tensor,
        offset: Tensor,
        lengths: Tensor | None,
        skip: Tensor | None,
    ) -> Tensor:
        forwards, _ = self._one_way(x, coefficients, self.mix[0], offset, lengths, None, skip)
        # Backwards the padding comes first; it is silence, so the state stays at rest.
        x = hide_padding(x, lengths)
        padding = -x.shape[1] % self.bin_length
        reverse = functional.pad(x, (0, 0, 0, padding)).flip(1)
        backwards, _ = self._one_way(
            reverse, coefficients.flip(1), self.mix[1], torch.zeros_like(offset), None, None, None
        )
        return forwards + backwards.flip(1)[:, : x.shape[1]]

    def _one_way(
        self,
        x: Tensor,
        coefficients: Tensor,
        mix: Tensor,
        offset: int | Tensor,
        lengths: Tensor | None,
        state: Tensor | None,
        skip: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The sum of all filters and of what passes, and the filters' states."""
        parts, ends, bin_length = [], [], self.bin_length
        shards = None if self.reset else self.shards
        if not self.in_bins:
            coefficients, bin_length, offset = coefficients[:, :1], FOREVER, 0
        for n in range(len(mix)):
            before = None if state is None else state[:, :, n]
            if self.realisation == "normal":
                decay, angle = coefficients[:, :, :, n].unbind(-1)
                gain = unit_noise_gain(decay)[..., None] * mix[n].to(decay.dtype)
                if shards is not None:
                    before = normal_form_state_before(x, decay, angle, bin_length, shards)
                filtered, end = normal_form_filter(
                    x, decay, angle, bin_length, mix=gain, skip=None if n else skip,
                    offset=offset, lengths=lengths, state=before, reset=self.reset,
                )  # fmt: skip
            else:
                a = coefficients[:, :, :, n]
                if shards is not None:
                    before = direct_form_state_before(x, a, bin_length, shards)
                filtered, end = direct_form_filter(
                    x, a, bin_length, offset=offset,
                    lengths=lengths, state=before, reset=self.reset,
                )  # fmt: skip
                filtered = mix[n, :, 0].to(x.dtype) * filtered
            parts.append(filtered)
            ends.append(end)
        y = reduce(torch.add, parts)
        if skip is not None and self.realisation != "normal":  # the normal form has added it
            y = y + skip.to(x.dtype) * hide_padding(x, lengths)
        return y, torch.stack(ends, 2)
