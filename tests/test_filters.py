"""Facts about second-order sections, against scipy.signal wherever it has an answer."""

import math

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from polewise import filters

SHAPES = [(), (0,), (1,), (3,), (2, 3)]
FREQUENCY = torch.linspace(0, 0.5, 33, dtype=torch.float64)

numbers = st.floats(-6, 6)
decays = st.floats(0, 0.9999)
angles = st.floats(0, math.pi)
property_test = settings(deadline=None, max_examples=60)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def random_normal_form(shape=(4,), dtype=torch.float64, seed=0):
    """Complex poles, at least 0.15 radians apart from double ones."""
    generator = torch.Generator().manual_seed(seed)
    decay = 0.3 + 0.65 * torch.rand(shape, generator=generator, dtype=torch.float64)
    angle = 0.15 + (math.pi - 0.3) * torch.rand(shape, generator=generator, dtype=torch.float64)
    mix = torch.randn(*shape, 2, generator=generator, dtype=torch.float64)
    return decay.to(dtype), angle.to(dtype), mix.to(dtype)


def random_coefficients(shape=(4,), dtype=torch.float64, seed=0):
    """Stable sections, with real poles and with complex ones."""
    generator = torch.Generator().manual_seed(seed)
    unconstrained = torch.randn(*shape, 2, generator=generator, dtype=torch.float64)
    return filters.unconstrained_to_coefficients(unconstrained, max_decay=0.97).to(dtype)


def random_numerator(shape=(4,), dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 3, generator=generator, dtype=torch.float64).to(dtype)


def scipy_impulse_response(sos_row, length):
    impulse = np.zeros(length)
    impulse[:1] = 1
    return scipy.signal.sosfilt(np.asarray(sos_row, dtype=np.float64)[None], impulse)


def run_normal_form(decay, angle, mix, x):
    """The definition, step by step."""
    pole, state, outputs = decay * np.exp(1j * angle), 0j, []
    for value in x:
        state = pole * state + value
        outputs.append(mix[0] * state.real + mix[1] * state.imag)
    return np.array(outputs)


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
    assert new_decay.item() == pytest.approx(decay, rel=1e-14)
    # Beside a double pole half of the digits are lost; elsewhere none.
    near_double = min(angle, math.pi - angle)
    assert new_angle.item() == pytest.approx(angle, abs=2e-7 if near_double < 1e-3 else 1e-12)


@given(decay=st.floats(1e-3, 0.9999), angle=angles)
@property_test
def test_every_normal_form_survives_its_poles(decay, angle):
    poles = filters.normal_form_to_poles(scalar(decay), scalar(angle))
    new_decay, new_angle = filters.poles_to_normal_form(poles)
    assert new_decay.item() == pytest.approx(decay, rel=1e-14)
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


@pytest.mark.parametrize("nan_at", [0, 1])
def test_nan_coefficients_stay_nan(nan_at):
    a = double(-0.5, 0.5)
    a[nan_at] = math.nan
    assert filters.coefficients_to_poles(a).isnan().all()
    assert filters.coefficients_to_normal_form(a)[1].isnan()
    assert filters.direct_form_impulse_response(a, 5)[2:].isnan().all()
    assert filters.direct_form_frequency_response(a, FREQUENCY).isnan().all()


def test_the_direct_form_is_the_normal_form_with_its_mix():
    a = filters.normal_form_to_coefficients(*random_normal_form((3, 5))[:2])
    decay, angle, mix = filters.direct_form_to_normal_form(a)
    torch.testing.assert_close(mix[..., 1], torch.cos(angle) / torch.sin(angle))
    torch.testing.assert_close(
        filters.normal_form_impulse_response(decay, angle, 50, mix=mix),
        filters.direct_form_impulse_response(a, 50),
    )


# Responses


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


@given(decay=decays, angle=angles, mix=st.tuples(numbers, numbers))
@property_test
def test_the_normal_form_as_sos_answers_in_scipy_as_its_recursion_does(decay, angle, mix):
    sos = filters.normal_form_to_sos(scalar(decay), scalar(angle), mix=double(*mix))
    ours = scipy.signal.sosfilt(sos[None].numpy(), np.cos(np.arange(40.0) ** 2))
    wanted = run_normal_form(decay, angle, mix, np.cos(np.arange(40.0) ** 2))
    np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-9)


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


# SciPy's second-order sections


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
    decay, angle, mix, feedthrough = filters.sos_to_normal_form(sos)
    ours = filters.normal_form_impulse_response(decay, angle, 40, mix=mix)
    ours[0] += feedthrough
    np.testing.assert_allclose(ours, scipy_impulse_response(sos, 40), rtol=1e-10, atol=1e-10)


def test_a_normal_form_survives_its_sos_row():
    decay, angle, mix = random_normal_form((3, 4))
    sos = filters.normal_form_to_sos(decay, angle, mix=mix)
    new_decay, new_angle, new_mix, feedthrough = filters.sos_to_normal_form(sos)
    torch.testing.assert_close(new_decay, decay)
    torch.testing.assert_close(new_angle, angle)
    torch.testing.assert_close(new_mix, mix)
    assert feedthrough.eq(0).all()


# Diagonal state spaces


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


# All functions


def every_result(shape, dtype):
    """Each public function's outputs, flattened, with the trailing axes it promises."""
    decay, angle, mix = random_normal_form(shape, dtype)
    b, a = random_numerator(shape, dtype), random_coefficients(shape, dtype)
    complex_a = filters.normal_form_to_coefficients(decay, angle)
    frequency = FREQUENCY.to(dtype)
    one_pole_b = b * torch.tensor([1, 1, 0], dtype=dtype)
    one_pole_a = a * torch.tensor([1, 0], dtype=dtype)
    poles = filters.normal_form_to_poles(decay, angle)
    yield filters.unconstrained_to_coefficients(b[..., :2]), (2,)
    yield filters.coefficients_to_unconstrained(a), (2,)
    yield filters.is_stable(a), ()
    yield filters.coefficients_to_poles(a), (2,)
    yield filters.poles_to_coefficients(poles), (2,)
    yield poles, (2,)
    yield complex_a, (2,)
    for value in filters.poles_to_normal_form(poles):
        yield value, ()
    for value in filters.coefficients_to_normal_form(complex_a):
        yield value, ()
    for value, tail in zip(
        filters.direct_form_to_normal_form(complex_a), ((), (), (2,)), strict=True
    ):
        yield value, tail
    yield filters.section_frequency_response(b, a, frequency), (33,)
    yield filters.direct_form_frequency_response(a, frequency), (33,)
    yield filters.normal_form_frequency_response(decay, angle, frequency, mix=mix), (33,)
    yield filters.normal_form_frequency_response(decay, angle, frequency), (33,)
    for length in (0, 1, 7):
        yield filters.section_impulse_response(b, a, length), (length,)
        yield filters.direct_form_impulse_response(a, length), (length,)
        yield filters.normal_form_impulse_response(decay, angle, length, mix=mix), (length,)
    yield filters.to_sos(b, a), (6,)
    sos = filters.normal_form_to_sos(decay, angle, mix=mix)
    yield sos, (6,)
    for value, tail in zip(filters.from_sos(sos), ((3,), (2,)), strict=True):
        yield value, tail
    for value, tail in zip(filters.sos_to_normal_form(sos), ((), (), (2,), ()), strict=True):
        yield value, tail
    for value, tail in zip(filters.state_space_to_section(*[decay] * 4), ((3,), (2,)), strict=True):
        yield value, tail
    for value in filters.section_to_state_space(one_pole_b, one_pole_a):
        yield value, ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_function_keeps_the_leading_axes_and_the_precision(shape, dtype):
    for number, (value, tail) in enumerate(every_result(shape, dtype)):
        assert value.shape == (*shape, *tail), number
        assert value.dtype in (dtype, dtype.to_complex(), torch.bool), number


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_float32_results_are_those_of_float64(shape):
    narrow, wide = every_result(shape, torch.float32), every_result(shape, torch.float64)
    for (value, _), (wanted, _) in zip(narrow, wide, strict=True):
        torch.testing.assert_close(value, wanted.to(value.dtype), rtol=2e-4, atol=2e-4)


def test_a_mix_broadcasts_over_the_leading_axes():
    decay, angle, _ = random_normal_form((2, 3, 4))
    mix = random_normal_form((4,))[2]
    spread = mix.expand(2, 3, 4, 2).clone()
    for function, *rest in (
        (filters.normal_form_to_sos,),
        (filters.normal_form_impulse_response, 9),
        (filters.normal_form_frequency_response, FREQUENCY),
    ):
        ours = function(decay, angle, *rest, mix=mix)
        torch.testing.assert_close(ours, function(decay, angle, *rest, mix=spread))


@pytest.mark.parametrize(
    ("function", "make"),
    [
        (filters.unconstrained_to_coefficients, lambda d, p, m, b, a: (b[..., :2],)),
        (filters.coefficients_to_unconstrained, lambda d, p, m, b, a: (a,)),
        (filters.coefficients_to_poles, lambda d, p, m, b, a: (a,)),
        (filters.normal_form_to_poles, lambda d, p, m, b, a: (d, p)),
        (filters.normal_form_to_coefficients, lambda d, p, m, b, a: (d, p)),
        (
            lambda d, p: filters.poles_to_normal_form(filters.normal_form_to_poles(d, p)),
            lambda d, p, m, b, a: (d, p),
        ),
        (
            lambda d, p: filters.direct_form_to_normal_form(
                filters.normal_form_to_coefficients(d, p)
            ),
            lambda d, p, m, b, a: (d, p),
        ),
        (
            lambda b, a: filters.section_frequency_response(b, a, FREQUENCY[::8]),
            lambda d, p, m, b, a: (b, a),
        ),
        (
            lambda d, p, m: filters.normal_form_frequency_response(d, p, FREQUENCY[::8], mix=m),
            lambda d, p, m, b, a: (d, p, m),
        ),
        (
            lambda b, a: filters.section_impulse_response(b, a, 6),
            lambda d, p, m, b, a: (b, a),
        ),
        (
            lambda d, p, m: filters.normal_form_impulse_response(d, p, 6, mix=m),
            lambda d, p, m, b, a: (d, p, m),
        ),
        (
            lambda d, p, m: filters.sos_to_normal_form(filters.normal_form_to_sos(d, p, mix=m)),
            lambda d, p, m, b, a: (d, p, m),
        ),
        (
            lambda d, p, m: filters.state_space_to_section(d, p, m[..., 0], m[..., 1]),
            lambda d, p, m, b, a: (d, p, m),
        ),
    ],
)
def test_gradients_are_exact(function, make):
    decay, angle, mix = random_normal_form((3,))
    arguments = make(decay, angle, mix, random_numerator((3,)), random_coefficients((3,)))
    assert gradcheck(function, [value.clone().requires_grad_() for value in arguments])


@pytest.mark.parametrize("a", [(0.0, 0.0), (-1.0, 0.25), (1.0, 0.25)])
def test_gradients_at_a_double_pole_are_finite(a):
    a = double(*a).requires_grad_()
    filters.coefficients_to_poles(a).abs().sum().backward()
    sum(filters.coefficients_to_normal_form(a)).backward()
    assert a.grad.isfinite().all()


def test_an_undamped_start_has_a_finite_gradient():
    decay = torch.zeros((), dtype=torch.float64, requires_grad=True)
    filters.normal_form_impulse_response(decay, scalar(0.3), 4).sum().backward()
    assert decay.grad.item() == pytest.approx(math.cos(0.3))


@pytest.mark.parametrize(
    ("call", "error", "complaint"),
    [
        (lambda: filters.is_stable(torch.zeros(3)), ValueError, r"a must .* 2\); got \(3,\)"),
        (lambda: filters.is_stable(torch.zeros(())), ValueError, r"a must .* got \(\)"),
        (lambda: filters.is_stable(torch.zeros(2).long()), TypeError, "a must be floating point"),
        (lambda: filters.is_stable([0.0, 0.0]), TypeError, "a must be a tensor; got list"),
        (
            lambda: filters.unconstrained_to_coefficients(torch.zeros(2), max_decay=1.5),
            ValueError,
            r"max_decay must lie in \(0, 1\]; got 1.5",
        ),
        (
            lambda: filters.normal_form_to_poles(torch.zeros(3), torch.zeros(4)),
            ValueError,
            r"angle must have the shape of decay, \(3,\); got \(4,\)",
        ),
        (
            lambda: filters.normal_form_to_poles(torch.zeros(3), torch.zeros(3).double()),
            TypeError,
            "angle must have the dtype of decay",
        ),
        (
            lambda: filters.normal_form_to_sos(
                torch.zeros(3), torch.zeros(3), mix=torch.zeros(4, 2)
            ),
            ValueError,
            r"mix must broadcast to \(3, 2\); got \(4, 2\)",
        ),
        (
            lambda: filters.normal_form_to_sos(
                torch.zeros(3), torch.zeros(3), mix=torch.zeros(2).double()
            ),
            TypeError,
            "mix must have the dtype of decay",
        ),
        (
            lambda: filters.poles_to_coefficients(torch.zeros(2)),
            TypeError,
            "poles must be a complex tensor",
        ),
        (
            lambda: filters.poles_to_coefficients(torch.zeros(3) + 0j),
            ValueError,
            r"poles must have shape \(..., 2\); got \(3,\)",
        ),
        (
            lambda: filters.to_sos(torch.zeros(4, 3), torch.zeros(5, 2)),
            ValueError,
            r"b must have the leading axes of a, \(5,\); got \(4,\)",
        ),
        (
            lambda: filters.to_sos(torch.zeros(3), torch.zeros(2).double()),
            TypeError,
            "b must have the dtype of a",
        ),
        (
            lambda: filters.direct_form_frequency_response(torch.zeros(2), torch.tensor(0.1)),
            ValueError,
            r"frequency must have one axis; got \(\)",
        ),
        (
            lambda: filters.direct_form_impulse_response(torch.zeros(2), -1),
            ValueError,
            "length must be at least 0; got -1",
        ),
        (
            lambda: filters.direct_form_impulse_response(torch.zeros(2), 2.0),
            TypeError,
            "length must be an int; got float",
        ),
        (
            lambda: filters.from_sos(np.array([[1.0, 0, 0, 0, 0, 0]])),
            ValueError,
            r"sos must have a0 .* not 0; got \[1.0, .*\] at index \(0,\)",
        ),
        (
            lambda: filters.state_space_to_section(*[torch.zeros(2)] * 3, torch.zeros(3)),
            ValueError,
            r"D must have the shape of A, \(2,\); got \(3,\)",
        ),
    ],
)
def test_a_wrong_argument_is_explained(call, error, complaint):
    with pytest.raises(error, match=complaint):
        call()
