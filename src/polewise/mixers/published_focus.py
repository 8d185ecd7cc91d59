"""Focus as published: poles, filters, attention and gates in the paper's order.

For the normed sequence x:

    e       = MaxPool(Embed(x)), bin by bin, shifted by one bin        Eq. 1-2   BinFeatures
    poles   = squash(base + MLP(e))                                    Eq. 3     AdaptiveFilters
    xf      = sum over F filters of filter(x, poles of the bin)        Eq. 4-8
    y       = Attention(Q x, K xf, V xf) inside chunks                 Eq. 9-10  chunked_attention
    gamma   = SiLU(W_gamma xf)                                         Eq. 11
    u       = sigmoid(W_phi xf)                                        Eq. 12
    z       = SiLU(W_h xf + U_h (gamma * y))                           Eq. 13
    output  = u * (z - x before the norm)                              Eq. 14

to which a block adds x, so the norm is inside the mixer, as in MEGA. The filter is causal and
stable unless the publication's own is asked for (`PublishedFocusConfig.paper`), which is neither in
a causal model. The mixer that we would use is `Focus`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polewise.layers import (
    AdaptiveFilters,
    BinFeatures,
    BinFeaturesState,
    Features,
    PositionBias,
    Realisation,
    RmsNorm,
    local_attention,
    require_filters,
    require_input,
    steps_before,
)
from polewise.ops import WindowState
from polewise.ops.padding import hide_padding
from polewise.ops.shards import Shards
from polewise.options import require_at_least, require_multiple, require_types

_LEAK = (
    "realisation='circular' is the published formula: a circular convolution with the conjugate "
    "response inside every bin, so each output depends on later inputs of its bin. Its figures "
    "in an autoregressive model are not honest. Use causal=False, or realisation='normal'; to "
    "study the leak on purpose set leak=True."
)

Hypernetwork = Literal["none", "recurrent", "long_conv", "shared_recurrent", "shared_long_conv"]


@dataclass(frozen=True, kw_only=True)
class PublishedFocusConfig:
    """Focus by the equations of its publication. Lengths are in steps."""

    dim: int
    """Channels."""
    chunk_length: int = 64
    """Tokens that attention sees at once."""
    bin_length: int = 32
    """Steps that share their filters."""
    heads: int = 1
    """Attention heads."""
    value_dim: int | None = None
    """Channels of values and reset gate; None is `dim`."""
    filters: int = 1
    """Filters per channel, summed."""
    realisation: Realisation = "normal"
    """normal: a contraction for any poles. direct: the paper's coefficients, over the whole
    stability triangle. square: the same in the paper's region, (0, 1)^2, and from its start.
    circular: the published formula there, which sees the future."""
    turning: bool = True
    """Complex poles, which ring. False: real ones, first-order averages; the normal form's."""
    reset: bool = False
    """Clear the filter's state where a bin starts, as the paper's transform of single bins does."""
    hypernetwork: Hypernetwork = "long_conv"
    """How bins are looked at to choose their poles. none: fixed learned poles (Focus-H).
    recurrent: in constant memory. long_conv: the paper's. shared_*: computed once, from the
    model's first layer, for all layers."""
    windows: int = 1
    """Pooled values per bin and channel; divides `bin_length`."""
    hidden: int = 16
    """Hidden width of the network that maps them to poles."""
    taps: int = 1024
    """Kernel length of a long-convolution hypernetwork."""
    sliding: bool = False
    """Each token sees its last `chunk_length` tokens instead of its chunk."""
    shared_query_key: bool = False
    """One projection for queries and keys, scaled apart (MEGA's), in place of one each (Eq. 9)."""
    max_decay: float = 0.9999
    """Largest pole radius: a memory of 1 / (1 - max_decay) steps."""
    causal: bool = True
    """Never look ahead. False: filters run both ways and attention sees its whole chunk."""
    leak: bool = False
    """Allow the circular realisation in a causal model, to study what it leaks."""

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("dim", "chunk_length", "bin_length", "heads", "filters", "windows", "hidden"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least("taps", self.taps, 1)
        if self.value_dim is not None:
            require_at_least("value_dim", self.value_dim, 1)
        if self.hypernetwork != "none":
            require_multiple("bin_length", self.bin_length, "windows", self.windows)
        require_multiple("dim", self.dim, "heads", self.heads)
        require_multiple("value_dim", self.value_dim or self.dim, "heads", self.heads)
        require_filters(self.realisation, turning=self.turning, max_decay=self.max_decay)
        if self.sliding and not self.causal:
            raise ValueError("sliding must be False without causal; got True.")
        if self.realisation == "circular" and self.causal and not self.leak:
            raise ValueError(_LEAK)

    @classmethod
    def paper(
        cls, *, dim: int, bin_length: int, chunk_length: int, causal: bool = False, **options: Any
    ) -> PublishedFocusConfig:
        """The publication as literally as it can be followed: circular, conjugate, theta in
        (0, 1).

        Raises:
            ValueError: `causal=True` without `leak=True`, for the formula sees the future.
        """
        return cls(
            dim=dim, bin_length=bin_length, chunk_length=chunk_length, causal=causal,
            **{"realisation": "circular", **options},
        )  # fmt: skip

    @property
    def values(self) -> int:
        """Channels of values and of the reset gate."""
        return self.value_dim or self.dim

    def build(self) -> PublishedFocus:
        return PublishedFocus(self)

    def build_shared(self) -> BinFeatures | None:
        """The part of the hypernetwork that a model computes once for all its layers."""
        return self._bin_features() if self.hypernetwork.startswith("shared_") else None

    def build_own(self) -> BinFeatures | None:
        """The hypernetwork's view of the sequence, where every layer has its own."""
        own = self.hypernetwork != "none" and not self.hypernetwork.startswith("shared_")
        return self._bin_features() if own else None

    def _bin_features(self) -> BinFeatures:
        return BinFeatures.named(
            self.hypernetwork.removeprefix("shared_"), self.dim, self.bin_length, self.windows,
            taps=self.taps, causal=self.causal,
        )  # fmt: skip


class PublishedFocusState(NamedTuple):
    """What a segment hands to the next one. Batch first; its size is constant in length."""

    features: BinFeaturesState | None
    filter: Float[Tensor, "batch dim filters 2"]
    attention: WindowState
    """Its `position`, the steps seen by each row, fixes their place in bin and chunk."""


class PublishedFocus(nn.Module):
    """Focus with the equations of its publication, `(batch, length, dim)` to the same shape.

    Source: Lutati, Zimerman, Wolf 2023 (arXiv 2305.14952); `docs/errata.md` says what it leaves
    open or gets wrong, and how this reads it.
    """

    own_norm = True

    def __init__(self, config: PublishedFocusConfig) -> None:
        super().__init__()
        self.config = config
        self.causal = config.causal
        self.shards: Shards | None = None
        dim, values = config.dim, config.values
        self.norm = RmsNorm(dim)
        self.features = config.build_own()
        self.filters = AdaptiveFilters(
            dim,
            config.filters,
            config.bin_length,
            windows=None if config.hypernetwork == "none" else config.windows,
            hidden=config.hidden,
            realisation=config.realisation,
            turning=config.turning,
            reset=config.reset,
            max_decay=config.max_decay,
            causal=config.causal,
        )
        if config.shared_query_key:
            self.to_query_key = nn.Linear(dim, dim)
            self.query_scale = nn.Parameter(torch.empty(2, dim))
            self.query_shift = nn.Parameter(torch.empty(dim))  # of keys it would change nothing
        else:
            self.to_query = nn.Linear(dim, dim)
        self.position_bias = PositionBias(config.heads, config.chunk_length, causal=config.causal)

        # W_gamma, W_h, W_V, W_K, W_phi side by side: one product reads the filtered sequence.
        self.parts = [values, dim, values]
        self.parts += [dim] if config.shared_query_key else [dim, dim]
        self.from_filtered = nn.Linear(dim, sum(self.parts))
        self.from_attention = nn.Linear(values, dim, bias=False)
        self.reset_parameters()

    @property
    def realisation(self) -> Realisation:
        """What `coefficients` are."""
        return self.config.realisation

    @property
    def uses_fft(self) -> bool:
        """Rounding of an FFT reaches earlier outputs, and so does a NaN."""
        return "long_conv" in self.config.hypernetwork or self.config.realisation == "circular"

    @property
    def limits(self) -> dict[str, str]:
        """What this configuration cannot do, and why."""
        if self.config.realisation != "circular":
            return {}
        return dict.fromkeys(("causality", "nan", "segments", "state"), _LEAK)

    @property
    def units(self) -> dict[str, int]:
        """Lengths by option name; a piece of a split sequence is a multiple of each."""
        in_bins = {"bin_length": self.config.bin_length} if self.filters.in_bins else {}
        return in_bins | {"chunk_length": self.config.chunk_length}

    def reset_parameters(self) -> None:
        if self.config.shared_query_key:
            nn.init.ones_(self.query_scale)
            nn.init.zeros_(self.query_shift)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: PublishedFocusState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
        *,
        shared: Features | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], PublishedFocusState | None]:
        """Mix the sequence.

        Args:
            x: the sequence.
            state: what the segment before returned; None at the start. Needs `causal`.
            lengths: real steps in each row; what lies beyond takes no time and gives 0.
            shared: the model's features, for a `shared_*` hypernetwork.

        Returns:
            y, and the state for the next segment (None where this configuration cannot
            stream: without `causal`, or circular).

        Raises:
            ValueError: a state where none can be used, or `shared` missing or unexpected.
        """
        self._require_usable(x, state, shared)
        given = hide_padding(x, lengths)
        x = self.norm(given)
        if self.shards is not None:
            self.shards.require_whole(x, state, lengths, **self.units)
        position = steps_before(x, state.attention.position if state else None, self.shards)
        features_state = None
        if self.features is not None:
            shared, features_state = self.features(x, state.features if state else None, lengths)
        offset = position % self.config.bin_length
        filtered, filter_state = self.filters(
            x, shared, offset, lengths, state.filter if state else None
        )
        parts = self.from_filtered(filtered).split(self.parts, -1)
        reset, candidate, value, *key, update = parts
        q, k = self._query_key(x, filtered, *key)
        attended, attention_state = self._attend(
            q, k, value, lengths, state.attention if state else None
        )
        gated = functional.silu(reset) * attended
        candidate = functional.silu(candidate + self.from_attention(gated))
        y = hide_padding(update.sigmoid() * (candidate - given), lengths)
        if filter_state is None or attention_state is None:
            return y, None
        return y, PublishedFocusState(features_state, filter_state, attention_state)

    def coefficients(
        self,
        x: Float[Tensor, "batch length dim"],
        lengths: Int[Tensor, " batch"] | None = None,
        *,
        shared: Features | None = None,
    ) -> Float[Tensor, "batch bins dim filters 2"]:
        """The filters chosen for every bin of `x`: (decay, angle) in radians a sample for the
        normal form, (a1, a2) otherwise.

        Raises:
            ValueError: `shared` is missing, or there and not asked for.
        """
        self._require_features(shared)
        x = self.norm(x)
        if self.features is not None:
            shared, _ = self.features(x, None, lengths)
        return self.filters.coefficients(x, shared)

    def _query_key(
        self, x: Tensor, filtered: Tensor, key: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Eq. 9: queries from the raw sequence, keys from the filtered one."""
        if key is not None:
            return self.to_query(x), key
        q, k = self.to_query_key(x), self.to_query_key(filtered)
        # Under autocast the products are narrower than the parameters.
        of_queries, of_keys = self.query_scale.to(q.dtype)
        return q * of_queries + self.query_shift.to(q.dtype), k * of_keys

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Tensor | None,
        state: WindowState | None,
    ) -> tuple[Tensor, WindowState | None]:
        """Eq. 10: inside chunks, or over the last tokens."""
        config = self.config
        q, k, v = (part.unflatten(-1, (config.heads, -1)) for part in (q, k, v))
        y, state = local_attention(
            q, k, v, config.chunk_length, bias=self.position_bias(), causal=config.causal,
            sliding=config.sliding, lengths=lengths, state=state, shards=self.shards,
        )  # fmt: skip
        return y.flatten(2), state

    def _require_usable(
        self, x: Tensor, state: PublishedFocusState | None, shared: Features | None
    ) -> None:
        require_input(x, self.config.dim, state, causal=self.causal)
        if state is not None and self.config.realisation == "circular":
            raise ValueError(
                "state must be None for realisation='circular': a bin is filtered as a whole."
            )
        if state is not None and state.filter.shape[2] != self.config.filters:
            raise ValueError(
                f"state must come from a mixer with {self.config.filters} filters; got one of "
                f"{state.filter.shape[2]}."
            )
        self._require_features(shared)

    def _require_features(self, shared: Features | None) -> None:
        expects = self.config.hypernetwork.startswith("shared_")
        if expects != (shared is not None):
            raise ValueError(
                f"shared must be {'the features of the model' if expects else 'None'} for "
                f"hypernetwork={self.config.hypernetwork!r}; got "
                f"{'None' if shared is None else 'features'}. `Backbone` hands them over."
            )
