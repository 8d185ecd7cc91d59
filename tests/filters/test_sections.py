"""Facts about SciPy's second-order sections: they answer here as they do there."""

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


def scipy_impulse_response(sos_row, length):
    impulse = np.zeros(length)
    impulse[:1] = 1
    return scipy.signal.sosfilt(np.asarray(sos_row, dtype=np.float64)[None], impulse)


def test_sos_rows_come_back_as_they_went():
    b, a = random_numerator((2, 3)), random_coefficients((2, 3))
    new_b, new_a = filters.from_sos(filters.to_sos(b, a))
    assert torch.equal(new_b, b)
    assert torch.equal(new_a, a)


def test_a_section_of_ours_is_scipys_tf2sos():
    b, a = double(0.2, -0.3, 0.5), double(-1.1, 0.6)
    theirs = scipy.signal.tf2sos(b.numpy(), [1, *a.tolist()])
    np.testing.assert_allclose(filters.to_sos(b, a)[None].numpy(), theirs, rtol=1e-12)


def test_a_scipy_design_has_scipys_responses_here():
    sos = scipy.signal.butter(6, 0.2, fs=1, output="sos")
    b, a = filters.from_sos(sos)
    cascade = filters.section_frequency_response(b, a, FREQUENCY).prod(0)
    _, theirs = scipy.signal.freqz_sos(sos, worN=FREQUENCY.numpy(), fs=1)
    torch.testing.assert_close(cascade, torch.as_tensor(theirs), rtol=1e-10, atol=1e-12)
    for row, ours in zip(sos, filters.section_impulse_response(b, a, 50), strict=True):
        np.testing.assert_allclose(ours, scipy_impulse_response(row, 50), rtol=1e-9, atol=1e-12)


def test_from_sos_divides_by_the_leading_coefficient():
    b, a = filters.from_sos([[2.0, 4.0, 6.0, 2.0, -1.0, 0.5]])
    assert b.tolist() == [[1, 2, 3]]
    assert a.tolist() == [[-0.5, 0.25]]


@pytest.mark.parametrize("seed", range(5))
def test_sos_to_normal_form_gives_scipys_impulse_response(seed):
    decay, angle, _ = random_normal_form((), seed=seed)
    a = filters.normal_form_to_coefficients(decay, angle)
    sos = filters.to_sos(random_numerator((), seed=seed), a)
    decay, angle, mix, skip = filters.sos_to_normal_form(sos)
    ours = filters.normal_form_impulse_response(decay, angle, 40, mix=mix)
    ours[0] += skip
    np.testing.assert_allclose(ours, scipy_impulse_response(sos, 40), rtol=1e-10, atol=1e-10)


def test_a_normal_form_survives_its_sos_row():
    decay, angle, mix = random_normal_form((3, 4))
    sos = filters.normal_form_to_sos(decay, angle, mix=mix)
    new_decay, new_angle, new_mix, skip = filters.sos_to_normal_form(sos)
    torch.testing.assert_close(new_decay, decay)
    torch.testing.assert_close(new_angle, angle)
    torch.testing.assert_close(new_mix, mix)
    assert skip.eq(0).all()


@given(decay=decays, angle=angles, mix=st.tuples(numbers, numbers))
@property_test
def test_the_normal_form_as_sos_answers_in_scipy_as_its_recursion_does(decay, angle, mix):
    sos = filters.normal_form_to_sos(scalar(decay), scalar(angle), mix=double(*mix))
    ours = scipy.signal.sosfilt(sos[None].numpy(), np.cos(np.arange(40.0) ** 2))
    wanted = run_normal_form(decay, angle, mix, np.cos(np.arange(40.0) ** 2))
    np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-9)
