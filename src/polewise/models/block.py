"""One layer of a model: a mixer over time, then a feed-forward at every step."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from polewise.layers import FeedForward, RmsNorm


class Block(nn.Module):
    """$h = x + \\mathrm{mixer}(\\mathrm{norm}(x))$, $y = h + \\mathrm{ff}(\\mathrm{norm}(h))$.

    A mixer with `own_norm` gets x as it is: it weighs x itself against something else, has the norm
    inside, and nothing of what it adds is dropped.

    Args:
        mixer: any module `(x, state, lengths) -> (y, state)`.
        dim: channels.
        intermediate_size: width of the feed-forward; 0 leaves it out.
        dropout: share of what each half adds that is dropped in training.
    """

    def __init__(
        self, mixer: nn.Module, dim: int, intermediate_size: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.own_norm = bool(getattr(mixer, "own_norm", False))
        self.mixer_norm = nn.Identity() if self.own_norm else RmsNorm(dim)
        self.mixer = mixer
        if intermediate_size:
            self.feed_forward_norm = RmsNorm(dim)
            self.feed_forward: FeedForward | None = FeedForward(dim, intermediate_size)
        else:
            self.feed_forward = None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: Any = None,
        lengths: Int[Tensor, " batch"] | None = None,
        **shared: Any,
    ) -> tuple[Float[Tensor, "batch length dim"], Any]:
        mixed, state = self.mixer(self.mixer_norm(x), state, lengths, **shared)
        x = x + (mixed if self.own_norm else self.dropout(mixed))
        if self.feed_forward is not None:
            x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return x, state
