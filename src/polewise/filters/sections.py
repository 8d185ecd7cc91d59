"""SciPy's second-order sections, in and out."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from polewise.filters._checks import (
    mix_or_real_part,
    require_everywhere,
    require_last_axis,
    require_section,
    squared_distance,
)
from polewise.filters.forms import coefficients_to_normal_form, normal_form_to_coefficients


def to_sos(b: Float[Tensor, "*shape 3"], a: Float[Tensor, "*shape 2"]) -> Float[Tensor, "*shape 6"]:
    r"""Rows $(b_0, b_1, b_2, 1, a_1, a_2)$ as `scipy.signal.sosfilt` takes them.

    One section is `to_sos(b, a)[None].numpy()`; a stack of them along an axis is a cascade.

    Raises:
        ValueError: a shape is not as written above.
        TypeError: an argument is not a floating-point tensor, or the dtypes differ.

    Source: scipy.signal, "second-order sections".
    """
    require_section(b, a)
    return torch.cat([b, torch.ones_like(a[..., :1]), a], -1)


def from_sos(sos: Any) -> tuple[Float[Tensor, "*shape 3"], Float[Tensor, "*shape 2"]]:
    r"""Numerators and denominators of SciPy's rows, divided by their $a_0$.

    Args:
        sos: (..., 6), a tensor or anything `torch.as_tensor` takes, a NumPy array say.

    Returns:
        b: (..., 3).
        a: (..., 2), without the leading 1.

    Raises:
        ValueError: the last axis is not 6, or an $a_0$ is 0.
        TypeError: the numbers are not floating point.
    """
    sos = torch.as_tensor(sos)
    require_last_axis("sos", sos, 6)
    leading = sos[..., 3]
    require_everywhere(leading != 0, "sos", "have a0 (the fourth number of a row) not 0", sos)
    normalised = sos / leading[..., None]
    return normalised[..., :3], normalised[..., 4:]


def normal_form_to_sos(
    decay: Float[Tensor, "*shape"],
    angle: Float[Tensor, "*shape"],
    *,
    mix: Float[Tensor, "*mix_shape 2"] | None = None,
) -> Float[Tensor, "*shape 6"]:
    r"""The section that a normal form with fixed poles is.

    Adding the two one-pole terms of $c_0 \operatorname{Re} s + c_1 \operatorname{Im} s$ gives

    $$ H(z) = \frac{c_0 + \rho (c_1 \sin\varphi - c_0 \cos\varphi) z^{-1}}
                   {1 - 2 \rho \cos\varphi \, z^{-1} + \rho^2 z^{-2}} $$

    so $b_0 = c_0$, $b_1 = \rho (c_1 \sin\varphi - c_0 \cos\varphi)$, $b_2 = 0$. At angle 0 a zero
    cancels one of the two equal poles and an exponential average remains.

    Args:
        decay, angle: pole radius, and angle in radians per sample.
        mix: $(c_0, c_1)$, of any shape that broadcasts to `(*shape, 2)`; None is the real part.

    Raises:
        ValueError: a shape is not as written above.
        TypeError: dtypes differ, or an argument is not a floating-point tensor.

    Source: ours.
    """
    c0, c1 = mix_or_real_part(decay, angle, mix).unbind(-1)
    b1 = decay * (c1 * torch.sin(angle) - c0 * torch.cos(angle))
    b = torch.stack([c0, b1, torch.zeros_like(b1)], -1)
    return to_sos(b, normal_form_to_coefficients(decay, angle))


def sos_to_normal_form(
    sos: Any,
) -> tuple[
    Float[Tensor, "*shape"],
    Float[Tensor, "*shape"],
    Float[Tensor, "*shape 2"],
    Float[Tensor, "*shape"],
]:
    r"""Any section with complex poles as a normal form plus a share of the input.

    $$ y_t = c_0 \operatorname{Re} s_t + c_1 \operatorname{Im} s_t + d\, x_t $$
    $$ d = b_2 / \rho^2, \quad c_0 = b_0 - d, \quad
       c_1 = \frac{b_1 / \rho + (c_0 + 2 d) \cos\varphi}{\sin\varphi} $$

    The inverse of `normal_form_to_sos` where that one applies ($b_2 = 0$, then $d = 0$).

    Args:
        sos: (..., 6) as for `from_sos`.

    Returns:
        decay, angle, mix: the normal form.
        skip: $d$, how much of $x_t$ is added to the output.

    Raises:
        ValueError: a section has real poles, different or equal, or the last axis is not 6.
        TypeError: the numbers are not floating point.

    Source: ours.
    """
    b, a = from_sos(sos)
    squared = squared_distance(a)
    require_everywhere(
        ~(squared <= 0), "sos", "have complex poles, a1**2 < 4 a2", torch.as_tensor(sos)
    )
    decay, angle = coefficients_to_normal_form(a)
    b0, b1, b2 = b.unbind(-1)
    skip = b2 / a[..., 1]
    c0 = b0 - skip
    c1 = (2 * b1 - (c0 + 2 * skip) * a[..., 0]) / squared.sqrt()
    return decay, angle, torch.stack([c0, c1], -1), skip
