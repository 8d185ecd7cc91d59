"""Split one long sequence over the processes of a group: context parallelism."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

from polewise.ops.shards import Shards


def shard_sequence(module: nn.Module, group: dist.ProcessGroup | None = None) -> Shards:
    """From here on every process of the group works on its own piece of each row.

    The pieces are equal, consecutive, in order of rank, and hold whole bins and chunks. Filters
    and associative memories exchange affine summaries (4 numbers a channel for the normal form),
    windows the last entries of the piece before, full attention all keys and values.

    A model or backbone is given the whole sequence on every process and returns the whole
    output: every process computes the same loss, and the mean of the gradients over processes,
    which data-parallel engines take, is the gradient on one. A bare mixer is given its piece
    (`shards.piece(x)`) and returns it; gradients of its parameters are shares to be summed.

    Args:
        module: a causal mixer, backbone or model. It is changed in place.
        group: the processes; None is the default group.

    Returns:
        The pieces; `shards.piece(x)` is this process's part of a whole sequence.

    Raises:
        ValueError: a mixer that looks ahead, or that does not know how to be split.
    """
    require_splittable(module)
    shards = Shards(group)
    _give_shards(module, shards)
    return shards


def require_splittable(module: nn.Module) -> None:
    """Raise ValueError unless every mixer in the module is causal and knows how to be split."""
    for part in module.modules():
        name = type(part).__name__
        if getattr(part, "causal", True) is False:
            raise ValueError(f"module must be causal to be split; {name} has causal=False.")
        if hasattr(part, "causal") and not hasattr(part, "shards"):
            raise ValueError(
                f"module must know how to be split; {name} has no attribute `shards`, by which a "
                "mixer asks for what lies before its piece."
            )


def unshard_sequence(module: nn.Module) -> None:
    """Undo `shard_sequence`: every process works on whole rows again."""
    _give_shards(module, None)


def _give_shards(module: nn.Module, shards: Shards | None) -> None:
    for part in module.modules():
        if hasattr(part, "shards"):
            part.shards = shards  # type: ignore[assignment]
