"""The state of a model in the form that transformers passes around."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from polewise.models.backbone import BackboneState
from polewise.states import map_state, num_bytes, select_batch, tensors, to


class PolewiseCache(Cache):
    """What a model has read so far, in constant memory.

    `model(ids, cache=cache)` reads on and brings the cache up to date; `generate`
    makes one by itself and returns it with `return_dict_in_generate=True`. A snapshot costs
    nothing, because a step makes new tensors and leaves the old ones alone:

        before = cache.copy()

    Args:
        state: a state that `PolewiseForCausalLM.step` returned; None is the start.
        length: columns of the batch that it has read, masked ones included.
    """

    def __init__(self, state: BackboneState | None = None, length: int = 0) -> None:
        super().__init__(layers=[])
        self.state = state
        self.length = length

    def __repr__(self) -> str:
        return f"PolewiseCache(length={self.length}, num_bytes={self.num_bytes()})"

    def __len__(self) -> int:
        return 0 if self.state is None else len(self.state.layers)

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first step."""
        leaves = tensors(self.state)
        return leaves[0].shape[0] if leaves else -1

    @property
    def is_initialized(self) -> bool:
        return self.state is not None

    @property
    def is_linear(self) -> list[bool]:
        """False. transformers gives a "linear" cache the whole prompt again, for want of a count;
        this one counts, and is given the rest."""
        return [False]

    @property
    def is_croppable(self) -> bool:
        """Never: what was read is summed up, not kept. Copy before, and go back to the copy."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read so far."""
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is no end."""
        return -1

    def num_bytes(self) -> int:
        """Memory of the state."""
        return num_bytes(self.state)

    def copy(self) -> PolewiseCache:
        """A snapshot: the same tensors, from here on apart."""
        return copy.copy(self)

    def to(self, *args: Any, **kwargs: Any) -> PolewiseCache:
        """A cache whose tensors are on another device or of another precision; this one, as of a
        tensor, if they are so already."""
        state = to(self.state, *args, **kwargs)
        same = all(a is b for a, b in zip(tensors(state), tensors(self.state), strict=True))
        return self if same else PolewiseCache(state, self.length)

    def reset(self) -> None:
        self.state, self.length = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, in this order."""
        self.state = select_batch(self.state, beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        if indices.dtype == torch.bool:
            indices = indices.nonzero().squeeze(-1)
        self.state = select_batch(self.state, indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, side by side."""
        self.state = map_state(lambda leaf: leaf.repeat_interleave(repeats, dim=0), self.state)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError(
                "tokens_to_remove must be 0: a state cannot be rolled back, so such a model is no "
                "assistant of another. Keep `cache.copy()` from before and go back to it."
            )
