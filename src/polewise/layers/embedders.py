"""The global part of the hypernetwork: what a layer knows about everything so far."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polewise.layers.fixed_filters import fixed_filters
from polewise.ops import KernelSpectrum, long_conv
from polewise.ops.shards import Shards


class LongConvEmbedder(nn.Module):
    r"""A regularised long convolution per channel, plus a skip.

    $$ e_t = \sum_{i=0}^{K-1} \operatorname{squash}(h_i)\, x_{t-i} + d\, x_t, \qquad
       \operatorname{squash}(h) = \operatorname{sign}(h) \max(|h| - \lambda, 0) $$

    Its state is the last K - 1 inputs, so streaming costs memory in proportion to `taps`.

    Source: Fu et al. 2023 (arXiv 2302.06646); Lutati et al. 2023, Eq. 2.
    """

    filter_parameters = ("kernel",)
    filter_learning_rate_limit = 1e-3

    def __init__(self, dim: int, taps: int, squash: float = 0.003) -> None:
        super().__init__()
        self.squash = squash
        self.shards: Shards | None = None
        self.spectrum = KernelSpectrum()
        self.kernel = nn.Parameter(torch.empty(taps, dim))
        self.skip = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Decaying, at a rate of its own in each channel: memories of all lengths from the
        # start, and most taps well above the threshold.
        taps, dim = self.kernel.shape
        device = self.kernel.device
        time = torch.arange(taps, device=device)[:, None] / taps
        rates = (dim / 2) ** (torch.arange(dim, device=device) / dim)
        with torch.no_grad():
            self.kernel.normal_(std=0.02).mul_(torch.exp(-time * rates))
            self.skip.normal_()

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: Float[Tensor, "batch history dim"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch history dim"]]:
        if self.shards is not None:
            state = self.shards.window_before(x, self.kernel.shape[0] - 1)
        state = None if state is None else state.to(x.dtype)  # one that autocast began
        kernel = self.kernel.sign() * (self.kernel.abs() - self.squash).clamp(min=0)
        y, state = long_conv(
            x, kernel.to(x.dtype), lengths=lengths, state=state, spectrum=self.spectrum
        )
        return y + self.skip * x, state


class RecurrentEmbedder(nn.Module):
    r"""A few fixed filters per channel: memories from 4 to 1000 steps in constant space.

    $$ e_t = \sum_{n} c_n\, \sqrt{1 - \rho_n^2}\, s_{n,t}, \qquad
       s_{n,t} = \rho_n s_{n,t-1} + x_t $$

    Causal, free of FFTs, and its state does not depend on how much was read.

    Source: Ma et al. 2023 (MEGA), the multi-dimension damped EMA; unit noise gain ours.
    """

    filter_parameters = ("logit", "weight")

    def __init__(self, dim: int, memories: int = 2) -> None:
        super().__init__()
        self.shards: Shards | None = None
        self.logit = nn.Parameter(torch.empty(memories, dim))
        self.weight = nn.Parameter(torch.empty(memories, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # sigmoid(log(m - 1)) = 1 - 1/m, the decay whose memory is m steps.
        memories, dim = self.logit.shape
        order = torch.arange(memories * dim, device=self.logit.device)
        spread = 4 * 250 ** (order / (memories * dim))
        with torch.no_grad():
            self.logit.copy_((spread - 1).log().reshape(dim, memories).T)
            self.weight.normal_(std=memories**-0.5)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        state: Float[Tensor, "batch memories dim 2"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch memories dim 2"]]:
        logit = self.logit.to(torch.promote_types(x.dtype, torch.float32))
        decay = logit.sigmoid()
        # sqrt(1 - decay^2), whose gradient stays finite where decay rounds to 1.
        gain = self.weight * ((-logit).sigmoid() * (1 + decay)).sqrt()
        real = torch.zeros_like(decay)
        mix = torch.stack([gain, real], -1)
        return fixed_filters(x, decay, real, mix, state=state, lengths=lengths, shards=self.shards)
