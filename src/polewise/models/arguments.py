"""What models accept: one kind of input, masks that fit it, and no argument unknown."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polewise.did_you_mean import did_you_mean
from polewise.models.cache import PolewiseCache
from polewise.ops.eager import values_are_at_hand


def only_one(given: tuple[Tensor | None, ...]) -> Tensor:
    """Return the one kind of input that was given.

    Raises:
        ValueError: none, or several.
    """
    parts = [part for part in given if part is not None]
    if len(parts) != 1:
        raise ValueError(
            "input_ids, input_values or inputs_embeds must be given, exactly one of them; got "
            f"{len(parts)}."
        )
    return parts[0]


def real_tokens(mask: Tensor | None, given: Tensor, seen: int) -> Tensor | None:
    """Return which tokens of the segment exist, (batch, length); None for all.

    `mask` may begin with the columns of `seen` tokens before the segment.
    """
    if mask is None:
        return None
    require_mask("attention_mask", mask, given, seen)
    real = mask[:, mask.shape[1] - given.shape[1] :].bool()
    return None if values_are_at_hand(real) and bool(real.all()) else real


def require_mask(name: str, mask: Tensor, given: Tensor, seen: int) -> None:
    """Check that a mask belongs to `given`, alone or with the tokens seen before it.

    Raises:
        ValueError: it has another shape.
    """
    batch, length = given.shape[:2]
    shapes = [(batch, length), (batch, seen + length)][: 1 + bool(seen)]
    got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    if got not in shapes:
        wanted = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"{name} must have shape (batch, length) = {wanted}; got {got}.")


def require_rising(positions: Tensor, real: Tensor | None) -> None:
    """Check that the positions of the real tokens rise in every row.

    Raises:
        ValueError: they begin anew, or stand still.
    """
    if torch.compiler.is_compiling() or positions.shape[-1] < 2:
        return  # a trace has no values, and one token nothing to rise from
    if real is None or positions.shape != real.shape:
        falls = positions.diff(dim=-1) <= 0
    else:
        highest = torch.where(real, positions, -1).cummax(-1).values
        falls = real[:, 1:] & (positions[:, 1:] <= highest[:, :-1])
    if bool(falls.any()):
        raise ValueError(
            "position_ids must rise in every row: they do not cut a row into documents. Say it "
            "with seq_idx (DataCollatorWithFlattening(return_seq_idx=True) makes it)."
        )


def require_cache(cache: Any) -> None:
    """Check that `cache` is a PolewiseCache or None.

    Raises:
        TypeError: another kind.
    """
    if cache is not None and not isinstance(cache, PolewiseCache):
        raise TypeError(
            f"cache must be a PolewiseCache; got {type(cache).__name__}. Leave it out for a new "
            "one; PolewiseCache(state) makes one of a state."
        )


def require_prompt(inputs: Tensor | None, arguments: dict[str, Any]) -> None:
    """Check that `generate` has something to go on from, and that its last column is real.

    Raises:
        TypeError: no tensor, or a cache of another kind.
        ValueError: an empty prompt or batch, padding at the right, or a cache that has read it all.
    """
    name, prompt = "inputs_embeds", arguments.get("inputs_embeds")
    if prompt is None:
        name, prompt = "input_ids", arguments.get("input_ids") if inputs is None else inputs
    if prompt is not None and not isinstance(prompt, Tensor):
        raise TypeError(
            f"{name} must be a tensor, (batch, length); got {type(prompt).__name__}. What a "
            "tokenizer returns is handed over as generate(**batch)."
        )
    if prompt is not None and (prompt.ndim < 2 or 0 in prompt.shape[:2]):
        raise ValueError(
            f"{name} must hold at least one row of at least one token, (batch, length); "
            f"got {tuple(prompt.shape)}."
        )
    mask = arguments.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        require_real_end(mask)
    cache = arguments.get("cache")
    cache = arguments.get("past_key_values") if cache is None else cache
    require_cache(cache)
    if isinstance(cache, PolewiseCache) and prompt is not None and cache.length:
        # Of vectors transformers always takes what lies beyond the cache, whatever the mask.
        whole = prompt if mask is None or name == "inputs_embeds" else mask
        columns = whole.shape[1]
        if columns <= cache.length:
            either = ", or have an attention_mask over all of it" if name == "input_ids" else ""
            raise ValueError(
                f"{name} must be the whole text{either}: "
                f"the cache has read {cache.length} columns; got {columns}."
            )


def require_real_end(mask: Tensor) -> None:
    """Check that the last column of a mask, (batch, length), which is gone on from, is real.

    Raises:
        ValueError: padding at the right, or a row without any token.
    """
    empty = (mask == 0).all(1) if mask.shape[1] else mask.new_zeros(0)
    if bool(empty.any()):
        raise ValueError(
            "attention_mask must have a 1 in every row, or there is nothing to go on from; row "
            f"{int(empty.nonzero()[0])} has none."
        )
    if bool((mask[:, -1:] == 0).any()):
        raise ValueError(
            "attention_mask must end in a 1 in every row, and without one no row may end in the "
            "padding token: what is written follows the last column. Pad at the left "
            "(padding_side='left')."
        )


def refuse_unknown(arguments: dict[str, Any]) -> None:
    """Refuse arguments that would be left out in silence.

    Raises:
        ValueError: a known argument that asks for what no model here can do.
        TypeError: an unknown argument, or one that only other models have.
    """
    if arguments.pop("output_attentions", None):
        raise ValueError("output_attentions must be False: no mixer keeps its weights.")
    for name, value in arguments.items():
        if value is not None and name not in _IGNORED:
            if name in _ARGUMENTS:
                raise TypeError(
                    f"{name} is an argument of other models of Polewise, not of this one."
                )
            raise TypeError(
                f"unknown argument {name!r}.{did_you_mean(name, _ARGUMENTS)}"
                f"{_PACKED if name.startswith('cu_seq') else ''}"
            )


_PACKED = " Packed documents are given as seq_idx."

_IGNORED = ("cache_position", "num_items_in_batch", "token_type_ids", "tokenizer")
"""Arguments that tools pass to every model and that change nothing here."""

_ARGUMENTS = (
    "input_ids", "attention_mask", "cache", "inputs_embeds", "labels", "use_cache",
    "logits_to_keep", "input_values", "seq_idx", "output_hidden_states", "return_dict",
    "position_ids", "shift_labels",
)  # fmt: skip
