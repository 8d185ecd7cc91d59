r"""Second-order sections: coefficients, poles, stability, responses, and SciPy's `sos`.

Three ways to write the same two poles are used in this library:

* **coefficients** `a` (..., 2) = $(a_1, a_2)$ of $1 + a_1 z^{-1} + a_2 z^{-2}$, the direct form
  $y_t = x_t - a_1 y_{t-1} - a_2 y_{t-2}$ (its numerator is 1: an all-pole section);
* **poles** (..., 2), complex, the roots of $z^2 + a_1 z + a_2$;
* **normal form** `decay`, `angle` (...) = $(\rho, \phi)$, the state
  $s_t = \rho e^{j\phi} s_{t-1} + x_t$ read out by `mix` (..., 2) = $(m_0, m_1)$ as
  $y_t = m_0 \operatorname{Re} s_t + m_1 \operatorname{Im} s_t$.

A general section adds a numerator `b` (..., 3) = $(b_0, b_1, b_2)$:
$y_t = b_0 x_t + b_1 x_{t-1} + b_2 x_{t-2} - a_1 y_{t-1} - a_2 y_{t-2}$.

Frequencies are in cycles per sample (1/2 is the highest), angles in radians per sample
($\phi = 2 \pi f$), lengths in samples. The dots stand for any axes, none included. Every
function is differentiable. Those that can be asked for something that does not exist look
at values and say so; they are for setting filters up and looking at them, not for the
inside of a training step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor


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
            keeps it inside for every finite number.

    Raises:
        ValueError: the last axis is not 2, or `max_decay` is outside (0, 1].
        TypeError: `unconstrained` is not a floating-point tensor.

    Source:
        The triangle is Jury's criterion for two poles; this map onto it is ours.
    """
    _require_last_axis("unconstrained", unconstrained, 2)
    _require_max_decay(max_decay)
    u, v = unconstrained.unbind(-1)
    # 2 sigmoid(2 v) is 1 + tanh(v) without its cancellation at the lower corner.
    a1 = max_decay * 2 * torch.sigmoid(2 * v) * torch.tanh(u)
    a2 = max_decay**2 * torch.tanh(v)
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
    _require_last_axis("a", a, 2)
    _require_max_decay(max_decay)
    a1, a2 = a[..., 0] / max_decay, a[..., 1] / max_decay**2
    _require_everywhere(
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
    _require_last_axis("a", a, 2)
    a1, a2 = a.unbind(-1)
    return (a2.abs() < 1) & (a1.abs() - 1 < a2)


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
    _require_last_axis("a", a, 2)
    a1, a2 = a.unbind(-1)
    middle = -a1 / 2
    squared = _squared_distance(a)
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
    r"""The conjugate pair $\rho e^{j\phi}, \rho e^{-j\phi}$.

    Raises:
        ValueError: `decay` and `angle` differ in shape.
        TypeError: they differ in dtype, or are not floating-point tensors.
    """
    _require_normal_form(decay, angle)
    pole = torch.complex(decay * torch.cos(angle), decay * torch.sin(angle))
    return torch.stack([pole, pole.conj().resolve_conj()], -1)


def poles_to_normal_form(
    poles: Complex[Tensor, "*shape 2"],
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""$\rho = |p|$ and $\phi = |\arg p|$ in $[0, \pi]$ of a conjugate (or equal real) pair.

    Raises:
        ValueError: a pair is not conjugate. Two different real poles have no normal form: they
            are the sum of two one-pole filters, each a normal form of angle 0 or pi.
        TypeError: `poles` is not a complex tensor.
    """
    _require_pole_pairs(poles)
    first, second = poles.unbind(-1)
    conjugate = (first - second.conj()).abs() <= _tolerance(first) * first.abs()
    _require_everywhere(
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
    r"""$a_1 = -2 \rho \cos\phi$, $a_2 = \rho^2$: the denominator of a normal form.

    The numerator, which depends on the mix, is in `normal_form_to_sos`.

    Raises:
        ValueError: `decay` and `angle` differ in shape.
        TypeError: they differ in dtype, or are not floating-point tensors.
    """
    _require_normal_form(decay, angle)
    return torch.stack([-2 * decay * torch.cos(angle), decay * decay], -1)


def coefficients_to_normal_form(
    a: Float[Tensor, "*shape 2"],
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""The decay and angle of a section with complex (or equal real) poles.

    $$ \rho = \sqrt{a_2}, \qquad
       \phi = \operatorname{atan2}\left(\sqrt{4 a_2 - a_1^2},\, -a_1\right) \in [0, \pi] $$

    Near a double pole the angle depends on the coefficients by a square root: half of the
    digits are lost, and at the double pole itself its gradient, which would be infinite, is
    given as 0. The identity filter has decay 0 and angle 0.

    Raises:
        ValueError: a section has two different real poles ($a_1^2 > 4 a_2$), or the last axis
            is not 2. Such a section is the sum of two one-pole filters, each a normal form of
            angle 0 or pi, and no single normal form.
        TypeError: `a` is not a floating-point tensor.
    """
    _require_last_axis("a", a, 2)
    a1, a2 = a.unbind(-1)
    squared = _squared_distance(a)
    apart = ~(squared <= 0)  # NaN stays NaN
    _require_everywhere(
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

    $$ h_n = \rho^n \frac{\sin((n + 1) \phi)}{\sin \phi}, \qquad
       y_t = \operatorname{Re} s_t + \cot\phi \, \operatorname{Im} s_t $$

    The mix $(1, \cot\phi)$ grows without bound towards a double pole, where the section's
    impulse response $(n + 1) \rho^n$ is no longer a decaying cosine.

    Returns:
        decay, angle: as `coefficients_to_normal_form`.
        mix: $(1, \cot\phi)$.

    Raises:
        ValueError: a section has real poles, different or equal, or the last axis is not 2.
        TypeError: `a` is not a floating-point tensor.

    Source: ours.
    """
    _require_last_axis("a", a, 2)
    squared = _squared_distance(a)
    _require_everywhere(~(squared <= 0), "a", "have complex poles, a1**2 < 4 a2", a)
    decay, angle = coefficients_to_normal_form(a)
    cotangent = -a[..., 0] / squared.sqrt()
    return decay, angle, torch.stack([torch.ones_like(cotangent), cotangent], -1)


def section_frequency_response(
    b: Float[Tensor, "*shape 3"],
    a: Float[Tensor, "*shape 2"],
    frequency: Float[Tensor, " frequencies"],
) -> Complex[Tensor, "*shape frequencies"]:
    r"""The response of a general section to a stationary oscillation.

    $$ H(f) = \frac{b_0 + b_1 z^{-1} + b_2 z^{-2}}{1 + a_1 z^{-1} + a_2 z^{-2}},
       \qquad z = e^{j 2 \pi f} $$

    The response of a cascade is the product over its sections. An unstable section has a
    formula but no response; nothing checks that.

    Args:
        b, a: numerator and denominator.
        frequency: in cycles per sample.

    Returns:
        complex64, or complex128 when `a` is float64; computed in double precision.

    Raises:
        ValueError: a shape is not as written above.
        TypeError: an argument is not a floating-point tensor, or `b` and `a` differ in dtype.

    Source: Oppenheim & Schafer, Discrete-Time Signal Processing.
    """
    _require_section(b, a)
    _require_frequency(frequency)
    omega = 2 * math.pi * frequency.double()
    b0, b1, b2 = b.double()[..., None].unbind(-2)
    a1, a2 = a.double()[..., None].unbind(-2)
    # Both polynomials times z: real and imaginary part come apart without cancellation.
    cosine, sine = torch.cos(omega), torch.sin(omega)
    numerator = torch.complex(b1 + (b0 + b2) * cosine, (b0 - b2) * sine)
    denominator = torch.complex(a1 + (1 + a2) * cosine, (1 - a2) * sine)
    return (numerator / denominator).to(_result_dtype(a).to_complex())


def direct_form_frequency_response(
    a: Float[Tensor, "*shape 2"], frequency: Float[Tensor, " frequencies"]
) -> Complex[Tensor, "*shape frequencies"]:
    r"""The response of the all-pole section, $H(f) = 1 / (1 + a_1 z^{-1} + a_2 z^{-2})$.

    Arguments, result and errors as `section_frequency_response`.

    Source: Lutati, Zimerman, Wolf 2023 (arXiv 2305.14952), Eq. 4.
    """
    _require_last_axis("a", a, 2)
    return section_frequency_response(_all_pole_numerator(a), a, frequency)


def normal_form_frequency_response(
    decay: Float[Tensor, "*shape"],
    angle: Float[Tensor, "*shape"],
    frequency: Float[Tensor, " frequencies"],
    *,
    mix: Float[Tensor, "*mix_shape 2"] | None = None,
) -> Complex[Tensor, "*shape frequencies"]:
    r"""The response of a normal form.

    $$ H(f) = \frac12 \left( \frac{m_0 - j m_1}{1 - \rho e^{j(\phi - \omega)}}
                           + \frac{m_0 + j m_1}{1 - \rho e^{-j(\phi + \omega)}} \right),
       \qquad \omega = 2 \pi f $$

    Args:
        decay, angle: pole radius, and angle in radians per sample.
        frequency: in cycles per sample.
        mix: $(m_0, m_1)$, of any shape that broadcasts to `(*shape, 2)`; None is the real part.

    Returns:
        complex64, or complex128 when `decay` is float64; computed in double precision.

    Raises:
        ValueError: a shape is not as written above.
        TypeError: dtypes differ, or an argument is not a floating-point tensor.

    Source: ours.
    """
    mix = _mix_or_real_part(decay, angle, mix)
    _require_frequency(frequency)
    omega = 2 * math.pi * frequency.double()
    rho, phi = decay.double()[..., None], angle.double()[..., None]
    gain = torch.complex(*mix.double()[..., None].unbind(-2))

    def one_pole(difference: Tensor) -> Tensor:
        return 1 - rho * torch.polar(torch.ones_like(difference), difference)

    response = gain.conj() / one_pole(phi - omega) + gain / one_pole(-phi - omega)
    return (response / 2).to(_result_dtype(decay).to_complex())


def section_impulse_response(
    b: Float[Tensor, "*shape 3"], a: Float[Tensor, "*shape 2"], length: int
) -> Float[Tensor, "*shape length"]:
    r"""What a general section answers to $x = (1, 0, 0, \dots)$ from rest.

    $$ h_n = b_0 g_n + b_1 g_{n-1} + b_2 g_{n-2}, \qquad
       g_n = [n = 0] - a_1 g_{n-1} - a_2 g_{n-2} $$

    Args:
        b, a: numerator and denominator.
        length: samples; 0 gives an empty response. One step of a loop each.

    Returns:
        float32, or float64 when `a` is float64; computed in double precision.

    Raises:
        ValueError: a shape is not as written above, or `length` is negative.
        TypeError: an argument is not a floating-point tensor, or `b` and `a` differ in dtype.
    """
    _require_section(b, a)
    _require_length(length)
    b0, b1, b2 = b.double()[..., None].unbind(-2)
    g = torch.nn.functional.pad(_all_pole_impulse(a.double(), length), (2, 0))
    response = b0 * g[..., 2:] + b1 * g[..., 1:-1] + b2 * g[..., :-2]
    return response.to(_result_dtype(a))


def direct_form_impulse_response(
    a: Float[Tensor, "*shape 2"], length: int
) -> Float[Tensor, "*shape length"]:
    r"""The all-pole section's: $h_n = [n = 0] - a_1 h_{n-1} - a_2 h_{n-2}$.

    Arguments, result and errors as `section_impulse_response`.
    """
    _require_last_axis("a", a, 2)
    _require_length(length)
    return _all_pole_impulse(a.double(), length).to(_result_dtype(a))


def normal_form_impulse_response(
    decay: Float[Tensor, "*shape"],
    angle: Float[Tensor, "*shape"],
    length: int,
    *,
    mix: Float[Tensor, "*mix_shape 2"] | None = None,
) -> Float[Tensor, "*shape length"]:
    r"""The normal form's: $h_n = \rho^n (m_0 \cos n\phi + m_1 \sin n\phi)$.

    Args:
        decay, angle: pole radius, and angle in radians per sample.
        length: samples; 0 gives an empty response.
        mix: $(m_0, m_1)$, of any shape that broadcasts to `(*shape, 2)`; None is the real part.

    Returns:
        float32, or float64 when `decay` is float64; computed in double precision.

    Raises:
        ValueError: a shape is not as written above, or `length` is negative.
        TypeError: dtypes differ, or an argument is not a floating-point tensor.

    Source: ours.
    """
    mix = _mix_or_real_part(decay, angle, mix)
    _require_length(length)
    n = torch.arange(length, dtype=torch.float64, device=decay.device)
    phase = angle.double()[..., None] * n
    m0, m1 = mix.double()[..., None].unbind(-2)
    response = decay.double()[..., None] ** n * (m0 * torch.cos(phase) + m1 * torch.sin(phase))
    return response.to(_result_dtype(decay))


def to_sos(b: Float[Tensor, "*shape 3"], a: Float[Tensor, "*shape 2"]) -> Float[Tensor, "*shape 6"]:
    r"""Rows $(b_0, b_1, b_2, 1, a_1, a_2)$ as `scipy.signal.sosfilt` takes them.

    One section is `to_sos(b, a)[None].numpy()`; a stack of them along an axis is a cascade.

    Raises:
        ValueError: a shape is not as written above.
        TypeError: an argument is not a floating-point tensor, or the dtypes differ.

    Source: scipy.signal, "second-order sections".
    """
    _require_section(b, a)
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
    _require_last_axis("sos", sos, 6)
    leading = sos[..., 3]
    _require_everywhere(leading != 0, "sos", "have a0 (the fourth number of a row) not 0", sos)
    normalised = sos / leading[..., None]
    return normalised[..., :3], normalised[..., 4:]


def normal_form_to_sos(
    decay: Float[Tensor, "*shape"],
    angle: Float[Tensor, "*shape"],
    *,
    mix: Float[Tensor, "*mix_shape 2"] | None = None,
) -> Float[Tensor, "*shape 6"]:
    r"""The section that a normal form with fixed poles is.

    Adding the two one-pole terms of $m_0 \operatorname{Re} s + m_1 \operatorname{Im} s$ gives

    $$ H(z) = \frac{m_0 + \rho (m_1 \sin\phi - m_0 \cos\phi) z^{-1}}
                   {1 - 2 \rho \cos\phi \, z^{-1} + \rho^2 z^{-2}} $$

    so $b_0 = m_0$, $b_1 = \rho (m_1 \sin\phi - m_0 \cos\phi)$, $b_2 = 0$. At angle 0 a zero
    cancels one of the two equal poles and an exponential average remains.

    Args:
        decay, angle: pole radius, and angle in radians per sample.
        mix: $(m_0, m_1)$, of any shape that broadcasts to `(*shape, 2)`; None is the real part.

    Raises:
        ValueError: a shape is not as written above.
        TypeError: dtypes differ, or an argument is not a floating-point tensor.

    Source: ours.
    """
    m0, m1 = _mix_or_real_part(decay, angle, mix).unbind(-1)
    b1 = decay * (m1 * torch.sin(angle) - m0 * torch.cos(angle))
    b = torch.stack([m0, b1, torch.zeros_like(b1)], -1)
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

    $$ y_t = m_0 \operatorname{Re} s_t + m_1 \operatorname{Im} s_t + d\, x_t $$
    $$ d = b_2 / \rho^2, \quad m_0 = b_0 - d, \quad
       m_1 = \frac{b_1 / \rho + (m_0 + 2 d) \cos\phi}{\sin\phi} $$

    The inverse of `normal_form_to_sos` where that one applies ($b_2 = 0$, then $d = 0$).

    Args:
        sos: (..., 6) as for `from_sos`.

    Returns:
        decay, angle, mix: the normal form.
        feedthrough: $d$, what of $x_t$ is added to the output.

    Raises:
        ValueError: a section has real poles, different or equal, or the last axis is not 6.
        TypeError: the numbers are not floating point.

    Source: ours.
    """
    b, a = from_sos(sos)
    squared = _squared_distance(a)
    _require_everywhere(
        ~(squared <= 0), "sos", "have complex poles, a1**2 < 4 a2", torch.as_tensor(sos)
    )
    decay, angle = coefficients_to_normal_form(a)
    b0, b1, b2 = b.unbind(-1)
    feedthrough = b2 / a[..., 1]
    m0 = b0 - feedthrough
    m1 = (2 * b1 - (m0 + 2 * feedthrough) * a[..., 0]) / squared.sqrt()
    return decay, angle, torch.stack([m0, m1], -1), feedthrough


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
        _require_floating(name, value)
        _require_same(name, value, "A", A)
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
    _require_section(b, a)
    b0, b1, b2 = b.unbind(-1)
    a1, a2 = a.unbind(-1)
    _require_everywhere(a2 == 0, "a", "have a2 = 0, one pole", a)
    _require_everywhere(b2 == 0, "b", "have b2 = 0 to go with one state", b)
    _require_everywhere(
        (a1 != 0) | (b1 == 0), "b", "have b1 = 0 where a1 = 0 (no pole, no memory)", b
    )
    A = -a1
    D = torch.where(A != 0, -b1 / torch.where(A != 0, A, 1), 0)
    return A, torch.ones_like(A), b0 - D, D


def _all_pole_numerator(a: Tensor) -> Tensor:
    return torch.tensor([1.0, 0.0, 0.0], dtype=a.dtype, device=a.device).expand(*a.shape[:-1], 3)


def _all_pole_impulse(a: Tensor, length: int) -> Tensor:
    a1, a2 = a.unbind(-1)
    h1, h2 = torch.zeros_like(a1), torch.zeros_like(a1)
    response = []
    for n in range(length):
        h1, h2 = float(n == 0) - a1 * h1 - a2 * h2, h1
        response.append(h1)
    return torch.stack(response, -1) if response else a.new_empty(*a1.shape, 0)


def _squared_distance(a: Tensor) -> Tensor:
    """4 a2 - a1^2, the squared distance of the poles, 0 where rounding alone parts them."""
    a1, a2 = a.unbind(-1)
    squared = 4 * a2 - a1 * a1
    return torch.where(squared.abs() <= _tolerance(a) * a1 * a1, 0, squared)


def _sqrt(x: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    return torch.where(x != 0, torch.where(x != 0, x, 1).sqrt(), 0)


def _tolerance(x: Tensor) -> float:
    return 8 * torch.finfo(x.dtype).eps


def _result_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _mix_or_real_part(decay: Tensor, angle: Tensor, mix: Tensor | None) -> Tensor:
    _require_normal_form(decay, angle)
    if mix is None:
        return torch.stack([torch.ones_like(decay), torch.zeros_like(decay)], -1)
    _require_last_axis("mix", mix, 2)
    if mix.dtype != decay.dtype:
        raise TypeError(f"mix must have the dtype of decay, {decay.dtype}; got {mix.dtype}.")
    shape = (*decay.shape, 2)
    try:
        return mix.expand(shape)
    except RuntimeError:
        raise ValueError(f"mix must broadcast to {shape}; got {tuple(mix.shape)}.") from None


def _require_floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(value).__name__}.")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {value.dtype}.")


def _require_last_axis(name: str, value: Tensor, size: int) -> None:
    _require_floating(name, value)
    if value.ndim == 0 or value.shape[-1] != size:
        raise ValueError(f"{name} must have shape (..., {size}); got {tuple(value.shape)}.")


def _require_same(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of {other_name}, {tuple(other.shape)}; "
            f"got {tuple(value.shape)}."
        )
    if value.dtype != other.dtype:
        raise TypeError(
            f"{name} must have the dtype of {other_name}, {other.dtype}; got {value.dtype}."
        )


def _require_normal_form(decay: Tensor, angle: Tensor) -> None:
    _require_floating("decay", decay)
    _require_floating("angle", angle)
    _require_same("angle", angle, "decay", decay)


def _require_section(b: Tensor, a: Tensor) -> None:
    _require_last_axis("b", b, 3)
    _require_last_axis("a", a, 2)
    if b.shape[:-1] != a.shape[:-1]:
        raise ValueError(
            f"b must have the leading axes of a, {tuple(a.shape[:-1])}; got {tuple(b.shape[:-1])}."
        )
    if b.dtype != a.dtype:
        raise TypeError(f"b must have the dtype of a, {a.dtype}; got {b.dtype}.")


def _require_pole_pairs(poles: Tensor) -> None:
    if not isinstance(poles, Tensor) or not poles.is_complex():
        got = poles.dtype if isinstance(poles, Tensor) else type(poles).__name__
        raise TypeError(f"poles must be a complex tensor; got {got}.")
    if poles.ndim == 0 or poles.shape[-1] != 2:
        raise ValueError(f"poles must have shape (..., 2); got {tuple(poles.shape)}.")
    first, second = poles.unbind(-1)
    size = _tolerance(poles) * (first.abs() + second.abs())
    conjugate = (first - second.conj()).abs() <= size
    real = first.imag.abs() + second.imag.abs() <= size
    _require_everywhere(
        conjugate | real | poles.isnan().any(-1),
        "poles",
        "be conjugate or real pairs, for real coefficients",
        poles,
    )


def _require_frequency(frequency: Tensor) -> None:
    _require_floating("frequency", frequency)
    if frequency.ndim != 1:
        raise ValueError(f"frequency must have one axis; got {tuple(frequency.shape)}.")


def _require_length(length: int) -> None:
    if isinstance(length, bool) or not isinstance(length, int):
        raise TypeError(f"length must be an int; got {type(length).__name__}.")
    if length < 0:
        raise ValueError(f"length must be at least 0; got {length}.")


def _require_max_decay(max_decay: float) -> None:
    if not 0 < max_decay <= 1:
        raise ValueError(f"max_decay must lie in (0, 1]; got {max_decay}.")


def _require_everywhere(holds: Tensor, name: str, rule: str, values: Tensor) -> None:
    """Every leading index of `values` keeps the rule; else the first that does not is shown."""
    broken = (~holds).nonzero()
    if len(broken):
        index = tuple(broken[0].tolist())
        where = f" at index {index}" if index else ""
        raise ValueError(f"{name} must {rule}; got {values[index].tolist()}{where}.")
