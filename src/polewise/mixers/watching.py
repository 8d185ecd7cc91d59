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
    lengths: Tensor | None
    """Real steps of its rows."""
    shared: dict[str, Any]
    """The model's features, where one network serves all layers; else nothing."""

    @torch.no_grad()
    def coefficients(self) -> Tensor:
        """The filters of every bin of `x`, (batch, bins, channels, filters, 2), in float64 on the
        CPU: not every device has it."""
        return self.mixer.coefficients(self.x, self.lengths, **self.shared).cpu().double()


@contextmanager
def watch_poles(model: nn.Module) -> Iterator[dict[str, Placing]]:
    """Note what enters every mixer of the model that places poles, by its name, while it is open.

    They come in the order in which they run; one that filters nothing does not come. Where poles
    are chosen by what came before, a call with a state raises ValueError.
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
    given = dict(zip(("x", "state", "lengths"), positional, strict=False)) | named
    x, lengths = given["x"], given.get("lengths")
    shared = {} if given.get("shared") is None else {"shared": given["shared"]}
    if given.get("state") is not None and (shared or mixer.features is not None):
        raise ValueError(
            "state must be None while poles are watched that earlier bins choose; give the whole "
            "sequence at once."
        )
    if lengths is not None:
        x = x[:, : max(int(lengths.max()), 1)]
    seen[name] = Placing(mixer, realisation, x.detach(), lengths, shared)
