"""Facts about diagonal state spaces: each filters as its section does."""

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.filters.drawing import double, numbers, property_test, scalar

from polewise import filters


@given(st.floats(-0.99, 0.99), numbers, numbers, numbers)
@property_test
def test_the_state_space_and_its_section_filter_alike(A, B, C, D):
    x = np.cos(np.arange(30.0) ** 2)
    state, wanted = 0.0, []
    for value in x:
        state = A * state + B * value
        wanted.append(C * state + D * value)
    b, a = filters.state_space_to_section(*(scalar(value) for value in (A, B, C, D)))
    ours = scipy.signal.sosfilt(filters.to_sos(b, a)[None].numpy(), x)
    np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-9)


def test_the_published_sign_of_b1_is_not_the_state_space():
    A, B, C, D = double(0.5, 1.0, 1.0, 1.0).unbind()
    b, a = filters.state_space_to_section(A, B, C, D)
    # s = 1, 0.5, 0.25, ...; y = s + x.
    assert filters.section_impulse_response(b, a, 3).tolist() == [2, 0.5, 0.25]
    published = b * double(1, -1, 1)
    assert filters.section_impulse_response(published, a, 3).tolist() == [2, 1.5, 0.75]


@given(st.floats(-0.99, 0.99).filter(lambda A: abs(A) > 1e-3), numbers, numbers)
@property_test
def test_a_state_space_survives_its_section(A, C, D):
    b, a = filters.state_space_to_section(scalar(A), scalar(1.0), scalar(C), scalar(D))
    back = filters.section_to_state_space(b, a)
    torch.testing.assert_close(torch.stack(back), double(A, 1.0, C, D), rtol=1e-9, atol=1e-9)


def test_a_state_space_without_a_pole_is_a_gain():
    A, B, C, D = filters.section_to_state_space(double(0.7, 0, 0), double(0, 0))
    assert (A.item(), (B * C).item(), D.item()) == (0, 0.7, 0)


@pytest.mark.parametrize(
    ("b", "a", "complaint"),
    [
        ((1, 0, 0), (0.5, 0.1), "a must have a2 = 0"),
        ((1, 0, 0.1), (0.5, 0), "b must have b2 = 0"),
        ((1, 0.1, 0), (0, 0), "b must have b1 = 0 where a1 = 0"),
    ],
)
def test_a_second_order_section_has_no_single_state(b, a, complaint):
    with pytest.raises(ValueError, match=complaint):
        filters.section_to_state_space(double(*b), double(*a))
