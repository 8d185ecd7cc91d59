r"""Focus: learned filters of channels, and in one layer of six a memory that every step steers.

For a sequence x, with heads of values that look up one key, or each its own, and every part that
an option may ask for:

    q       = W_q x,  k = conv(W_k x),  v = SiLU(conv(W_v x))      queries skip the convolution
    e       = MaxPool(Embed(v)), bin by bin, shifted by one bin     Eq. 1-2    BinFeatures
    poles   = squash(base + MLP(e))                                 Eq. 3      AdaptiveFilters
    vf      = sum over F filters of filter(v, poles of the bin)     Eq. 4-8
    S[t]    = rho[t] e^{j phi} S[t-1] + step[t] k[t] v[t]^T         ours       associative_filter
    near    = Attention(q, k, v) inside chunks                      Eq. 9-10   chunked_attention
    y       = Re(q^H S) + a near + vf + d v
    output  = W_o RMSNorm(y SiLU(W_g x))                            Eq. 11, 13, the gate from x

a and d are learned, one number a head.

So poles are placed twice: for every channel and bin, and for the products of keys and values, where
two channels of a key are one complex number. Its radius rho = exp(-step rate) is chosen by every
step for each head: a long step forgets and takes in much. Its angle phi is learned, one a pair, so
that a key says when as well as what. The network that chooses poles for every bin, and attention,
are the publication's two parts, and not of the default. Filters and attention begin small and grow
where they help.
The layer needs no feed-forward beside it: v, the gate and W_o are one. It begins as one that
recalls: W_k = W_q, keys hold what came just before, and a quarter of the heads has W_o = W_v^T, no
skip and phi = 0, so that what followed a token shows where it comes again, however far that is.

In a model one layer in six filters products. The others filter channels and nothing else,
y = vf + d v, with learned poles: they cost little more than their matrices. A quarter of their
heads begins without the skip, too.

The publication to the letter is `PublishedFocus`; `docs/research.md` says what led from it to this.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polewise.layers import (
    AdaptiveFilters,
    BinFeatures,
    BinFeaturesState,
    PositionBias,
    Realisation,
    RmsNorm,
    ShortConv,
    StepSize,
    gated_output,
    local_attention,
    require_filters,
    require_input,
    steps_before,
)
from polewise.ops import WindowState, associative_filter, turn
from polewise.ops.padding import hide_padding, real_steps
from polewise.ops.precision import accumulator_dtype, angle_dtype
from polewise.ops.shards import Shards, associative_state_before
from polewise.options import require_at_least, require_multiple, require_types

Hypernetwork = Literal["none", "recurrent", "long_conv"]

START_BESIDE_MEMORY = 0.1
"""Weight of filters and of attention at first where there is a memory; 1 without one."""


@dataclass(frozen=True, kw_only=True)
class FocusConfig:
    """Learned filters of channels, and in one layer of six a memory. Lengths are in steps."""

    contains_feed_forward: ClassVar[bool] = True

    dim: int
    """Channels."""
    heads: int | None = None
    """Heads of values, each with poles of its own; None is one for every 32 channels."""
    value_dim: int = 64
    """Channels of a head's values."""
    key_dim: int = 64
    """Channels of a key; a memory tells about as many keys apart. An odd last one does not turn."""
    shared_keys: bool = True
    """All heads look up the same key. False: each its own."""
    memory: bool = True
    """Filter the products of keys and values. Without it nothing is recalled from afar; without
    `filters` and `chunk_length` too, a layer sees no further than its short convolution."""
    memory_every: int = 6
    """One layer in so many, the middle one, has a memory; the others filter channels, by one filter
    each or `filters`, and attend where `chunk_length` says so. 1 gives every layer a memory."""
    memory_turning: bool = True
    """Complex poles for the memory: key channels turn in pairs, except for the heads that begin by
    copying, a quarter, at least one. False: real poles for all."""
    chunk_length: int = 0
    """Tokens that attention sees at once; 0 leaves it out."""
    sliding: bool = False
    """Each token sees its last `chunk_length` tokens instead of its chunk."""
    filters: int = 0
    """Filters per channel of the values, summed; 0 leaves them out beside a memory."""
    bin_length: int = 32
    """Steps that share their filters."""
    realisation: Literal["normal", "direct", "square"] = "normal"
    """normal: a contraction for any poles. direct: the paper's coefficients, over the whole
    stability triangle. square: the same in the paper's region, (0, 1)^2, and from its start."""
    turning: bool = True
    """Complex poles, which ring. False: real ones, first-order averages; the normal form's."""
    reset: bool = False
    """Clear the filter's state where a bin starts, as the paper's transform of single bins does."""
    hypernetwork: Hypernetwork = "none"
    """How bins are looked at to choose the poles of filters. none: they are learned once for all
    (Focus-H). recurrent: in constant memory. long_conv: the paper's."""
    windows: int = 4
    """Pooled values per bin and channel; divides `bin_length`."""
    hidden: int = 16
    """Hidden width of the network that maps them to poles."""
    taps: int = 1024
    """Kernel length of a long-convolution hypernetwork."""
    conv_width: int = 4
    """Taps of the short convolution of keys and values."""
    max_decay: float = 0.9999
    """Largest pole radius of the filters: a memory of 1 / (1 - max_decay) steps."""
    causal: bool = True
    """Never look ahead. False: filters run both ways and attention sees its whole chunk."""

    def __post_init__(self) -> None:
        require_types(self)
        for name in (
            "dim", "value_dim", "key_dim", "conv_width", "bin_length", "windows", "hidden", "taps",
            "memory_every",
        ):  # fmt: skip
            require_at_least(name, getattr(self, name), 1)
        require_at_least("heads", self.num_heads, 1)
        for name in ("chunk_length", "filters"):
            require_at_least(name, getattr(self, name), 0)
        if self.hypernetwork != "none":
            require_multiple("bin_length", self.bin_length, "windows", self.windows)
        require_filters(self.realisation, turning=self.turning, max_decay=self.max_decay)
        if self.sliding and not self.causal:
            raise ValueError("sliding must be False without causal; got True.")

    @property
    def num_heads(self) -> int:
        """Heads of values, chosen or by default."""
        return max(self.dim // 32, 1) if self.heads is None else self.heads

    @property
    def values(self) -> int:
        """Channels of all values."""
        return self.num_heads * self.value_dim

    def in_layer(self, layer: int, num_layers: int) -> FocusConfig:
        """Return the options of one layer of a model, the first being layer 0."""
        memories = -(-num_layers // self.memory_every)
        middles = {((2 * n + 1) * num_layers - 1) // (2 * memories) for n in range(memories)}
        if not self.memory or layer in middles:
            return self
        return replace(self, memory=False, filters=max(self.filters, 1))

    def build(self) -> Focus:
        return Focus(self)


class FocusState(NamedTuple):
    """What a segment hands to the next one. Batch first; its size is constant in length."""

    position: Int[Tensor, " batch"]
    """Steps seen so far by each row, which fixes its place in bin and chunk."""
    key_neighbours: Float[Tensor, "batch history keys"] | None
    """The last keys before their short convolution."""
    value_neighbours: Float[Tensor, "batch history values"]
    """The same of values."""
    features: BinFeaturesState | None
    filter: Float[Tensor, "batch values filters 2"] | None
    attention: WindowState | None
    products: Float[Tensor, "batch heads 1 key_dim value_dim"] | None
    """Their filtered sum; where keys turn, seen from a frame that turns with them."""


class Focus(nn.Module):
    """The adaptive-filter mixer, `(batch, length, dim)` to the same shape.

    Source: Lutati, Zimerman, Wolf 2023 (arXiv 2305.14952), made causal, stable and streaming; step
    sizes, gate and norm are those of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060); queries that skip
    the convolution of the keys are ours.
    """

    filter_parameters: ClassVar[tuple[str, ...]] = (
        "log_rate",
        "log_frequency",
        "skip",
        "attention_gain",
    )

    def __init__(self, config: FocusConfig) -> None:
        super().__init__()
        self.config = config
        self.causal = config.causal
        self.shards: Shards | None = None
        heads, values = config.num_heads, config.values
        self.key_heads = 1 if config.shared_keys else heads
        # A quarter of the heads, at least one, of middle memory, begins by copying.
        self.copying = range(heads // 2, heads // 2 + max(heads // 4, 1))
        looks_up = config.memory or config.chunk_length > 0
        keys = self.key_heads * config.key_dim if looks_up else 0
        # Values and gate have products of their own: the gradients of one product's parts are
        # copied into one tensor, as large as all of them.
        self.lookup_parts = [keys, keys, heads if config.memory else 0]
        self.to_lookup = (
            nn.Linear(config.dim, sum(self.lookup_parts), bias=False) if looks_up else None
        )
        self.to_values = nn.Linear(config.dim, values, bias=False)
        self.to_gate = nn.Linear(config.dim, values, bias=False)
        self.key_conv = ShortConv(keys, config.conv_width, bias=True) if looks_up else None
        self.value_conv = ShortConv(values, config.conv_width, bias=True, silu=True)
        self.features: BinFeatures | None = None
        self.filters: AdaptiveFilters | None = None
        self.log_rate: nn.Parameter | None = None
        self.log_frequency: nn.Parameter | None = None
        self.attention_gain: nn.Parameter | None = None
        if config.filters:
            if config.hypernetwork != "none":
                self.features = BinFeatures.named(
                    config.hypernetwork, values, config.bin_length, config.windows,
                    taps=config.taps, causal=config.causal,
                )  # fmt: skip
            self.filters = AdaptiveFilters(
                values,
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
        if config.memory:
            self.step = StepSize(heads)
            self.log_rate = nn.Parameter(torch.empty(heads))
            if config.memory_turning and config.key_dim > 1 and heads > len(self.copying):
                self.log_frequency = nn.Parameter(torch.empty(config.key_dim // 2))
        # `_turn` puts the keys that do not turn after those that do.
        unturned = 0 if self.log_frequency is None else self.key_heads
        self.key_head = [
            head % self.key_heads + (unturned if head in self.copying else 0)
            for head in range(heads)
        ]
        if config.chunk_length:
            self.position_bias = PositionBias(
                self.key_heads, config.chunk_length, causal=config.causal
            )
            self.attention_gain = nn.Parameter(torch.empty(heads))
        self.skip = nn.Parameter(torch.empty(heads))
        self.norm = RmsNorm(values)
        self.to_output = nn.Linear(values, config.dim, bias=False)
        self.reset_parameters()

    @property
    def uses_fft(self) -> bool:
        """Rounding of an FFT reaches earlier outputs, and so does a NaN."""
        return self.features is not None and self.config.hypernetwork == "long_conv"

    @property
    def units(self) -> dict[str, int]:
        """Lengths by option name; a piece of a split sequence is a multiple of each."""
        units = {}
        if self.filters is not None and self.filters.in_bins:
            units["bin_length"] = self.config.bin_length
        if self.config.chunk_length:
            units["chunk_length"] = self.config.chunk_length
        return units

    def reset_parameters(self) -> None:
        """Numbers of our own; matrices and short convolutions have started by themselves."""
        with torch.no_grad():
            self.skip.fill_(1)
            # Some heads hand on what is filtered and nothing of the present: they copy, or, without
            # a memory, show what is learned late beside the values themselves.
            filtered = self.config.filters or self.config.chunk_length
            if self.config.memory or (filtered and len(self.skip) > 1):
                self.skip[self.copying] = 0
        if self.log_rate is not None:
            # Memories around 32 steps, one a head: from 2 to 512 for four heads and more, from 13
            # to 81 for two. A memory is 1 / (step rate): what is kept long is taken in by short
            # steps, or the sum of many products would drown the rest. Copies take in three times
            # as much, or the skip of other heads would drown what they find.
            heads = len(self.log_rate)
            device = self.log_rate.device
            order = torch.arange(heads, dtype=torch.float32, device=device) - (heads - 1) / 2
            memory = 32 * 256 ** (order / max(heads - 1, 3))
            rate = torch.full_like(memory, 4)
            rate[self.copying] /= 3
            self.step.start_at(1 / (rate * memory))
            with torch.no_grad():
                self.log_rate.copy_(rate.log())
        if self.log_frequency is not None:
            # Periods of 4 to 1024 steps.
            pair = torch.arange(
                len(self.log_frequency), dtype=torch.float32, device=self.log_frequency.device
            )
            period = 4 * 256 ** (pair / max(len(pair) - 1, 1))
            with torch.no_grad():
                self.log_frequency.copy_((2 * torch.pi / period).log())
        if self.to_lookup is not None and self.key_conv is not None:
            self._start_with_recall(self.to_lookup, self.key_conv)
        share = START_BESIDE_MEMORY if self.config.memory else 1.0
        if self.filters is not None:
            with torch.no_grad():
                self.filters.mix[..., 0] = share * self.config.filters**-0.5
        if self.attention_gain is not None:
            nn.init.constant_(self.attention_gain, share)

    @torch.no_grad()
    def _start_with_recall(self, to_lookup: nn.Linear, key_conv: ShortConv) -> None:
        """Begin as a layer that finds what followed when the same token was there before.

        Queries and keys start alike, and a key holds what came up to its convolution's width
        before, so a token finds the places just after its like. Some heads hand on what stands
        there and nothing of the present: their output map starts as that of values, transposed.
        From a start at random both are found late or never: each is worth learning only once the
        other is there. Keys of these heads do not turn, or a distance would look like another key.
        Both maps keep angles, so that tokens look no more alike than they are.
        """
        heads, tap = self.config.num_heads, self.config.conv_width**-0.5
        nn.init.constant_(key_conv.kernel, tap)
        nn.init.constant_(self.value_conv.kernel[0], tap)
        q, k, _ = to_lookup.weight.split(self.lookup_parts)
        _keep_angles(q)
        k.copy_(q)
        copying = slice(self.copying.start, self.copying.stop)
        v = self.to_values.weight.unflatten(0, (heads, -1))[copying]
        _keep_angles(v.flatten(0, 1))
        output = self.to_output.weight.unflatten(1, (heads, -1))
        output[:, copying] = (self.config.dim / self.config.values) ** 0.5 * v.permute(2, 0, 1)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: FocusState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], FocusState | None]:
        """Mix the sequence.

        Args:
            x: the sequence.
            state: what the segment before returned; None at the start. Needs `causal`.
            lengths: real steps in each row; what lies beyond takes no time and gives 0.

        Returns:
            y, and the state for the next segment (None without `causal`).

        Raises:
            ValueError: a wrong width, or a state where none can be used.
        """
        self._require_usable(x, state)
        if self.shards is not None:
            self.shards.require_whole(x, state, lengths, **self.units)
        position = steps_before(x, state.position if state else None, self.shards)
        x = hide_padding(x, lengths)
        q = k = step_input = x[..., :0]  # where nothing is looked up
        key_neighbours = None
        if self.to_lookup is not None and self.key_conv is not None:
            q, k, step_input = self.to_lookup(x).split(self.lookup_parts, -1)
            k, key_neighbours = self.key_conv(k, state.key_neighbours if state else None, lengths)
            q, k = (each.unflatten(-1, (self.key_heads, -1)) for each in (q, k))
            q, k = self._turn(q, k, position, state)
        v, value_neighbours = self.value_conv(
            self.to_values(x), state.value_neighbours if state else None, lengths
        )
        y, products = self._recall(q, k, self._by_head(v), step_input, lengths, state)
        near, attention = self._attend(q, k, v, lengths, state)
        filtered, features, ends = self._filter(v, position, lengths, state)
        y = reduce(torch.add, (part for part in (y, near, filtered) if part is not None))
        y = gated_output(y.flatten(2), self.to_gate(x), self.norm, self.to_output)
        y = hide_padding(y, lengths)
        if not self.causal:
            return y, None
        position = position + real_steps(x, lengths)
        return y, FocusState(
            position, key_neighbours, value_neighbours, features, ends, attention, products
        )

    @property
    def realisation(self) -> Realisation | None:
        """What `coefficients` are; None without any."""
        if self.filters is not None:
            return self.config.realisation
        return "normal" if self.config.memory else None

    def coefficients(
        self,
        x: Float[Tensor, "batch length dim"],
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch bins channels filters 2"]:
        """The filters chosen for every bin of `x`: (decay, angle) in radians a sample for the
        normal form, (a1, a2) for the direct one. Without filters, the poles of the memory: every
        step is a bin, every head a channel, and every pair of key channels a filter.

        Raises:
            ValueError: there is neither.
        """
        if self.filters is not None:
            v, _ = self.value_conv(self.to_values(x), None, lengths)
            features = None if self.features is None else self.features(v, None, lengths)[0]
            return self.filters.coefficients(v, features)
        if self.to_lookup is None or self.log_rate is None:
            raise ValueError("filters must be at least 1, or memory True, to have coefficients.")
        *_, step_input = self.to_lookup(x).split(self.lookup_parts, -1)
        _, decay = self._step_and_decay(step_input, self.log_rate)
        angle = decay.new_zeros(self.config.num_heads, -(-self.config.key_dim // 2))
        if self.log_frequency is not None:
            angle[:, : len(self.log_frequency)] = _between_0_and_pi(self.log_frequency.exp())
            angle[self.copying] = 0
        return torch.stack(torch.broadcast_tensors(decay[..., None], angle), -1)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.num_heads, -1))

    def _turn(
        self, q: Tensor, k: Tensor, position: Tensor, state: FocusState | None
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys as seen from the frame that turns as the products do, and after these
        heads once more as they stand, for the products that do not turn."""
        if self.log_frequency is None:
            return q, k
        if state is None:
            position = position[:1]  # one clock for all rows
        time = position[:, None] + torch.arange(q.shape[1], device=q.device)
        wide = angle_dtype(q.device)
        angle = -time[..., None].to(wide) * self.log_frequency.to(wide).exp()
        angle = angle.remainder(2 * torch.pi).to(accumulator_dtype(q))
        turned_q, turned_k = turn(torch.cat([q, k], 2), angle[:, :, None]).split(self.key_heads, 2)
        return torch.cat([turned_q, q], 2), torch.cat([turned_k, k], 2)

    def _recall(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        step_input: Tensor,
        lengths: Tensor | None,
        state: FocusState | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """What the queries read from the filtered products of keys and values, and the skip; that
        is left to filters where there is nothing to read."""
        if self.log_rate is None:
            return (None if self.filters else self.skip[:, None].to(v.dtype) * v), None
        step, decay = self._step_and_decay(step_input, self.log_rate)
        before = state.products if state else None
        if self.shards is not None:
            before = associative_state_before(k, v, decay, step, self.key_head, self.shards)
        y, products = associative_filter(
            q, k, v, decay, step=step, skip=self.skip, key_head=self.key_head, lengths=lengths,
            state=before,
        )  # fmt: skip
        if not self.causal:
            q, k, v, decay, step = (
                hide_padding(part, lengths).flip(1) for part in (q, k, v, decay, step)
            )
            reverse, _ = associative_filter(q, k, v, decay, step=step, key_head=self.key_head)
            y = y + reverse.flip(1)
        return y, products

    def _step_and_decay(self, step_input: Tensor, log_rate: Tensor) -> tuple[Tensor, Tensor]:
        """Step, and decay in (0, 1), of every step and head, in float32 or wider."""
        step = self.step(step_input)
        return step, (-step * log_rate.to(step.dtype).exp()).exp()

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Tensor | None,
        state: FocusState | None,
    ) -> tuple[Tensor | None, WindowState | None]:
        """Eq. 10: inside chunks, or over the last tokens."""
        config = self.config
        if self.attention_gain is None:
            return None, None
        q, k = q[:, :, : self.key_heads], k[:, :, : self.key_heads]
        v = v.unflatten(-1, (self.key_heads, -1))
        y, after = local_attention(
            q, k, v, config.chunk_length, bias=self.position_bias(), causal=config.causal,
            sliding=config.sliding, lengths=lengths, state=state.attention if state else None,
            shards=self.shards,
        )  # fmt: skip
        return self.attention_gain[:, None].to(y.dtype) * self._by_head(y.flatten(2)), after

    def _filter(
        self, v: Tensor, position: Tensor, lengths: Tensor | None, state: FocusState | None
    ) -> tuple[Tensor | None, BinFeaturesState | None, Tensor | None]:
        """Eq. 1-8: every channel of the values through filters of its own."""
        if self.filters is None:
            return None, None, None
        features, after = None, None
        if self.features is not None:
            features, after = self.features(v, state.features if state else None, lengths)
        offset = position % self.config.bin_length
        before = state.filter if state else None
        skip = None if self.config.memory else self.skip.repeat_interleave(self.config.value_dim)
        y, ends = self.filters(v, features, offset, lengths, before, skip)
        return self._by_head(y), after, ends

    def _require_usable(self, x: Tensor, state: FocusState | None) -> None:
        require_input(x, self.config.dim, state, causal=self.causal)
        found = 0 if state is None or state.filter is None else state.filter.shape[2]
        if state is not None and found != self.config.filters:
            raise ValueError(
                f"state must come from a mixer with {self.config.filters} filters; got one of "
                f"{found}."
            )


def _keep_angles(weight: Tensor) -> None:
    """Make the rows, or where there are more the columns, orthogonal and as large as before."""
    wide = torch.empty_like(weight, dtype=accumulator_dtype(weight))
    nn.init.orthogonal_(wide)
    weight.copy_(wide * (weight.to(wide.dtype).norm() / wide.norm()))


def _between_0_and_pi(frequency: Tensor) -> Tensor:
    """The angle of the pole, of a conjugate pair, in the upper half plane."""
    return torch.polar(torch.ones_like(frequency), frequency).angle().abs()
