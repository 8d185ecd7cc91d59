"""What all functions of filters keep to: shapes, precision, exact gradients, clear refusals."""

import math

import numpy as np
import pytest
import torch
from tests.filters.drawing import (
    FREQUENCY,
    double,
    random_coefficients,
    random_normal_form,
    random_numerator,
)
from torch.autograd import gradcheck

from polewise import filters

SHAPES = [(), (0,), (1,), (3,), (2, 3)]


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


@pytest.mark.parametrize("nan_at", [0, 1])
def test_nan_coefficients_stay_nan(nan_at):
    a = double(-0.5, 0.5)
    a[nan_at] = math.nan
    assert filters.coefficients_to_poles(a).isnan().all()
    assert filters.coefficients_to_normal_form(a)[1].isnan()
    assert filters.direct_form_impulse_response(a, 5)[2:].isnan().all()
    assert filters.direct_form_frequency_response(a, FREQUENCY).isnan().all()


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
