"""Softmax attention that also goes through `torch.func`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from polewise.ops.eager import is_transformed


def softmax_attention(
    q: Float[Tensor, "*rows length head_dim"],
    k: Float[Tensor, "*rows keys head_dim"],
    v: Float[Tensor, "*rows keys value_dim"],
    **options: Any,
) -> Float[Tensor, "*rows length value_dim"]:
    """`scaled_dot_product_attention`. Under `torch.func` and in forward mode it is tensor
    operations, whose memory is quadratic in the length: the fused kernels have neither a forward
    nor a second derivative."""
    with sdpa_kernel(SDPBackend.MATH) if is_transformed() else nullcontext():
        return functional.scaled_dot_product_attention(q, k, v, **options)
