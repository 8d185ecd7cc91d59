"""Facts about S4D: it is the published recursion, and it starts as published."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from polewise.mixers import S4dConfig


def test_the_mixer_is_the_published_recursion():
    """With complex numbers, one step after another."""
    torch.manual_seed(0)
    mixer = S4dConfig(dim=5, state_dim=6).build().double()
    with torch.no_grad():  # modes that fade alike would hide an exchange of two
        mixer.log_rate.normal_()
    x = torch.randn(2, 30, 5, dtype=torch.float64)
    a = torch.complex(-mixer.log_rate.exp(), mixer.frequency)
    pole = (mixer.log_step.exp() * a).exp()
    weight = torch.complex(*mixer.readout) * (pole - 1) / a
    s, outputs = torch.zeros(2, 3, 5, dtype=torch.complex128), []
    for x_t in x.unbind(1):
        s = pole * s + x_t[:, None]
        outputs.append(2 * (weight * s).sum(1).real + mixer.skip * x_t)
    values, gate = mixer.to_output(functional.gelu(torch.stack(outputs, 1))).chunk(2, -1)
    y, state = mixer(x)
    torch.testing.assert_close(y, values * gate.sigmoid(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state.modes, torch.view_as_real(s), rtol=1e-10, atol=1e-10)


def test_a_constant_input_settles_where_the_continuous_system_does():
    """Zero-order hold is exact for what it holds: the gain at rest is -2 Re sum C / A."""
    torch.manual_seed(0)
    mixer = S4dConfig(dim=3, state_dim=4).build().double()
    with torch.no_grad():
        mixer.log_step.fill_(math.log(0.1))
    decay, angle, mix = mixer._filters(torch.float64)
    pole = torch.polar(decay, angle)
    gain = (torch.complex(mix[..., 0], -mix[..., 1]) / (1 - pole)).real.sum(0)
    a = torch.complex(-mixer.log_rate.exp(), mixer.frequency)
    expected = -2 * (torch.complex(*mixer.readout) / a).real.sum(0)
    torch.testing.assert_close(gain, expected, rtol=1e-10, atol=1e-10)


def test_it_starts_as_published():
    """S4D-Lin: modes -1/2 + i pi n in every channel, steps of 0.001 to 0.1, evenly in logarithm."""
    torch.manual_seed(0)
    mixer = S4dConfig(dim=500, state_dim=8).build()
    harmonics = math.pi * torch.arange(4.0)[:, None]
    torch.testing.assert_close(mixer.frequency, harmonics.expand(4, 500))
    torch.testing.assert_close(mixer.log_rate.exp(), torch.full((4, 500), 0.5))
    step = mixer.log_step.exp()
    assert 1e-3 <= step.min() < 1.1e-3
    assert 0.09 < step.max() <= 0.1
    assert abs(mixer.log_step.mean() - math.log(1e-2)) < 0.2


def test_what_is_held_for_a_short_step_does_not_cancel_in_float32():
    torch.manual_seed(0)
    mixer = S4dConfig(dim=3, state_dim=4).build()
    with torch.no_grad():
        mixer.log_step.fill_(math.log(1e-6))
        mixer.frequency[0] = 0
    narrow, exact = mixer._filters(torch.float32)[2], mixer.double()._filters(torch.float64)[2]
    torch.testing.assert_close(narrow.double(), exact, rtol=1e-5, atol=0)
