"""The systems of a comparison: any mixers, one width, equal parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from polewise.models.pooling import Pooling
from polewise.recipes.studies.parameter_matching import count_parameters, deepest, match_parameters
from polewise.recipes.studies.study import System
from polewise.tasks import TaskSpec
from polewise.training import ModelOptions

Mixers = dict[str, tuple[str, dict[str, Any]]]
"""Name of a system to the name and the options of its mixer."""

LOCAL = ("chunk_attention", "sliding_attention")
"""Local attention without any filter: what looking nearby does alone."""
PEERS = ("focus", "attention", *LOCAL, "mega", "hyena", "s4d", "mamba2")
"""Who takes part in the tables, where nothing else is said."""
RELATIVES = ("mamba3", "gated_linear_attention")
"""Today's closest relatives of Focus."""
WITHOUT_MEMORY: Mixers = {
    "focus-filters": ("focus", {"memory": False, "filters": 1, "hypernetwork": "recurrent"}),
    "focus-fixed-filters": ("focus", {"memory": False, "filters": 1}),
    "focus-convolution": ("focus", {"memory": False}),
}
"""Focus as filters of channels and nothing else, chosen for every bin or learned once for all; and
as its short convolution and its gate, the control: what is learned without looking far."""
MEMORIES: Mixers = {"focus-memories": ("focus", {"memory_every": 1})}
"""Focus with a memory in every layer, where the default has one in six."""
PAPER = ("published_focus", "published_focus-fixed")
"""Focus by the equations of its publication, its filter causal: with the network that places the
poles, the published long convolution shared by all layers, and without it (Focus-H)."""
WITH_CONVOLUTION: Mixers = {
    f"{mixer}-conv": (mixer, {"conv_width": 4}) for mixer in ("attention", "gated_linear_attention")
}
"""Peers with the short convolution of Focus and Mamba-2, which may be all that they lack."""
DEEP = ("focus", "mamba2-deep", "s4d-deep", "attention-conv-deep", *MEMORIES, *WITHOUT_MEMORY)
"""Systems that are stacked without feed-forwards, in more layers: their mixers contain one, or
their authors stack them so (S4D); the Transformer as a control of what depth alone does."""

_CHUNKED = ("mega", *LOCAL, "published_focus")
_LONG = ("hyena", "long_conv")


def mixers_named(*names: str, chunk_length: int, length: int) -> Mixers:
    """Return mixers with their default options, or those of a variant named above.

    Those that look nearby see `chunk_length`, MEGA as `mega-whole` all of `length`; convolutions
    have kernels of `length`, the published Focus of 1024 at most. `-deep` is a name for `DEEP`.
    """
    options: dict[str, dict[str, Any]] = {key: {"chunk_length": chunk_length} for key in _CHUNKED}
    options |= {key: {"taps": length} for key in _LONG}
    fixed = {**options["published_focus"], "hypernetwork": "none"}
    # A kernel as long as the longest sequences would be more than the whole of another model.
    options["published_focus"] |= {"hypernetwork": "shared_long_conv", "taps": min(length, 1024)}
    variants = {
        **WITHOUT_MEMORY,
        **MEMORIES,
        **WITH_CONVOLUTION,
        "published_focus-fixed": ("published_focus", fixed),
        "mega-whole": ("mega", {"chunk_length": length}),
    }
    bases = {name: name.removesuffix("-deep") for name in names}
    return {name: variants.get(base, (base, options.get(base, {}))) for name, base in bases.items()}


def equal_systems(
    spec: TaskSpec,
    chosen: Mapping[str, tuple[str, dict[str, Any]]],
    *,
    dim: int,
    num_layers: int,
    deep: tuple[str, ...] = (),
    pooling: Pooling = "mean",
) -> tuple[System, ...]:
    """Return systems with as many parameters as a Transformer of that width and depth.

    Its feed-forward has the width `4 * dim + max(2 * dim, 256)`: more than the usual four times,
    to make room for mixers that are larger than attention. It depends on no other system of the
    house, so a change to one leaves the others as they are. Systems named in `deep` have no
    feed-forward and as many layers as there are parameters for. All name classes by the same
    `pooling`.

    Raises:
        ValueError: a mixer does not exist, or has more parameters by itself; a `-deep` system is
            not in `deep`.
    """
    shallow = [name for name in chosen if name.endswith("-deep") and name not in deep]
    if shallow:
        raise ValueError(f"deep must name {shallow[0]}, which is stacked so; got {deep}.")
    transformer = ModelOptions(
        mixer="attention",
        hidden_size=dim,
        num_layers=num_layers,
        intermediate_size=4 * dim + max(2 * dim, 256),
        pooling=pooling,
    )
    parameters = count_parameters(spec, transformer)
    models = {
        name: replace(transformer, mixer=mixer, mixer_options=options)
        for name, (mixer, options) in chosen.items()
    }
    return tuple(
        System(
            name=name,
            model=(
                deepest(spec, model, parameters)
                if name in deep
                else match_parameters(spec, model, parameters)
            ),
        )
        for name, model in models.items()
    )
