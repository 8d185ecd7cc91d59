"""What a layer knows about everything so far, in constant space."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polewise.layers.fixed_filters import fixed_filters
from polewise.ops.precision import accumulator_dtype
from polewise.ops.shards import Shards


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
        order = torch.arange(memories * dim, dtype=torch.float32, device=self.logit.device)
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
        logit = self.logit.to(accumulator_dtype(x))
        decay = logit.sigmoid()
        # sqrt(1 - decay^2), whose gradient stays finite long after decay has rounded to 1.
        gain = self.weight * ((-logit).sigmoid() * (1 + decay)).sqrt()
        zero = torch.zeros_like(decay)  # poles have no imaginary part
        mix = torch.stack([gain, zero], -1)
        return fixed_filters(x, decay, zero, mix, state=state, lengths=lengths, shards=self.shards)
