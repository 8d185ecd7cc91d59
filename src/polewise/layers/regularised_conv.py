"""Long convolutions whose small taps are zero."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polewise.ops import KernelSpectrum, long_conv
from polewise.ops.shards import Shards


class RegularisedConv(nn.Module):
    r"""A regularised long convolution per channel, plus a skip.

    $$ y_t = \sum_{i=0}^{K-1} \operatorname{squash}(h_i)\, x_{t-i} + d\, x_t, \qquad
       \operatorname{squash}(h) = \operatorname{sign}(h) \max(|h| - \lambda, 0) $$

    Its state is the last K - 1 inputs, so streaming costs memory in proportion to `taps`.

    Source: Fu et al. 2023 (arXiv 2302.06646); Lutati et al. 2023, Eq. 2.
    """

    filter_parameters = ("kernel",)
    filter_learning_rate_limit = 1e-3

    def __init__(self, dim: int, taps: int, threshold: float = 0.003) -> None:
        super().__init__()
        self.threshold = threshold
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
        time = torch.arange(taps, dtype=torch.float32, device=device)[:, None] / taps
        rates = (dim / 2) ** (torch.arange(dim, dtype=torch.float32, device=device) / dim)
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
        kernel = self.kernel.sign() * (self.kernel.abs() - self.threshold).clamp(min=0)
        y, state = long_conv(x, kernel, lengths=lengths, state=state, spectrum=self.spectrum)
        return y + self.skip * x, state
