"""Watching a model place its poles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polewise.layers import Realisation
from polewise.mixers.focus import Focus
from polewise.mixers.published_focus import PublishedFocus


class Placing(NamedTuple):
    """A mixer that places poles, and what it was last given."""

    mixer: Focus | PublishedFocus
    realisation: Realisation
    """What its coefficients are: (decay, angle), or (a1, a2)."""
    x: Tensor
    """No longer than its longest row."""
    shared: dict[str, Any]
    """The model's features, where one network serves all layers; else nothing."""

    @torch.no_grad()
    def coefficients(self) -> Tensor:
        """The filters of every bin of `x`, (batch, bins, channels, filters, 2), in float64 on the
        CPU: not every device has it."""
        return self.mixer.coefficients(self.x, **self.shared).cpu().double()


@contextmanager
def watch_poles(model: nn.Module) -> Iterator[dict[str, Placing]]:
    """Note what enters every mixer of the model that places poles, by its name, while it is open.

    They come in the order in which they run; one that filters nothing does not come.
    """
    seen: dict[str, Placing] = {}
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, Focus | PublishedFocus) and module.realisation is not None:
                note = partial(_note, seen, name, module.realisation)
                hooks.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield seen


def _note(
    seen: dict[str, Placing],
    name: str,
    realisation: Realisation,
    mixer: Any,
    positional: Any,
    named: dict[str, Any],
) -> None:
    x = positional[0] if positional else named["x"]
    lengths = positional[2] if len(positional) > 2 else named.get("lengths")
    if lengths is not None:
        x = x[:, : max(int(lengths.max()), 1)]
    shared = {key: value for key, value in named.items() if key == "shared"}
    seen[name] = Placing(mixer, realisation, x.detach(), shared)
