"""Continue a prompt, one token at a time, from a state that does not grow."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor, nn


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Int[Tensor, "1 length"],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Yield new tokens as they are drawn.

    Args:
        model: a causal language model whose `step(ids, state) -> (logits, state)` streams.
        prompt: at least one token.
        max_new_tokens: how many to draw.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draw among the k most likely only.
        generator: the source of randomness, on the model's device.

    Raises:
        ValueError: an empty prompt, a negative temperature, or `top_k` below 1.
    """
    if prompt.ndim != 2 or prompt.shape[0] != 1 or prompt.shape[1] < 1:
        raise ValueError(
            f"prompt must be one row of at least one token, shape (1, length); "
            f"got {tuple(prompt.shape)}."
        )
    if temperature < 0:
        raise ValueError(f"temperature must not be negative; got {temperature}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1; got {top_k}.")
    return _draw(model, prompt, max_new_tokens, temperature, top_k, generator)


@torch.no_grad()
def _draw(model, tokens, max_new_tokens, temperature, top_k, generator) -> Iterator[int]:
    state = None
    for _ in range(max_new_tokens):
        logits, state = model.step(tokens, state)
        logits = logits[:, -1].float()
        if temperature == 0:
            tokens = logits.argmax(-1, keepdim=True)
        else:
            logits = logits / temperature
            if top_k is not None:
                floor = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
                logits = logits.masked_fill(logits < floor, -torch.inf)
            tokens = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        yield int(tokens)
