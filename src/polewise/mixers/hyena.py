r"""Hyena: two gates around a long convolution whose kernel a small network writes.

u, w, v  = ShortConv(W x) + b'
z        = w * v
y        = W_o (u * (h * z + b z))              * of h is convolution, the others are products
h[t]     = MLP(t, cos, sin) exp(-t |delta|)     t in units of the longest reach
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polewise.layers import ShortConv, is_plain, require_input
from polewise.ops import KernelSpectrum, long_conv
from polewise.ops.cached import Cached
from polewise.ops.padding import hide_padding
from polewise.ops.precision import accumulator_dtype, without_autocast
from polewise.options import require_at_least, require_types


@dataclass(frozen=True, kw_only=True)
class HyenaConfig:
    """Two gates around a long convolution whose kernel a small network writes."""

    causal: ClassVar[bool] = True

    dim: int
    """Channels."""
    taps: int = 1024
    """Length of the kernel: what lies further back is not seen."""
    hidden: int = 64
    """Hidden width of the network that writes the kernel."""
    bands: int = 2
    """Cosines and sines that the network reads beside the time."""
    sharpness: float = 10.0
    """Where the network's sines start: their trained frequency."""

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("dim", "taps", "hidden", "bands"):
            require_at_least(name, getattr(self, name), 1)
        if not 0 < self.sharpness < math.inf:
            raise ValueError(f"sharpness must be a positive number; got {self.sharpness}.")

    def build(self) -> Hyena:
        return Hyena(self)


class HyenaState(NamedTuple):
    """What a segment hands to the next one: the last inputs, in proportion to `taps`."""

    neighbours: Float[Tensor, "batch history channels"]
    history: Float[Tensor, "batch history dim"]


class ImplicitKernel(nn.Module):
    """A kernel (taps, dim) as a function of time: sines of sines, under a fading window.

    Times are in units of `taps`, not of the sequence at hand: a stream has no length.
    """

    filter_parameters: ClassVar[tuple[str, ...]] = ("layers", "sharpness")

    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden
        sizes = [1 + 2 * config.bands, hidden, hidden, hidden, config.dim]
        self.layers = nn.ModuleList(
            nn.Linear(into, out, bias=number < 3)
            for number, (into, out) in enumerate(pairwise(sizes))
        )
        self.sharpness = nn.Parameter(torch.empty(hidden))
        self.cached = Cached()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.sharpness, self.config.sharpness)
        # The published start of all matrices, these included: kernels begin small and smooth.
        layer: Any
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self) -> Float[Tensor, "taps dim"]:
        if all(is_plain(layer, nn.Linear) for layer in self.layers):
            return self.cached(self._write, list(self.parameters()))
        return self._write()  # adapters and hooks change what no parameter shows

    def _write(self) -> Tensor:
        config, device = self.config, self.sharpness.device
        # float32 or wider whatever the model's precision: bfloat16 counts to 256.
        dtype = accumulator_dtype(self.sharpness)
        with without_autocast(device):
            taps = torch.arange(config.taps, device=device, dtype=dtype)[:, None]
            time = taps / max(config.taps - 1, 1)
            bands = torch.linspace(1e-4, config.bands - 1, config.bands, device=device, dtype=dtype)
            phase = bands * (2 * math.pi / config.taps) * taps
            h = torch.cat([time, phase.cos(), -phase.sin()], -1)
            *inner, last = self.layers
            for layer in inner:
                h = (self.sharpness * _linear(layer, h)).sin()
            # The first channel fades to 1 % at 1.5 of the kernel's length, the last at 0.3.
            fading = torch.linspace(
                math.log(100) / 1.5, math.log(100) / 0.3, config.dim, device=device, dtype=dtype
            )
            return _linear(last, h) * (-time * fading).exp()


def _linear(layer: Any, x: Tensor) -> Tensor:
    """The layer, in the precision of `x`; one that is not plain, in its own."""
    traced = type(layer) is nn.Linear and torch.compiler.is_exporting()
    if not traced and not is_plain(layer, nn.Linear):
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.is_floating_point():
            return layer(x.to(weight.dtype)).to(x.dtype)
        return layer(x)
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return functional.linear(x, layer.weight.to(x.dtype), bias)


class Hyena(nn.Module):
    """Hyena of order 2, `(batch, length, dim)` to the same shape.

    Source: Poli et al. 2023 (arXiv 2302.10866), the order 2 of its published code, which has one
    long convolution, with the published start of its language models, but for output maps that they
    rescale by their depth; settings of its recall experiments.
    """

    causal = True
    uses_fft = True
    filter_parameters: ClassVar[tuple[str, ...]] = ("skip",)

    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        self.config = config
        self.to_gates_value = nn.Linear(config.dim, 3 * config.dim)
        self.short_conv = ShortConv(3 * config.dim, bias=True)
        self.kernel = ImplicitKernel(config)
        self.spectrum = KernelSpectrum()
        self.skip = nn.Parameter(torch.empty(config.dim))
        self.to_output = nn.Linear(config.dim, config.dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.skip)
        for linear in (self.to_gates_value, self.to_output):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        # Gates begin near constants: the biases outweigh what the convolution returns.
        self.short_conv.reset_uniform()

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: HyenaState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], HyenaState]:
        """Mix the sequence, as the contract in `polewise.mixers` says."""
        require_input(x, self.config.dim, state, causal=self.causal)
        x = hide_padding(x, lengths)
        mixed, neighbours = self.short_conv(
            self.to_gates_value(x), state.neighbours if state else None, lengths
        )
        outer, inner, value = mixed.chunk(3, -1)
        z = hide_padding(inner * value, lengths)
        y, history = long_conv(
            z, self.kernel(), lengths=lengths,
            state=state.history.to(z.dtype) if state else None, spectrum=self.spectrum,
        )  # fmt: skip
        y = self.to_output(outer * (y + self.skip * z))
        return hide_padding(y, lengths), HyenaState(neighbours, history)
