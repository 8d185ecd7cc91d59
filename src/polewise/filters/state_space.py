"""A conjugate pair of diagonal state-space channels is a second-order section."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from polewise.filters._checks import (
    require_everywhere,
    require_floating,
    require_same,
    require_section,
)


def state_space_to_section(
    A: Float[Tensor, "*shape"],
    B: Float[Tensor, "*shape"],
    C: Float[Tensor, "*shape"],
    D: Float[Tensor, "*shape"],
) -> tuple[Float[Tensor, "*shape 3"], Float[Tensor, "*shape 2"]]:
    r"""A real diagonal state space, one state a channel, as a section.

    $$ s_t = A s_{t-1} + B x_t, \quad y_t = C s_t + D x_t \quad\Longleftrightarrow\quad
       y_t = (C B + D)\, x_t - A D\, x_{t-1} + A\, y_{t-1} $$

    so $b_0 = C B + D$, $b_1 = -A D$, $a_1 = -A$, and $b_2 = a_2 = 0$. (The paper prints
    $b_1 = +A D$; putting $s_{t-1} = (y_{t-1} - D x_{t-1}) / C$ into the second equation shows
    the minus.) A conjugate pair of complex states is a normal form with a mix.

    Returns:
        b, a: numerator and denominator.

    Raises:
        ValueError: the four differ in shape.
        TypeError: an argument is not a floating-point tensor, or the dtypes differ.

    Source: Lutati, Zimerman, Wolf 2023 (arXiv 2305.14952), appendix, Eq. 31, sign corrected.
    """
    for name, value in (("A", A), ("B", B), ("C", C), ("D", D)):
        require_floating(name, value)
        require_same(name, value, "A", A)
    zero = torch.zeros_like(A)
    return torch.stack([C * B + D, -A * D, zero], -1), torch.stack([-A, zero], -1)


def section_to_state_space(
    b: Float[Tensor, "*shape 3"], a: Float[Tensor, "*shape 2"]
) -> tuple[
    Float[Tensor, "*shape"],
    Float[Tensor, "*shape"],
    Float[Tensor, "*shape"],
    Float[Tensor, "*shape"],
]:
    r"""A first-order section as a diagonal state space: the inverse of `state_space_to_section`.

    $$ A = -a_1, \quad B = 1, \quad C = b_0 - D, \quad D = -b_1 / A $$

    Only the product $C B$ is determined, so $B = 1$; without a pole ($A = 0$) $D = 0$.

    Raises:
        ValueError: a section is of second order ($a_2$ or $b_2$ not 0), or delays its input
            without a pole ($a_1 = 0$, $b_1$ not 0), or a shape is not as written above.
        TypeError: an argument is not a floating-point tensor, or the dtypes differ.

    Source: as `state_space_to_section`.
    """
    require_section(b, a)
    b0, b1, b2 = b.unbind(-1)
    a1, a2 = a.unbind(-1)
    require_everywhere(a2 == 0, "a", "have a2 = 0, one pole", a)
    require_everywhere(b2 == 0, "b", "have b2 = 0 to go with one state", b)
    require_everywhere(
        (a1 != 0) | (b1 == 0), "b", "have b1 = 0 where a1 = 0 (no pole, no memory)", b
    )
    A = -a1
    D = torch.where(A != 0, -b1 / torch.where(A != 0, A, 1), 0)
    return A, torch.ones_like(A), b0 - D, D
