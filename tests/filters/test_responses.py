"""Facts about frequency and impulse responses, against scipy.signal and the recursion."""

import math

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.filters.drawing import (
    FREQUENCY,
    angles,
    decays,
    double,
    numbers,
    property_test,
    random_coefficients,
    random_normal_form,
    random_numerator,
    run_normal_form,
    scalar,
)

from polewise import filters


@pytest.mark.parametrize("seed", range(5))
def test_section_frequency_response_is_scipy_freqz(seed):
    b, a = random_numerator((), seed=seed), random_coefficients((), seed=seed)
    ours = filters.section_frequency_response(b, a, FREQUENCY)
    _, theirs = scipy.signal.freqz(b, [1, *a.tolist()], worN=FREQUENCY.numpy(), fs=1)
    torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=1e-10, atol=1e-12)
    _, theirs = scipy.signal.freqz([1], [1, *a.tolist()], worN=FREQUENCY.numpy(), fs=1)
    ours = filters.direct_form_frequency_response(a, FREQUENCY)
    torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_section_impulse_response_is_scipy_lfilter(seed):
    b, a = random_numerator((), seed=seed), random_coefficients((), seed=seed)
    impulse = np.eye(1, 60)[0]
    torch.testing.assert_close(
        filters.section_impulse_response(b, a, 60),
        torch.as_tensor(scipy.signal.lfilter(b, [1, *a.tolist()], impulse)),
        rtol=1e-12,
        atol=1e-12,
    )
    torch.testing.assert_close(
        filters.direct_form_impulse_response(a, 60),
        torch.as_tensor(scipy.signal.lfilter([1], [1, *a.tolist()], impulse)),
        rtol=1e-12,
        atol=1e-12,
    )


@given(decay=decays, angle=angles, mix=st.tuples(numbers, numbers))
@property_test
def test_the_normal_form_answers_an_impulse_as_its_recursion_does(decay, angle, mix):
    ours = filters.normal_form_impulse_response(scalar(decay), scalar(angle), 40, mix=double(*mix))
    wanted = run_normal_form(decay, angle, mix, np.eye(1, 40)[0])
    np.testing.assert_allclose(ours, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_normal_form_frequency_response_is_scipy_freqz_of_its_section(seed):
    decay, angle, mix = random_normal_form((), seed=seed)
    b, a = filters.from_sos(filters.normal_form_to_sos(decay, angle, mix=mix))
    _, theirs = scipy.signal.freqz(b, [1, *a.tolist()], worN=FREQUENCY.numpy(), fs=1)
    ours = filters.normal_form_frequency_response(decay, angle, FREQUENCY, mix=mix)
    torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=1e-10, atol=1e-12)


def test_the_frequency_response_is_the_spectrum_of_the_impulse_response():
    decay, angle, mix = random_normal_form((3,))
    response = filters.normal_form_impulse_response(decay, angle, 2048, mix=mix)
    spectrum = torch.fft.rfft(response)
    frequency = torch.fft.rfftfreq(2048, dtype=torch.float64)
    torch.testing.assert_close(
        filters.normal_form_frequency_response(decay, angle, frequency, mix=mix), spectrum
    )


def test_a_normal_form_peaks_at_its_angle():
    angle = 2 * math.pi * 0.125
    frequency = torch.linspace(0, 0.5, 401)
    response = filters.normal_form_frequency_response(
        torch.tensor(0.999), torch.tensor(angle), frequency
    )
    assert frequency[response.abs().argmax()] == pytest.approx(0.125)


def test_a_pole_close_to_the_circle_keeps_its_gain_in_float32():
    decay = torch.tensor(1 - 2**-20)
    gain = filters.normal_form_frequency_response(decay, torch.tensor(0.0), torch.zeros(1))
    assert gain.real.item() == pytest.approx(2**20, rel=1e-6)
    a = torch.tensor([0.0, 1 - 2**-20])
    gain = filters.direct_form_frequency_response(a, torch.tensor([0.25]))
    assert gain.abs().item() == pytest.approx(2**20, rel=1e-6)


@pytest.mark.parametrize("angle", [0.0, math.pi])
def test_a_real_angle_is_an_exponential_average(angle):
    sign = math.cos(angle)
    response = filters.normal_form_impulse_response(scalar(0.8), scalar(angle), 20)
    wanted = torch.tensor([(sign * 0.8) ** n for n in range(20)], dtype=torch.float64)
    torch.testing.assert_close(response, wanted)


def test_an_undamped_start_has_a_finite_gradient():
    decay = torch.zeros((), dtype=torch.float64, requires_grad=True)
    filters.normal_form_impulse_response(decay, scalar(0.3), 4).sum().backward()
    assert decay.grad.item() == pytest.approx(math.cos(0.3))
