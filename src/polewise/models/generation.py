"""Continue a prompt, one token at a time, from a state that does not grow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from polewise.options import require_at_least


def generate(
    model: nn.Module,
    prompt: Int[Tensor, "1 length"],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    state: Any = None,
) -> Generation:
    """Yield new tokens as they are drawn.

    Args:
        model: a causal language model whose `step(ids, state) -> (logits, state)` streams.
        prompt: at least one token.
        max_new_tokens: how many to draw.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draw among the k most likely only.
        generator: the source of randomness, on the model's device.
        state: what the model has read before the prompt; None is nothing.

    Returns:
        An iterator of tokens. Its `state` has read everything but its `unread` tokens (the last
        one yielded, or a prompt not begun), so a text goes on where it stopped with
        `generate(model, torch.cat([unread, prompt], 1), n, state=state)`.

    Raises:
        ValueError: an empty prompt, fewer than 0 tokens, a negative temperature, `top_k` below 1,
            or (from the iterator) a model that cannot stream.
    """
    if prompt.ndim != 2 or prompt.shape[0] != 1 or prompt.shape[1] < 1:
        raise ValueError(
            f"prompt must be one row of at least one token, shape (1, length); "
            f"got {tuple(prompt.shape)}."
        )
    require_at_least("max_new_tokens", max_new_tokens, 0)
    require_sampling(temperature, top_k)
    return Generation(model, prompt, max_new_tokens, temperature, top_k, generator, state)


def require_sampling(temperature: float, top_k: int | None) -> None:
    """Check that tokens can be drawn so.

    Raises:
        ValueError: a negative temperature or NaN, or fewer than one token to draw among.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0; got {temperature}.")
    if top_k is not None:
        require_at_least("top_k", top_k, 1)


class Generation(Iterator[int]):
    """Text under way; made by `generate`."""

    state: Any
    """Of everything but `unread`."""
    unread: Int[Tensor, "1 length"]
    """At least one token: what the next one follows."""

    def __init__(
        self,
        model: nn.Module,
        prompt: Tensor,
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        generator: torch.Generator | None,
        state: Any,
    ) -> None:
        self.state, self.unread = state, prompt
        self._step: Any = model.step
        self._left = max_new_tokens
        self._temperature, self._top_k, self._generator = temperature, top_k, generator

    @torch.no_grad()
    def __next__(self) -> int:
        if self._left < 1:
            raise StopIteration
        logits, state = self._step(self.unread, self.state)
        if state is None:
            raise ValueError(
                "model must stream: its step must return the state that the next one goes on "
                "from; got None."
            )
        token = self._draw(logits[:, -1].float())
        self.state, self.unread = state, token  # together: Ctrl-C must not part them
        self._left -= 1
        return int(self.unread)

    def _draw(self, logits: Tensor) -> Tensor:
        if self._temperature == 0:
            return logits.argmax(-1, keepdim=True)
        # The largest is 0 and the others fall, so that no temperature makes one overflow.
        logits = (logits - logits.amax(-1, keepdim=True)) / max(self._temperature, 1e-30)
        if self._top_k is not None:
            floor = logits.topk(min(self._top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < floor, -torch.inf)
        return torch.multinomial(logits.softmax(-1), 1, generator=self._generator)
