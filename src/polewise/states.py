"""What streaming needs of any state.

A state is a tree: NamedTuples and tuples whose leaves are tensors with the batch first, or
None where a layer keeps nothing. It is a value: no step changes it, so keeping one is a
snapshot, and going back to it is using it again. These functions treat every tree alike.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from polewise.replace_file import replace_file

State = TypeVar("State")

DAMAGE = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, SafetensorError)
"""What reading a damaged or malicious file may raise."""


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
    """Rows `index` of the batch, in that order: reorder beams, repeat, or keep a subset.

    Args:
        state: the tree.
        index: (rows,) int64; a row may come twice.

    Raises:
        IndexError: an index beyond the batch.
    """
    return map_state(lambda leaf: leaf.index_select(0, index.to(leaf.device)), state)


def detach(state: State) -> State:
    """Cut the gradient, for truncated back-propagation through time."""
    return map_state(Tensor.detach, state)


def to(state: State, *args: Any, **kwargs: Any) -> State:
    """Move to a device or a precision, as `Tensor.to`. Integer positions keep their dtype."""
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


def require_state_like(name: str, state: Any, like: Any) -> None:
    """Raise where `state` could not have come from the model, batch and device of `like`.

    Args:
        name: what the caller calls it, for the message.
        state: what was given.
        like: the model's state before its first step. An axis of size 0 there grows with
            time and may have any size.

    Raises:
        ValueError: another tree or none, another shape or device; the message names the place.
        TypeError: integers where floating numbers belong, or the reverse.
    """
    if isinstance(like, Tensor) and isinstance(state, Tensor):
        same = state.ndim == like.ndim and all(
            wanted in (0, got) for wanted, got in zip(like.shape, state.shape, strict=True)
        )
        if not same:
            shape = ", ".join("any" if size == 0 else str(size) for size in like.shape)
            raise ValueError(
                f"{name} must have shape ({shape}) for this model and batch; "
                f"got ({', '.join(map(str, state.shape))})."
            )
        if state.device != like.device:
            raise ValueError(f"{name} must be on {like.device}; got {state.device}.")
        if state.is_floating_point() != like.is_floating_point():
            wanted, got = (str(each.dtype).removeprefix("torch.") for each in (like, state))
            raise TypeError(f"{name} must be {wanted}; got {got}.")
    elif type(state) is not type(like) or (like is not None and len(state) != len(like)):
        raise ValueError(
            f"{name} must be {_describe(like)} of this model; got {_describe(state)}. "
            "A state goes back only to the model, or a copy of the model, that made it."
        )
    elif like is not None:
        fields = getattr(like, "_fields", None)
        places = (
            [f".{field}" for field in fields] if fields else [f"[{i}]" for i in range(len(like))]
        )
        for place, part, like_part in zip(places, _parts(state), _parts(like), strict=True):
            require_state_like(name + place, part, like_part)


def save(state: Any, path: str | Path) -> None:
    """Write the tensors to `path`, as safetensors; a file already there is replaced whole or not at
    all.

    The tree's shape is not written: `load` takes it from a state of the same model.
    """
    leaves = enumerate(leaf.detach().cpu().contiguous().clone() for leaf in tensors(state))
    written = safetensors.torch.save({str(number): leaf for number, leaf in leaves})
    replace_file(Path(path), written)


def load(path: str | Path, like: State) -> State:
    """Read what `save` wrote.

    Args:
        path: the file.
        like: a state of the same model and batch, such as `model.initial_state(1)`.

    Raises:
        ValueError: no state file, or the state of another model or batch.
        FileNotFoundError: no file.
    """
    try:
        found = safetensors.torch.load(Path(path).read_bytes())
    except DAMAGE as error:
        raise ValueError(f"{path} is not a state that polewise.states.save wrote.") from error
    names = [str(number) for number in range(len(tensors(like)))]
    if found.keys() != set(names):
        raise ValueError(
            f"{path} must hold the {len(names)} tensors of this model; got {len(found)} others."
        )
    leaves = [found[name] for name in names]
    stream = iter(leaves)
    try:
        state = map_state(lambda leaf: next(stream).to(leaf.device), like)
        require_state_like("state", state, like)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} holds the state of another model or batch: {error}") from error
    return state


def _describe(state: Any) -> str:
    if state is None:
        return "nothing"
    if isinstance(state, (tuple, list)) and not hasattr(state, "_fields"):
        return f"a {type(state).__name__} of {len(state)}"
    return f"a {type(state).__name__}"


def _parts(state: Any) -> tuple | list:
    if isinstance(state, (tuple, list)):
        return state
    raise TypeError(
        f"state must be a tree of tuples, tensors and None; got {type(state).__name__}."
    )
