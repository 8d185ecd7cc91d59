r"""Second-order sections: coefficients, poles, stability, responses, and SciPy's `sos`.

Three ways to write the same two poles are used in this library:

* **coefficients** `a` (..., 2) = $(a_1, a_2)$ of $1 + a_1 z^{-1} + a_2 z^{-2}$, the direct form
  $y_t = x_t - a_1 y_{t-1} - a_2 y_{t-2}$ (its numerator is 1: an all-pole section);
* **poles** (..., 2), complex, the roots of $z^2 + a_1 z + a_2$;
* **normal form** `decay`, `angle` (...) = $(\rho, \varphi)$, the state
  $s_t = \rho e^{j\varphi} s_{t-1} + x_t$ read out by `mix` (..., 2) = $(c_0, c_1)$ as
  $y_t = c_0 \operatorname{Re} s_t + c_1 \operatorname{Im} s_t$.

A general section adds a numerator `b` (..., 3) = $(b_0, b_1, b_2)$:
$y_t = b_0 x_t + b_1 x_{t-1} + b_2 x_{t-2} - a_1 y_{t-1} - a_2 y_{t-2}$.

Frequencies are in cycles per sample (1/2 is the highest), angles in radians per sample
($\varphi = 2 \pi f$), lengths in samples. The dots stand for any axes, none included. Every
function is differentiable. Those that can be asked for something that does not exist look
at values and say so; they are for setting filters up and looking at them, not for the
inside of a training step.
"""

from __future__ import annotations

from polewise.filters.forms import (
    coefficients_to_normal_form,
    coefficients_to_poles,
    coefficients_to_unconstrained,
    direct_form_to_normal_form,
    is_stable,
    normal_form_to_coefficients,
    normal_form_to_poles,
    poles_to_coefficients,
    poles_to_normal_form,
    unconstrained_to_coefficients,
)
from polewise.filters.responses import (
    direct_form_frequency_response,
    direct_form_impulse_response,
    normal_form_frequency_response,
    normal_form_impulse_response,
    section_frequency_response,
    section_impulse_response,
)
from polewise.filters.sections import from_sos, normal_form_to_sos, sos_to_normal_form, to_sos
from polewise.filters.state_space import section_to_state_space, state_space_to_section

__all__ = [
    "coefficients_to_normal_form",
    "coefficients_to_poles",
    "coefficients_to_unconstrained",
    "direct_form_frequency_response",
    "direct_form_impulse_response",
    "direct_form_to_normal_form",
    "from_sos",
    "is_stable",
    "normal_form_frequency_response",
    "normal_form_impulse_response",
    "normal_form_to_coefficients",
    "normal_form_to_poles",
    "normal_form_to_sos",
    "poles_to_coefficients",
    "poles_to_normal_form",
    "section_frequency_response",
    "section_impulse_response",
    "section_to_state_space",
    "sos_to_normal_form",
    "state_space_to_section",
    "to_sos",
    "unconstrained_to_coefficients",
]
