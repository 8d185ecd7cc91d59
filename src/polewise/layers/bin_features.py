"""What the hypernetwork sees: the sequence, embedded and pooled bin by bin."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polewise.layers.mixer_input import steps_before
from polewise.layers.recurrent_embedder import RecurrentEmbedder
from polewise.layers.regularised_conv import RegularisedConv
from polewise.ops.padding import real_steps
from polewise.ops.shards import Shards
from polewise.options import require_choice


class Features(NamedTuple):
    """For every bin that a segment touches, what its filters may be chosen from."""

    pooled: Float[Tensor, "batch bins windows dim"]
    known: Bool[Tensor, "batch bins"]
    """False in the first bin of a sequence: nothing lies before it."""


class BinFeaturesState(NamedTuple):
    """Batch first; constant in length (but for a long-convolution embedder's taps)."""

    position: Int[Tensor, " batch"]
    """Steps seen so far."""
    embedder: Any
    running: Float[Tensor, "batch windows dim"]
    """Maxima of the bin under way; -inf where a window has not begun."""
    finished: Float[Tensor, "batch windows dim"]
    """Maxima of the last finished bin."""


class BinFeatures(nn.Module):
    r"""$e = \operatorname{MaxPool}(\operatorname{Embed}(x))$, shifted by one bin.

    The pool has O windows of R / O steps in each bin of R steps, never across its edge. Bin r
    receives the maxima of bin r - 1, so nothing in it can see its own present or future;
    without `causal` it receives its own.

    Args:
        embedder: a module `(x, state, lengths) -> (e, state)`.
        bin_length: R, steps in a bin.
        windows: O, a divisor of R.
        causal: shift by one bin.

    Source: Lutati et al. 2023, Eq. 1-2; fixed windows and the running state are ours.
    """

    @classmethod
    def named(
        cls, embedder: str, dim: int, bin_length: int, windows: int, *, taps: int, causal: bool
    ) -> BinFeatures:
        """Return features by the name of their embedder: "recurrent", in constant memory, or
        "long_conv", the publication's, with a kernel of so many `taps`.

        Raises:
            ValueError: another name.
        """
        require_choice("embedder", embedder, ("recurrent", "long_conv"))
        embed = RegularisedConv(dim, taps) if embedder == "long_conv" else RecurrentEmbedder(dim)
        return cls(embed, bin_length, windows, causal=causal)

    def __init__(
        self, embedder: nn.Module, bin_length: int, windows: int, *, causal: bool = True
    ) -> None:
        super().__init__()
        self.embedder = embedder
        self.bin_length = bin_length
        self.windows = windows
        self.causal = causal
        self.shards: Shards | None = None

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: BinFeaturesState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Features, BinFeaturesState | None]:
        batch, _, dim = x.shape
        embedded, embedder_state = self.embedder(x, state.embedder if state else None, lengths)
        steps = real_steps(x, lengths)
        if state is None:
            position = steps_before(x, None, self.shards)
            running = x.new_full((batch, self.windows, dim), -torch.inf)
            finished = x.new_zeros(batch, self.windows, dim)
        else:
            position, _, running, finished = state
            if running.shape[1] != self.windows:
                raise ValueError(
                    f"state must come from bins of {self.windows} windows; got {running.shape[1]}."
                )
            if x.shape[1] == 1 and self.causal:
                return self._one_step(embedded, embedder_state, state, steps)

        offset = position % self.bin_length
        if state is None and lengths is None:
            maxima = self._maxima_from_the_start(embedded)
        else:
            maxima = self._maxima(embedded, steps, None if state is None else offset)
        if maxima.shape[1]:
            first = torch.maximum(maxima[:, :1], running[:, None].to(x.dtype))
            maxima = torch.cat([first, maxima[:, 1:]], 1)
        if self.shards is not None:
            finished = self.shards.from_before(maxima[:, -1])
        if not self.causal:
            known = torch.ones(maxima.shape[:2], dtype=torch.bool, device=x.device)
            return Features(_finite(maxima), known), None

        shifted = torch.cat([finished[:, None].to(x.dtype), maxima], 1)
        pooled = shifted[:, : maxima.shape[1]]
        bins = torch.arange(maxima.shape[1], device=x.device)
        known = (position // self.bin_length)[:, None] + bins > 0
        # The bin under way at the end, and the one finished before it.
        done = ((offset + steps) // self.bin_length)[:, None, None, None]
        done = done.expand(-1, 1, self.windows, dim)
        empty = torch.full_like(shifted[:, :1], -torch.inf)
        under_way = torch.cat([maxima if maxima.shape[1] else running[:, None], empty], 1)
        return Features(_finite(pooled), known), BinFeaturesState(
            position + steps,
            embedder_state,
            under_way.gather(1, done).squeeze(1),
            shifted.gather(1, done).squeeze(1),
        )

    def _one_step(
        self, embedded: Tensor, embedder_state: Any, state: BinFeaturesState, steps: Tensor
    ) -> tuple[Features, BinFeaturesState]:
        """A single step, as in decoding, changes one window of one bin."""
        position, _, running, finished = state
        offset = position % self.bin_length
        window = torch.arange(self.windows, device=embedded.device)
        here = window == (offset // (self.bin_length // self.windows))[:, None]
        here = (here & (steps > 0)[:, None])[..., None]
        running = torch.where(here, torch.maximum(running.to(embedded.dtype), embedded), running)
        full = (offset + steps == self.bin_length)[:, None, None]
        known = position[:, None] >= self.bin_length
        return Features(finished[:, None].to(embedded.dtype), known), BinFeaturesState(
            position + steps,
            embedder_state,
            torch.where(full, -torch.inf, running),
            torch.where(full, running, finished),
        )

    def _maxima_from_the_start(self, embedded: Tensor) -> Tensor:
        """As `_maxima` where every row begins with its first bin and is real to its end."""
        bins = -(-embedded.shape[1] // self.bin_length)
        if padding := bins * self.bin_length - embedded.shape[1]:
            embedded = functional.pad(embedded, (0, 0, 0, padding), value=-torch.inf)
        window = self.bin_length // self.windows
        return embedded.unflatten(1, (bins, self.windows, window)).amax(3)

    def _maxima(self, embedded: Tensor, steps: Tensor, offset: Tensor | None) -> Tensor:
        """The maximum of every window of every bin touched, (batch, bins, windows, dim)."""
        batch, length, dim = embedded.shape
        late = 0 if offset is None else self.bin_length - 1
        bins = -(-(late + length) // self.bin_length) if length else 0
        slot = torch.arange(bins * self.bin_length, device=embedded.device)
        time = slot.expand(batch, -1) if offset is None else slot - offset[:, None]
        real = (time >= 0) & (time < steps[:, None])
        index = time.clamp(0, max(length - 1, 0))[..., None].expand(-1, -1, dim)
        placed = embedded.gather(1, index).masked_fill(~real[..., None], -torch.inf)
        window = self.bin_length // self.windows
        return placed.unflatten(1, (bins, self.windows, window)).amax(3)


def _finite(pooled: Tensor) -> Tensor:
    """Windows that hold no step (at the end of a sequence) count as 0 rather than -inf."""
    return pooled.masked_fill(pooled == -torch.inf, 0)
