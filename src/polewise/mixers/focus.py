"""Focus: a network places the poles, the poles filter the sequence, attention looks nearby.

For a sequence x, in the order of the paper's equations:

    x       = x + conv(x), of a few steps                              ours
    e       = MaxPool(Embed(x)), bin by bin, shifted by one bin        Eq. 1-2   BinFeatures
    poles   = squash(base + MLP(e))                                    Eq. 3     coefficients
    xf      = sum over F filters of filter(x, poles of the bin)        Eq. 4-8   filter
            + d x                                                      ours
    y       = Attention(Q x, K xf, V xf) inside chunks                 Eq. 9-10  attend
            (Q and K are one matrix, scaled apart, as in MEGA)         ours
            + associative memory of x                                  ours
    gamma   = SiLU(W_gamma xf)                                         Eq. 11
    output  = W_h xf + U_h (gamma * y)                                 Eq. 13

As printed, Eq. 13 ends in a SiLU, and Eq. 12 and 14 mix it with the input by a gate of its own
(`published_gates`): phi = sigmoid(W_phi xf), output = phi * z + (1 - phi) * x. A block adds its own
input to what a mixer returns, so the sum would hold x twice, once by halves.

The memory looks tokens up as they came, before the convolution; its gate and its poles read x after
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polewise.filters import coefficients_to_unconstrained, unconstrained_to_coefficients
from polewise.layers import (
    AssociativeMemory,
    AssociativeMemoryState,
    BinFeatures,
    BinFeaturesState,
    Features,
    LongConvEmbedder,
    PositionBias,
    RecurrentEmbedder,
    ShortConv,
    memory_heads,
)
from polewise.mixers.options import require_at_least, require_choice, require_multiple
from polewise.ops import (
    AttentionState,
    chunked_attention,
    circular_filter,
    direct_form_filter,
    normal_form_filter,
)
from polewise.ops.padding import hide_padding
from polewise.ops.shards import Shards, direct_form_state_before, normal_form_state_before

_LEAK = (
    "realisation='circular' is the published formula: a circular convolution with the conjugate "
    "response inside every bin, so each output depends on later inputs of its bin. Its figures "
    "in an autoregressive model are not honest. Use causal=False, or realisation='normal'; to "
    "study the leak on purpose set leak=True."
)

Hypernetwork = Literal["none", "recurrent", "long_conv", "shared_recurrent", "shared_long_conv"]


@dataclass(frozen=True, kw_only=True)
class FocusConfig:
    """Options of `Focus`. Lengths are in steps of the sequence."""

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
    realisation: Literal["normal", "direct", "circular"] = "normal"
    """normal: a contraction for any poles. direct: the paper's coefficients, over the whole
    stability triangle. circular: the published formula, which sees the future."""
    turning: bool = True
    """Complex poles, which ring. False: real ones, first-order averages; the normal form's."""
    reset: bool = False
    """Clear the filter's state where a bin starts, as the paper's transform of single bins does."""
    hypernetwork: Hypernetwork = "recurrent"
    """How bins are looked at to choose their poles. none: fixed learned poles (Focus-H).
    recurrent: in constant memory. long_conv: the paper's. shared_*: computed once, from the
    model's first layer, for all layers."""
    windows: int = 4
    """Pooled values per bin and channel; divides `bin_length`."""
    hidden: int = 16
    """Hidden width of the network that maps them to poles."""
    taps: int = 1024
    """Kernel length of a long-convolution hypernetwork."""
    sliding: bool = False
    """Each token sees its last `chunk_length` tokens instead of its chunk."""
    shared_query_key: bool = True
    """One projection for queries and keys, scaled apart (MEGA's). False: one each (Eq. 9)."""
    associative_heads: int | None = None
    """Heads of the associative memory; None is one for every 32 channels. 0 leaves it out, and with
    it recall across chunks."""
    associative_key_dim: int = 32
    """Channels of a key."""
    associative_value_dim: int = 64
    """Channels of a value."""
    associative_turning: bool = False
    """Complex poles in the associative memory."""
    skip: bool = True
    """Add the input itself, with a weight for each channel, to what the filters return."""
    published_gates: bool = False
    """Eq. 12 to 14 as printed: a SiLU around the candidate, mixed with the input."""
    conv_width: int = 4
    """Taps of the short convolution that comes first; 0 leaves it out."""
    max_decay: float = 0.9999
    """Largest pole radius: a memory of 1 / (1 - max_decay) steps."""
    causal: bool = True
    """Never look ahead. False: filters run both ways and attention sees its whole chunk."""
    leak: bool = False
    """Allow the circular realisation in a causal model, to study what it leaks."""

    def __post_init__(self) -> None:
        for name in ("dim", "chunk_length", "bin_length", "heads", "filters", "windows", "hidden"):
            require_at_least(name, getattr(self, name), 1)
        for name in ("taps", "associative_key_dim", "associative_value_dim"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least("associative_heads", self.memories, 0)
        require_at_least("conv_width", self.conv_width, 0)
        require_choice("realisation", self.realisation, ("normal", "direct", "circular"))
        require_choice(
            "hypernetwork",
            self.hypernetwork,
            get_args(Hypernetwork),
        )
        require_multiple("bin_length", self.bin_length, "windows", self.windows)
        require_multiple("dim", self.dim, "heads", self.heads)
        require_multiple("value_dim", self.value_dim or self.dim, "heads", self.heads)
        if not self.turning and self.realisation != "normal":
            raise ValueError(
                f"turning must be True for realisation={self.realisation!r}: its numbers are the "
                "coefficients of a whole section; got False."
            )
        if not 0 < self.max_decay < 1:
            raise ValueError(f"max_decay must lie between 0 and 1; got {self.max_decay}.")
        if self.sliding and not self.causal:
            raise ValueError("sliding needs causal=True; got sliding=True with causal=False.")
        if self.realisation == "circular" and self.causal and not self.leak:
            raise ValueError(_LEAK)

    @classmethod
    def paper(
        cls, *, dim: int, bin_length: int, chunk_length: int, causal: bool = False, **options: Any
    ) -> FocusConfig:
        """The publication as literally as it can be followed: circular, conjugate, theta in
        (0, 1), one filter, long-convolution hypernetwork, gates as printed; nothing of ours.

        Raises:
            ValueError: `causal=True` without `leak=True`, for the formula sees the future.
        """
        literal: dict[str, Any] = {
            "realisation": "circular",
            "hypernetwork": "long_conv",
            "associative_heads": 0,
            "conv_width": 0,
            "skip": False,
            "shared_query_key": False,
            "published_gates": True,
            "windows": 1,
        }
        return cls(
            dim=dim, bin_length=bin_length, chunk_length=chunk_length, causal=causal,
            **(literal | options),
        )  # fmt: skip

    @property
    def values(self) -> int:
        return self.value_dim or self.dim

    @property
    def memories(self) -> int:
        return memory_heads(self.dim, self.associative_heads)

    @property
    def numbers(self) -> int:
        """Numbers that a filter is chosen by: decay and angle, or decay alone."""
        return 1 + self.turning

    def build(self) -> Focus:
        return Focus(self)

    def build_shared(self) -> BinFeatures | None:
        """The part of the hypernetwork that a model computes once for all its layers."""
        return self._bin_features() if self.hypernetwork.startswith("shared_") else None

    def build_own(self) -> BinFeatures | None:
        """The hypernetwork's view of the sequence, where every layer has its own."""
        own = self.hypernetwork != "none" and not self.hypernetwork.startswith("shared_")
        return self._bin_features() if own else None

    def _bin_features(self) -> BinFeatures:
        long = self.hypernetwork.endswith("long_conv")
        embedder = LongConvEmbedder(self.dim, self.taps) if long else RecurrentEmbedder(self.dim)
        return BinFeatures(embedder, self.bin_length, self.windows, causal=self.causal)


class FocusState(NamedTuple):
    """What a segment hands to the next one. Batch first; its size is constant in length."""

    position: Int[Tensor, " batch"]
    """Steps seen so far by each row, which fixes its place in bin and chunk."""
    neighbours: Float[Tensor, "batch history dim"] | None
    """The last inputs of the short convolution."""
    features: BinFeaturesState | None
    filter: Float[Tensor, "batch dim filters 2"]
    attention: AttentionState
    memory: AssociativeMemoryState | None


class PoleNetwork(nn.Module):
    """Eq. 3: a channel's pooled values to the numbers that move its poles.

    One small network for all channels and bins; it mixes no channels.
    """

    def __init__(self, windows: int, hidden: int, filters: int, numbers: int) -> None:
        super().__init__()
        self.filters = filters
        self.up = nn.Linear(windows, hidden)
        self.down = nn.Linear(hidden, filters * numbers, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # The published start is for generated weights; these are poles. They start near
        # their base and are moved by what the network sees.
        nn.init.xavier_uniform_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        nn.init.normal_(self.down.weight, std=0.1)

    def forward(
        self, pooled: Float[Tensor, "batch bins windows dim"]
    ) -> Float[Tensor, "batch bins dim filters numbers"]:
        moved = self.down(self.up(pooled.transpose(2, 3)).sigmoid())
        return moved.unflatten(-1, (self.filters, -1))


class Focus(nn.Module):
    """The adaptive-filter mixer, `(batch, length, dim)` to the same shape.

    Source: Lutati, Zimerman, Wolf 2023 (arXiv 2305.14952), made causal, stable and streaming;
    `docs/errata.md` says where and why it differs.
    """

    filter_parameters: ClassVar[tuple[str, ...]] = ("base", "mix", "skip")

    def __init__(self, config: FocusConfig) -> None:
        super().__init__()
        self.config = config
        self.causal = config.causal
        self.shards: Shards | None = None
        dim, values = config.dim, config.values
        self.short_conv = ShortConv(dim, config.conv_width) if config.conv_width else None
        self.features = config.build_own()
        self.to_poles = None
        if config.hypernetwork != "none":
            self.to_poles = PoleNetwork(
                config.windows, config.hidden, config.filters, config.numbers
            )
        self.base = nn.Parameter(torch.empty(dim, config.filters, config.numbers))
        directions = 1 if config.causal else 2
        self.mix = nn.Parameter(torch.empty(directions, config.filters, dim, 2))
        self.skip = nn.Parameter(torch.empty(dim)) if config.skip else None

        if config.shared_query_key:
            self.to_query_key = nn.Linear(dim, dim)
            self.query_scale = nn.Parameter(torch.empty(2, dim))
            self.query_shift = nn.Parameter(torch.empty(dim))  # of keys it would change nothing
        else:
            self.to_query = nn.Linear(dim, dim)
        self.position_bias = PositionBias(config.heads, config.chunk_length, causal=config.causal)
        if config.memories:
            self.memory = AssociativeMemory(
                dim,
                config.memories,
                config.associative_key_dim,
                config.associative_value_dim,
                turning=config.associative_turning,
                causal=config.causal,
            )
            channels = config.memories * config.associative_value_dim
            self.from_memory = nn.Linear(channels, values, bias=False)

        # W_gamma, W_h, W_V, W_K, W_phi side by side: one product reads the filtered sequence.
        self.parts = [values, dim, values]
        self.parts += [] if config.shared_query_key else [dim]
        self.parts += [dim] if config.published_gates else []
        self.from_filtered = nn.Linear(dim, sum(self.parts))
        self.from_attention = nn.Linear(values, dim, bias=False)
        self.reset_parameters()

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

    def reset_parameters(self) -> None:
        """Poles spread over memories from 2 to 512 steps and over all angles, slow ones first."""
        config = self.config
        count = config.dim * config.filters
        order = torch.arange(count, device=self.base.device)
        memory = 2 * 256 ** (order / max(count - 1, 1))
        decay = (1 - 1 / memory).clamp(max=0.999 * config.max_decay)
        # The golden ratio's steps cover (0, 1) evenly for every prefix.
        angle = torch.pi * (order * 0.6180339887 % 1).clamp(0.01, 0.99) ** 2
        if config.realisation == "normal":
            base = torch.stack(
                [torch.logit(decay / config.max_decay), torch.logit(angle / torch.pi)], -1
            )
        elif config.realisation == "direct":
            # The direct form's gain grows without bound for slow poles near angle 0.
            decay = decay.clamp(max=0.9)
            a = torch.stack([-2 * decay * angle.cos(), decay**2], -1)
            base = coefficients_to_unconstrained(a, max_decay=config.max_decay)
        else:
            base = torch.zeros(count, 2, device=order.device)
        with torch.no_grad():
            base = base[:, : config.numbers].reshape(config.dim, config.filters, config.numbers)
            self.base.copy_(base)
            self.mix.zero_()
            self.mix[..., 0] = config.filters**-0.5
            if self.skip is not None:
                self.skip.fill_(1)
            if self.short_conv is not None:
                # Half a short convolution's own start: the present stays the loudest.
                nn.init.normal_(self.short_conv.kernel, std=0.5 * config.conv_width**-0.5)
            if config.shared_query_key:
                nn.init.ones_(self.query_scale)
                nn.init.zeros_(self.query_shift)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: FocusState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
        *,
        shared: Features | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], FocusState | None]:
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
        alone = hide_padding(x, lengths)
        x, neighbours = self._meet_neighbours(alone, state.neighbours if state else None, lengths)
        position = (
            state.position
            if state is not None
            else torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        )
        if self.shards is not None:
            self.shards.require_whole(
                x, state, lengths,
                bin_length=self.config.bin_length, chunk_length=self.config.chunk_length,
            )  # fmt: skip
            position = position + self.shards.rank * x.shape[1]
        features_state = None
        if self.features is not None:
            shared, features_state = self.features(x, state.features if state else None, lengths)
        coefficients = self._coefficients(x, shared, streaming=state is not None)
        offset = position % self.config.bin_length
        filtered, filter_state = self._filter(
            x, coefficients, offset, lengths, state.filter if state else None
        )
        if self.skip is not None:
            filtered = filtered + self.skip.to(x.dtype) * x
        reset, candidate, value, *rest = self.from_filtered(filtered).split(self.parts, -1)
        update = rest.pop() if self.config.published_gates else None
        q, k = self._query_key(x, filtered, *rest)
        attended, attention_state = self._attend(
            q, k, value, position, lengths, state.attention if state else None
        )
        memory_state = None
        if self.config.memories:
            # A query that holds its neighbours too finds its key later in training, or never.
            recalled, memory_state = self.memory(
                alone, state.memory if state else None, lengths, context=x
            )
            attended = attended + self.from_memory(recalled)

        gated = functional.silu(reset) * attended
        y = candidate + self.from_attention(gated)
        if update is not None:
            y = x + update.sigmoid() * (functional.silu(y) - x)
        y = hide_padding(y, lengths)
        if filter_state is None or attention_state is None:
            return y, None
        return y, FocusState(
            attention_state.position,
            neighbours,
            features_state,
            filter_state,
            attention_state,
            memory_state,
        )

    def coefficients(
        self,
        x: Float[Tensor, "batch length dim"],
        *,
        shared: Features | None = None,
    ) -> Float[Tensor, "batch bins dim filters 2"]:
        """The filters chosen for every bin of `x`: (decay, angle) in radians a sample for the
        normal form, (a1, a2) otherwise."""
        x, _ = self._meet_neighbours(x, None, None)
        if self.features is not None:
            shared, _ = self.features(x)
        return self._coefficients(x, shared, streaming=False)

    def _meet_neighbours(
        self, x: Tensor, state: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """A byte alone says little: every step adds up the few before it, channel by channel."""
        if self.short_conv is None:
            return x, None
        mixed, neighbours = self.short_conv(x, state, lengths)
        return hide_padding(x + mixed, lengths), neighbours

    def _coefficients(self, x: Tensor, features: Features | None, *, streaming: bool) -> Tensor:
        """Eq. 3, with the whole stability region in place of a quarter of it. float32 or wider."""
        config = self.config
        dtype = torch.promote_types(x.dtype, torch.float32)
        base = self.base.to(dtype)
        if features is None or self.to_poles is None:
            late = config.bin_length - 1 if streaming else 0
            bins = -(-(late + x.shape[1]) // config.bin_length) if x.shape[1] else 0
            numbers = base.expand(x.shape[0], bins, *base.shape)
        else:
            pooled = features.pooled.to(self.to_poles.up.weight.dtype)
            moved = self.to_poles(pooled).to(dtype)
            known = features.known[..., None, None, None]
            numbers = base + torch.where(known, moved, 0)
        if config.realisation == "normal":
            decay = config.max_decay * numbers[..., 0].sigmoid()
            turn = torch.pi * numbers[..., 1].sigmoid() if config.turning else decay.new_zeros(())
            return torch.stack([decay, turn.expand_as(decay)], -1)
        if config.realisation == "direct":
            return unconstrained_to_coefficients(numbers, max_decay=config.max_decay)
        return numbers.sigmoid()

    def _filter(
        self,
        x: Tensor,
        coefficients: Tensor,
        offset: Tensor,
        lengths: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Eq. 4-8: the sum of F filters, and their states (batch, dim, filters, 2)."""
        if self.causal and self.config.realisation != "circular":
            return self._one_way(x, coefficients, self.mix[0], offset, lengths, state)
        if self.config.realisation == "circular":
            y = torch.zeros_like(x)
            for n in range(self.config.filters):
                filtered = circular_filter(x, coefficients[:, :, :, n], self.config.bin_length)
                y = y + self.mix[0, n, :, 0].to(x.dtype) * filtered
            return y, None
        forwards, _ = self._one_way(x, coefficients, self.mix[0], offset, lengths, None)
        # Backwards the padding comes first; it is silence, so the state stays at rest.
        padding = -x.shape[1] % self.config.bin_length
        reverse = functional.pad(x, (0, 0, 0, padding)).flip(1)
        backwards, _ = self._one_way(
            reverse, coefficients.flip(1), self.mix[1], torch.zeros_like(offset), None, None
        )
        return forwards + backwards.flip(1)[:, : x.shape[1]], None

    def _one_way(
        self,
        x: Tensor,
        coefficients: Tensor,
        mix: Tensor,
        offset: Tensor,
        lengths: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        y, ends = torch.zeros_like(x), []
        for n in range(config.filters):
            before = None if state is None else state[:, :, n]
            if config.realisation == "normal":
                decay, angle = coefficients[:, :, :, n].unbind(-1)
                # White noise in, unit variance out: slow poles would drown the others.
                gain = (1 - decay**2).sqrt()[..., None] * mix[n].to(decay.dtype)
                if self.shards is not None and not config.reset:
                    before = normal_form_state_before(
                        x, decay, angle, config.bin_length, self.shards
                    )
                filtered, end = normal_form_filter(
                    x, decay, angle, config.bin_length, mix=gain, offset=offset,
                    lengths=lengths, state=before, reset=config.reset,
                )  # fmt: skip
            else:
                a = coefficients[:, :, :, n]
                if self.shards is not None and not config.reset:
                    before = direct_form_state_before(x, a, config.bin_length, self.shards)
                filtered, end = direct_form_filter(
                    x, a, config.bin_length, offset=offset,
                    lengths=lengths, state=before, reset=config.reset,
                )  # fmt: skip
                filtered = mix[n, :, 0].to(x.dtype) * filtered
            y = y + filtered
            ends.append(end)
        return y, torch.stack(ends, 2)

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
        position: Tensor,
        lengths: Tensor | None,
        state: AttentionState | None,
    ) -> tuple[Tensor, AttentionState | None]:
        """Eq. 10: inside chunks, or over the last tokens."""
        config = self.config
        q, k, v = (part.unflatten(-1, (config.heads, -1)) for part in (q, k, v))
        if self.shards is not None and config.sliding:
            keys, values = (self.shards.window_before(p, config.chunk_length) for p in (k, v))
            state = AttentionState(keys, values, position)
        y, state = chunked_attention(
            q, k, v, config.chunk_length, bias=self.position_bias().to(q.dtype),
            causal=config.causal, sliding=config.sliding, lengths=lengths, state=state,
        )  # fmt: skip
        if state is not None and self.shards is not None:
            state = state._replace(position=position + q.shape[1])
        return y.flatten(2), state

    def _require_usable(self, x: Tensor, state: FocusState | None, shared: Features | None) -> None:
        if x.ndim != 3 or x.shape[-1] != self.config.dim:
            raise ValueError(
                f"x must have shape (batch, length, {self.config.dim}); got {tuple(x.shape)}."
            )
        if state is not None and not self.causal:
            raise ValueError("state must be None without causal: both directions need it all.")
        if state is not None and self.config.realisation == "circular":
            raise ValueError(
                "state must be None for realisation='circular': a bin is filtered as a whole."
            )
        if state is not None and state.filter.shape[2] != self.config.filters:
            raise ValueError(
                f"state must come from a mixer with {self.config.filters} filters; got one of "
                f"{state.filter.shape[2]}."
            )
        expects = self.config.hypernetwork.startswith("shared_")
        if expects != (shared is not None):
            raise ValueError(
                f"shared must be {'the features of the model' if expects else 'None'} for "
                f"hypernetwork={self.config.hypernetwork!r}; got "
                f"{'None' if shared is None else 'features'}. `Backbone` hands them over."
            )
