"""What streaming needs of any state.

A state is a tree: NamedTuples and tuples whose leaves are tensors with the batch first, or
None where a layer keeps nothing. These functions treat every tree alike.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """The same tree with `function` applied to every tensor."""
    if state is None:
        return state
    if isinstance(state, Tensor):
        return function(state)  # type: ignore[return-value]
    parts = [map_state(function, part) for part in _parts(state)]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)  # type: ignore[call-arg]


def tensors(state: Any) -> list[Tensor]:
    """The leaves, in order."""
    if state is None:
        return []
    if isinstance(state, Tensor):
        return [state]
    return [leaf for part in _parts(state) for leaf in tensors(part)]


def select_batch(state: State, index: Tensor) -> State:
    """Rows `index` of the batch, in that order: reorder beams, repeat, or keep a subset."""
    return map_state(lambda leaf: leaf.index_select(0, index.to(leaf.device)), state)


def detach(state: State) -> State:
    """Cut the gradient, for truncated back-propagation through time."""
    return map_state(Tensor.detach, state)


def to(state: State, *args: Any, **kwargs: Any) -> State:
    """Move to a device. Integer positions keep their dtype."""
    return map_state(
        lambda leaf: (
            leaf.to(*args, **kwargs)
            if leaf.is_floating_point()
            else leaf.to(leaf.new_empty(0).to(*args, **kwargs).device)
        ),
        state,
    )


def num_bytes(state: Any) -> int:
    """Memory of all tensors."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tensors(state))


def save(state: Any, path: str | Path) -> None:
    """Write the tensors to `path`. The tree's shape is not written: `load` takes it from a
    state of the same model."""
    torch.save([leaf.detach().cpu() for leaf in tensors(state)], path)


def load(path: str | Path, like: State) -> State:
    """Read what `save` wrote into the tree of `like`, a state of the same model.

    Raises:
        ValueError: the file holds the state of another model or batch.
    """
    leaves = torch.load(path, weights_only=True)
    wanted = tensors(like)
    shapes, wanted_shapes = ([tuple(leaf.shape) for leaf in part] for part in (leaves, wanted))
    if shapes != wanted_shapes:
        raise ValueError(
            f"{path} must hold a state of this model and batch; got tensors of shapes {shapes}, "
            f"expected {wanted_shapes}."
        )
    stream = iter(leaves)
    return map_state(lambda leaf: next(stream).to(leaf.device), like)


def _parts(state: Any) -> tuple | list:
    if isinstance(state, (tuple, list)):
        return state
    raise TypeError(
        f"state must be a tree of tuples, tensors and None; got {type(state).__name__}."
    )
