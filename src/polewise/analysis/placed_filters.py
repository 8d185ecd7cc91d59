r"""Which filters a trained model places for a sequence, bin by bin.

A pole $p = \rho e^{j\varphi}$ has decay $\rho$ (its memory is about $1 / (1 - \rho)$ samples) and
angle $\varphi$ in radians per sample (frequency $\varphi / 2\pi$, in cycles per sample).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from polewise.filters import (
    coefficients_to_poles,
    direct_form_frequency_response,
    normal_form_frequency_response,
    normal_form_to_poles,
)
from polewise.layers import Realisation, unit_noise_gain
from polewise.mixers.watching import watch_poles
from polewise.tasks import Batch
from polewise.training import compute_logits


@dataclass(frozen=True, kw_only=True)
class PlacedFilters:
    """The filters that one Focus chose for a batch, in float64 on the CPU."""

    name: str
    """The module's name in the model."""
    realisation: Realisation
    """What the coefficients are: (decay, angle), or (a1, a2)."""
    coefficients: Float[Tensor, "batch bins dim filters 2"]
    """What was chosen."""
    mix: Float[Tensor, "directions filters dim 2"] | None
    """The learned weights with which the filters are summed: forwards in time, and of a mixer that
    looks both ways backwards. None where they are a memory's, which filters products of keys and
    values: they have poles and, of a channel, no response."""

    @property
    def moving(self) -> bool:
        """Whether the filters of any two bins differ."""
        return bool((self.coefficients != self.coefficients[:1, :1]).any())

    @property
    def poles(self) -> Complex[Tensor, "batch bins dim filters"]:
        """One pole of every pair: that of non-negative angle, or the larger of two real ones."""
        if self.realisation == "normal":
            return normal_form_to_poles(*self.coefficients.unbind(-1))[..., 0]
        return coefficients_to_poles(self.coefficients)[..., 0]

    def frequency_response(
        self, frequency: Float[Tensor, " frequencies"]
    ) -> Complex[Tensor, "batch bins dim frequencies"]:
        """Return what each channel's filters, summed, do to a frequency in cycles per sample.

        Every bin's filters are taken as if they held for ever; of a mixer that looks both ways
        forwards and backwards together.

        Raises:
            ValueError: they are a memory's.
        """
        if self.mix is None:
            raise ValueError(f"{self.name} must filter channels; it filters keys and values.")
        forwards = self._response(self.mix[0], frequency)
        if self.realisation == "circular":  # multiplies by the conjugate, once
            return forwards.conj()
        if len(self.mix) == 1:
            return forwards
        # Of a real filter that runs backwards the response is the conjugate.
        return forwards + self._response(self.mix[1], frequency).conj()

    def _response(self, mix: Tensor, frequency: Tensor) -> Tensor:
        mix = mix.transpose(0, 1)
        if self.realisation == "normal":
            decay, angle = self.coefficients.unbind(-1)
            gain = unit_noise_gain(decay)[..., None] * mix
            responses = normal_form_frequency_response(decay, angle, frequency, mix=gain)
        else:
            responses = direct_form_frequency_response(self.coefficients, frequency)
            responses = responses * mix[..., :1]
        return responses.sum(-2)


@torch.no_grad()
def placed_filters(model: nn.Module, batch: Batch) -> list[PlacedFilters]:
    """Return the filters that every Focus of the model places for a batch, first layer first.

    Where Focus has no filters of channels they are those of its memory: a bin for every step, a
    channel for every head. A model that filters nothing gives an empty list.
    """
    was_training = model.training
    model.eval()
    try:
        with watch_poles(model) as seen:
            compute_logits(model, batch)
    finally:
        model.train(was_training)
    return [
        PlacedFilters(
            name=name,
            realisation=placing.realisation,
            coefficients=placing.coefficients(),
            mix=_mix(placing.mixer),
        )
        for name, placing in seen.items()
    ]


def _mix(focus: Any) -> Tensor | None:
    """The weights of its filters of channels, if it has some."""
    return None if focus.filters is None else focus.filters.mix.detach().double().cpu()
