"""Facts about the ways to write two poles: numbers without limits, coefficients, normal form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.filters.drawing import (
    angles,
    decays,
    double,
    numbers,
    property_test,
    random_normal_form,
    random_numerator,
    scalar,
)

from polewise import filters

# The stability triangle


@given(u=numbers, v=numbers)
@property_test
def test_any_two_numbers_make_a_section_whose_poles_are_inside_the_circle(u, v):
    a = filters.unconstrained_to_coefficients(double(u, v))
    assert filters.is_stable(a)
    assert np.abs(np.roots([1, *a.tolist()])).max() < 1 + 1e-6


@given(u=st.floats(-3, 3), v=st.floats(-3, 3), max_decay=st.sampled_from([0.5, 0.999, 1.0]))
@property_test
def test_the_triangle_map_and_its_inverse_cancel(u, v, max_decay):
    a = filters.unconstrained_to_coefficients(double(u, v), max_decay=max_decay)
    back = filters.coefficients_to_unconstrained(a, max_decay=max_decay)
    torch.testing.assert_close(back, double(u, v), rtol=1e-9, atol=1e-9)


@given(a1=st.floats(-1.99, 1.99), a2=st.floats(-0.99, 0.99))
@property_test
def test_every_stable_section_is_reached(a1, a2):
    if abs(a1) > 0.999 * (1 + a2):
        a1 *= 0.4 * (1 + a2)
    a = double(a1, a2)
    back = filters.unconstrained_to_coefficients(filters.coefficients_to_unconstrained(a))
    torch.testing.assert_close(back, a, rtol=1e-10, atol=1e-10)


def test_the_triangle_map_is_the_published_formula():
    u, v = 0.7, -0.4
    a = filters.unconstrained_to_coefficients(double(u, v))
    torch.testing.assert_close(a, double((1 + math.tanh(v)) * math.tanh(u), math.tanh(v)))


def test_two_zeros_make_the_identity_filter():
    assert filters.unconstrained_to_coefficients(torch.zeros(2)).tolist() == [0, 0]


@given(u=st.floats(-1e4, 1e4, width=32), v=st.floats(-1e4, 1e4, width=32))
@property_test
def test_a_cap_on_the_decay_holds_for_any_number_in_float32(u, v):
    a = filters.unconstrained_to_coefficients(torch.tensor([u, v]), max_decay=0.99)
    assert filters.is_stable(a)
    assert np.abs(np.roots([1, *a.double().tolist()])).max() < 0.99 + 5e-4


@pytest.mark.parametrize("max_decay", [0.9, 0.99, 0.9999, 0.99999])
def test_no_rounding_leads_out_of_the_triangle(max_decay):
    torch.manual_seed(0)
    a = filters.unconstrained_to_coefficients(8 * torch.randn(100_000, 2), max_decay=max_decay)
    assert filters.is_stable(a).all()
    exact = filters.coefficients_to_poles(a.double()).abs().amax(-1)
    assert exact.max() <= max_decay * (1 + torch.finfo(a.dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_is_stable_says_of_every_dtype_what_it_says_of_float64(dtype):
    torch.manual_seed(0)
    a = (torch.rand(100_000, 2) * torch.tensor([4.4, 2.2]) - torch.tensor([2.2, 1.1])).to(dtype)
    corner = torch.tensor([[0.0771484375, -0.921875], [5e-8, -1 + 2**-24]], dtype=dtype)
    a = torch.cat([a, corner])
    assert torch.equal(filters.is_stable(a), filters.is_stable(a.double()))


@given(a1=st.floats(-2.5, 2.5), a2=st.floats(-1.5, 1.5))
@property_test
def test_is_stable_agrees_with_the_roots(a1, a2):
    radius = np.abs(np.roots([1, a1, a2])).max()
    if abs(radius - 1) > 1e-6:
        assert filters.is_stable(double(a1, a2)).item() == (radius < 1)


@pytest.mark.parametrize("a", [(2, 1), (-2, 1), (0, -1), (0, 1), (1.5, 0.5), (math.nan, 0)])
def test_the_edge_of_the_triangle_and_nan_are_not_stable(a):
    assert not filters.is_stable(double(*a))


def test_an_unstable_section_has_no_unconstrained_numbers():
    a = torch.tensor([[0.1, 0.2], [0.0, 1.5]])
    with pytest.raises(ValueError, match=r"a must have poles .* below 1.0; got \[0.0, 1.5\] at"):
        filters.coefficients_to_unconstrained(a)
    with pytest.raises(ValueError, match=r"below 0\.9"):
        filters.coefficients_to_unconstrained(double(0, 0.9), max_decay=0.9)


# Coefficients, poles, normal form


@given(a1=st.floats(-3, 3), a2=st.floats(-2, 2))
@property_test
def test_poles_are_the_roots_of_the_polynomial(a1, a2):
    poles = filters.coefficients_to_poles(double(a1, a2))
    value = poles**2 + a1 * poles + a2
    assert value.abs().max() < 1e-13 * (1 + abs(a1) + abs(a2))
    torch.testing.assert_close(
        filters.poles_to_coefficients(poles), double(a1, a2), rtol=1e-13, atol=1e-13
    )


def test_real_poles_far_apart_keep_their_digits():
    large, small = -0.9, 1e-9
    a = double(-(large + small), large * small)
    poles = filters.coefficients_to_poles(a)
    torch.testing.assert_close(poles.real, double(large, small), rtol=1e-12, atol=0)
    assert poles.imag.tolist() == [0, 0]


def test_a_complex_pair_comes_with_its_positive_angle_first():
    poles = filters.coefficients_to_poles(double(-1.0, 0.9))
    assert poles[0].imag > 0
    assert poles[1] == poles[0].conj()


@given(decay=decays, angle=angles)
@property_test
def test_normal_form_to_poles_to_coefficients_is_the_short_way(decay, angle):
    decay, angle = scalar(decay), scalar(angle)
    by_poles = filters.poles_to_coefficients(filters.normal_form_to_poles(decay, angle))
    direct = filters.normal_form_to_coefficients(decay, angle)
    torch.testing.assert_close(by_poles, direct, rtol=1e-14, atol=1e-15)


@given(decay=st.floats(1e-3, 0.9999), angle=angles)
@property_test
def test_every_normal_form_survives_its_coefficients(decay, angle):
    a = filters.normal_form_to_coefficients(scalar(decay), scalar(angle))
    new_decay, new_angle = filters.coefficients_to_normal_form(a)
    assert new_decay.item() == pytest.approx(decay, rel=1e-14, abs=0)
    # Beside a double pole half of the digits are lost; elsewhere none.
    near_double = min(angle, math.pi - angle)
    assert new_angle.item() == pytest.approx(angle, abs=2e-7 if near_double < 1e-3 else 1e-12)


@given(decay=st.floats(1e-3, 0.9999), angle=angles)
@property_test
def test_every_normal_form_survives_its_poles(decay, angle):
    poles = filters.normal_form_to_poles(scalar(decay), scalar(angle))
    new_decay, new_angle = filters.poles_to_normal_form(poles)
    assert new_decay.item() == pytest.approx(decay, rel=1e-14, abs=0)
    assert new_angle.item() == pytest.approx(angle, rel=1e-14, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("angle", [0.0, math.pi])
def test_double_poles_are_normal_forms_in_spite_of_rounding(dtype, angle):
    decay = torch.linspace(0.01, 0.999, 500, dtype=dtype)
    a = filters.normal_form_to_coefficients(decay, torch.full_like(decay, angle))
    a[:, 1] = torch.nextafter(a[:, 1], torch.zeros((), dtype=dtype))
    new_decay, new_angle = filters.coefficients_to_normal_form(a)
    torch.testing.assert_close(new_decay, decay)
    torch.testing.assert_close(new_angle, torch.full_like(decay, angle), rtol=0, atol=2e-3)
    by_poles, _ = filters.poles_to_normal_form(filters.coefficients_to_poles(a))
    torch.testing.assert_close(by_poles, decay)


def test_the_identity_filter_has_decay_0():
    decay, angle = filters.coefficients_to_normal_form(torch.zeros(2))
    assert (decay.item(), angle.item()) == (0, 0)


@pytest.mark.parametrize("a", [(0.0, -0.5), (-1.2, 0.3), (1.2, 0.3), (0.5, 0.0)])
def test_two_different_real_poles_have_no_normal_form(a):
    a = torch.stack([double(-0.5, 0.5), double(*a)])
    with pytest.raises(ValueError, match=r"a must have conjugate poles.* at index \(1,\)"):
        filters.coefficients_to_normal_form(a)
    with pytest.raises(ValueError, match="poles must be conjugate to be a normal form"):
        filters.poles_to_normal_form(filters.coefficients_to_poles(a))
    with pytest.raises(ValueError, match="sos must have complex poles"):
        filters.sos_to_normal_form(filters.to_sos(random_numerator((2,)), a))


@pytest.mark.parametrize("decay_angle", [(0.9, 0.0), (0.9, math.pi), (0.0, 0.0)])
def test_a_double_pole_has_no_direct_form_mix(decay_angle):
    a = filters.normal_form_to_coefficients(*double(*decay_angle))
    with pytest.raises(ValueError, match="a must have complex poles"):
        filters.direct_form_to_normal_form(a)


def test_poles_of_a_complex_filter_are_refused():
    with pytest.raises(ValueError, match="poles must be conjugate or real pairs"):
        filters.poles_to_coefficients(torch.tensor([0.5 + 0.5j, 0.5 + 0.4j]))


def test_the_direct_form_is_the_normal_form_with_its_mix():
    a = filters.normal_form_to_coefficients(*random_normal_form((3, 5))[:2])
    decay, angle, mix = filters.direct_form_to_normal_form(a)
    torch.testing.assert_close(mix[..., 1], torch.cos(angle) / torch.sin(angle))
    torch.testing.assert_close(
        filters.normal_form_impulse_response(decay, angle, 50, mix=mix),
        filters.direct_form_impulse_response(a, 50),
    )


@pytest.mark.parametrize("a", [(0.0, 0.0), (-1.0, 0.25), (1.0, 0.25)])
def test_gradients_at_a_double_pole_are_finite(a):
    a = double(*a).requires_grad_()
    filters.coefficients_to_poles(a).abs().sum().backward()
    sum(filters.coefficients_to_normal_form(a)).backward()
    assert a.grad.isfinite().all()
