"""Three ways to write two poles, and the way from each to the others."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from polewise.filters._checks import (
    require_everywhere,
    require_last_axis,
    require_normal_form,
    squared_distance,
    tolerance,
)
from polewise.ops.precision import accumulator_dtype


def unconstrained_to_coefficients(
    unconstrained: Float[Tensor, "*shape 2"], *, max_decay: float = 1.0
) -> Float[Tensor, "*shape 2"]:
    r"""Any two numbers $(u, v)$ to the coefficients of a stable section.

    $$ a_2 = r^2 \tanh v, \qquad a_1 = r\,(1 + \tanh v) \tanh u $$

    With $r$ = `max_decay` = 1 this is the whole inside of the stability triangle
    $|a_2| < 1$, $|a_1| < 1 + a_2$; $r < 1$ shrinks it to the sections whose poles have at
    most that radius. `(0, 0)` is the identity filter.

    Args:
        unconstrained: $(u, v)$.
        max_decay: the largest pole radius, in (0, 1]. At 1, `tanh` rounds to 1 beyond about
            9 in float32 (19 in float64) and the section sits on the edge, unstable; a cap
            keeps it inside for every finite number, as far as the dtype tells its square from 1.

    Raises:
        ValueError: the last axis is not 2, or `max_decay` is outside (0, 1].
        TypeError: `unconstrained` is not a floating-point tensor.

    Source:
        The triangle is Jury's criterion for two poles; this map onto it is ours.
    """
    require_last_axis("unconstrained", unconstrained, 2)
    _require_max_decay(max_decay)
    u, v = unconstrained.unbind(-1)
    # 2 sigmoid(2 v) is 1 + tanh(v) without its cancellation at the lower corner.
    a1 = max_decay * 2 * torch.sigmoid(2 * v) * torch.tanh(u)
    a2 = max_decay**2 * torch.tanh(v)
    if max_decay < 1:  # near the corners both round, and the sum may land beyond the edge
        edge = (max_decay + a2 / max_decay) * (1 - 4 * torch.finfo(a2.dtype).eps)
        edge = edge.clamp(min=0)
        a1 = a1.clamp(-edge, edge)
    return torch.stack([a1, a2], -1)


def coefficients_to_unconstrained(
    a: Float[Tensor, "*shape 2"], *, max_decay: float = 1.0
) -> Float[Tensor, "*shape 2"]:
    r"""The inverse of `unconstrained_to_coefficients`.

    $$ v = \operatorname{artanh}(a_2 / r^2), \qquad
       u = \operatorname{artanh}\frac{a_1 / r}{1 + a_2 / r^2} $$

    Raises:
        ValueError: a section has a pole of radius `max_decay` or more, or the last axis is
            not 2, or `max_decay` is outside (0, 1].
        TypeError: `a` is not a floating-point tensor.

    Source: ours.
    """
    require_last_axis("a", a, 2)
    _require_max_decay(max_decay)
    a1, a2 = a[..., 0] / max_decay, a[..., 1] / max_decay**2
    require_everywhere(
        is_stable(torch.stack([a1, a2], -1)), "a", f"have poles of radius below {max_decay}", a
    )
    return torch.stack([torch.atanh(a1 / (1 + a2)), torch.atanh(a2)], -1)


def is_stable(a: Float[Tensor, "*shape 2"]) -> Bool[Tensor, "*shape"]:
    r"""Whether both poles lie inside the unit circle: $|a_2| < 1$ and $|a_1| < 1 + a_2$.

    The edge is not stable, and neither is NaN. This is the stability of a section whose
    coefficients stay as they are; switching between stable sections can still diverge in
    the direct form (`direct_form_filter` says when).

    Raises:
        ValueError: the last axis is not 2.
        TypeError: `a` is not a floating-point tensor.

    Source: Jury 1964, for two poles.
    """
    require_last_axis("a", a, 2)
    a1, a2 = a.unbind(-1)
    # Each side where its difference is exact.
    inside = torch.where(a1.abs() < 0.5, a1.abs() < 1 + a2, a1.abs() - 1 < a2)
    return (a2.abs() < 1) & inside


def coefficients_to_poles(a: Float[Tensor, "*shape 2"]) -> Complex[Tensor, "*shape 2"]:
    r"""The roots of $z^2 + a_1 z + a_2$.

    A complex pair comes with the positive imaginary part first, a real pair with the larger
    magnitude first. Two poles closer than the rounding of their coefficients can tell come as
    a double pole. There the derivative is infinite, and the gradient treats the distance of
    the two as constant.

    Raises:
        ValueError: the last axis is not 2.
        TypeError: `a` is not a floating-point tensor.

    Source: the quadratic formula, in the form that does not cancel for real roots.
    """
    require_last_axis("a", a, 2)
    a = a.to(accumulator_dtype(a))  # there are no complex numbers of half precision
    a1, a2 = a.unbind(-1)
    middle = -a1 / 2
    squared = squared_distance(a)
    distance = _sqrt(squared.abs()) / 2
    large = middle + torch.copysign(distance, middle)
    small = torch.where(large != 0, a2 / torch.where(large != 0, large, 1), 0)
    real, zero = squared <= 0, torch.zeros_like(middle)
    first = torch.complex(torch.where(real, large, middle), torch.where(real, zero, distance))
    second = torch.complex(torch.where(real, small, middle), torch.where(real, zero, -distance))
    return torch.stack([first, second], -1)


def poles_to_coefficients(poles: Complex[Tensor, "*shape 2"]) -> Float[Tensor, "*shape 2"]:
    r"""$a_1 = -(p_1 + p_2)$, $a_2 = p_1 p_2$.

    Raises:
        ValueError: a pair is neither conjugate nor real (its section would have complex
            coefficients), or the last axis is not 2.
        TypeError: `poles` is not a complex tensor.
    """
    _require_pole_pairs(poles)
    first, second = poles.unbind(-1)
    return torch.stack([-(first + second).real, (first * second).real], -1)


def normal_form_to_poles(
    decay: Float[Tensor, "*shape"], angle: Float[Tensor, "*shape"]
) -> Complex[Tensor, "*shape 2"]:
    r"""The conjugate pair $\rho e^{j\varphi}, \rho e^{-j\varphi}$.

    Raises:
        ValueError: `decay` and `angle` differ in shape.
        TypeError: they differ in dtype, or are not floating-point tensors.
    """
    require_normal_form(decay, angle)
    decay, angle = (part.to(accumulator_dtype(part)) for part in (decay, angle))
    pole = torch.complex(decay * torch.cos(angle), decay * torch.sin(angle))
    return torch.stack([pole, pole.conj().resolve_conj()], -1)


def poles_to_normal_form(
    poles: Complex[Tensor, "*shape 2"],
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""$\rho = |p|$ and $\varphi = |\arg p|$ in $[0, \pi]$ of a conjugate (or equal real) pair.

    Raises:
        ValueError: a pair is not conjugate. Two different real poles have no normal form: they
            are the sum of two one-pole filters, each a normal form of angle 0 or pi.
        TypeError: `poles` is not a complex tensor.
    """
    _require_pole_pairs(poles)
    first, second = poles.unbind(-1)
    conjugate = (first - second.conj()).abs() <= tolerance(first) * first.abs()
    require_everywhere(
        conjugate | poles.isnan().any(-1),
        "poles",
        "be conjugate to be a normal form (two different real poles are the sum of two "
        "one-pole filters, angles 0 or pi)",
        poles,
    )
    return first.abs(), first.angle().abs()


def normal_form_to_coefficients(
    decay: Float[Tensor, "*shape"], angle: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape 2"]:
    r"""$a_1 = -2 \rho \cos\varphi$, $a_2 = \rho^2$: the denominator of a normal form.

    The numerator, which depends on the mix, is in `normal_form_to_sos`.

    Raises:
        ValueError: `decay` and `angle` differ in shape.
        TypeError: they differ in dtype, or are not floating-point tensors.
    """
    require_normal_form(decay, angle)
    return torch.stack([-2 * decay * torch.cos(angle), decay * decay], -1)


def coefficients_to_normal_form(
    a: Float[Tensor, "*shape 2"],
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""The decay and angle of a section with complex (or equal real) poles.

    $$ \rho = \sqrt{a_2}, \qquad
       \varphi = \operatorname{atan2}\left(\sqrt{4 a_2 - a_1^2},\, -a_1\right) \in [0, \pi] $$

    Near a double pole the angle depends on the coefficients by a square root: half of the
    digits are lost, and at the double pole itself its gradient, which would be infinite, is
    given as 0. The identity filter has decay 0 and angle 0.

    Raises:
        ValueError: a section has two different real poles ($a_1^2 > 4 a_2$), or the last axis
            is not 2. Such a section is the sum of two one-pole filters, each a normal form of
            angle 0 or pi, and no single normal form.
        TypeError: `a` is not a floating-point tensor.
    """
    require_last_axis("a", a, 2)
    a1, a2 = a.unbind(-1)
    squared = squared_distance(a)
    apart = ~(squared <= 0)  # NaN stays NaN
    require_everywhere(
        apart | (squared == 0),
        "a",
        "have conjugate poles, a1**2 <= 4 a2, to be a normal form (two different real poles "
        "are the sum of two one-pole filters, angles 0 or pi)",
        a,
    )
    angle = torch.atan2(torch.where(apart, squared, 1).sqrt(), 0 - a1)
    double = torch.where(a1 > 0, torch.full_like(a1, math.pi), torch.zeros_like(a1))
    return _sqrt(a2.clamp_min(0)), torch.where(apart, angle, double)


def direct_form_to_normal_form(
    a: Float[Tensor, "*shape 2"],
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape 2"]]:
    r"""The normal form that equals an all-pole section while its coefficients stay fixed.

    $$ h_n = \rho^n \frac{\sin((n + 1) \varphi)}{\sin \varphi}, \qquad
       y_t = \operatorname{Re} s_t + \cot\varphi \, \operatorname{Im} s_t $$

    The mix $(1, \cot\varphi)$ grows without bound towards a double pole, where the section's
    impulse response $(n + 1) \rho^n$ is no longer a decaying cosine.

    Returns:
        decay, angle: as `coefficients_to_normal_form`.
        mix: $(1, \cot\varphi)$.

    Raises:
        ValueError: a section has real poles, different or equal, or the last axis is not 2.
        TypeError: `a` is not a floating-point tensor.

    Source: ours.
    """
    require_last_axis("a", a, 2)
    squared = squared_distance(a)
    require_everywhere(~(squared <= 0), "a", "have complex poles, a1**2 < 4 a2", a)
    decay, angle = coefficients_to_normal_form(a)
    cotangent = -a[..., 0] / squared.sqrt()
    return decay, angle, torch.stack([torch.ones_like(cotangent), cotangent], -1)


def _sqrt(x: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    return torch.where(x != 0, torch.where(x != 0, x, 1).sqrt(), 0)


def _require_max_decay(max_decay: float) -> None:
    if not 0 < max_decay <= 1:
        raise ValueError(f"max_decay must lie in (0, 1]; got {max_decay}.")


def _require_pole_pairs(poles: Tensor) -> None:
    if not isinstance(poles, Tensor) or not poles.is_complex():
        got = poles.dtype if isinstance(poles, Tensor) else type(poles).__name__
        raise TypeError(f"poles must be a complex tensor; got {got}.")
    if poles.ndim == 0 or poles.shape[-1] != 2:
        raise ValueError(f"poles must have shape (..., 2); got {tuple(poles.shape)}.")
    first, second = poles.unbind(-1)
    size = tolerance(poles) * (first.abs() + second.abs())
    conjugate = (first - second.conj()).abs() <= size
    real = first.imag.abs() + second.imag.abs() <= size
    require_everywhere(
        conjugate | real | poles.isnan().any(-1),
        "poles",
        "be conjugate or real pairs, for real coefficients",
        poles,
    )
