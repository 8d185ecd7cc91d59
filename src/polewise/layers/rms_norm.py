"""Root-mean-square normalisation, where autocast makes the input narrower than the weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RmsNorm(nn.RMSNorm):
    r"""$y = w \odot x / \sqrt{\operatorname{mean}(x^2) + \epsilon}$ in the wider of both dtypes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.promote_types(x.dtype, self.weight.dtype)))
