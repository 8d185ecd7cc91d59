"""Facts about the published filter, which is circular."""

from __future__ import annotations

import pytest
import torch
from tests.ops.drawing import Draw

from polewise.ops import circular_filter, direct_form_filter


def test_the_published_filter_sees_the_future_and_without_conjugate_and_wrap_it_does_not():
    draw = Draw()
    x, a = draw.normal(1, 32, 1), 0.6 * draw.stable(1, 2, 1)

    def ahead(**options):
        jacobian = torch.autograd.functional.jacobian(
            lambda x: circular_filter(x, a, 16, **options)[0, :, 0], x
        )
        return jacobian[:, 0, :, 0].triu(1).abs().max()

    assert ahead() > 0.1
    assert ahead(conjugate=False) > 1e-4
    assert ahead(conjugate=False, fft_length=2048) < 1e-12
    exact, _ = direct_form_filter(x, a, 16, reset=True)
    padded = circular_filter(x, a, 16, conjugate=False, fft_length=2048)
    torch.testing.assert_close(padded, exact)


def test_the_published_filter_is_a_circular_correlation_with_the_response():
    """y[t] = sum_n h[n] x[(t + n) mod R] in every bin: h is the impulse response, n its delay."""
    draw = Draw()
    x, a = draw.normal(1, 32, 1), 0.6 * draw.stable(1, 2, 1)
    y = circular_filter(x, a, 16)
    for number in range(2):
        a1, a2 = a[0, number, 0].tolist()
        h = [1.0, -a1]
        for _ in range(500):
            h.append(-a1 * h[-1] - a2 * h[-2])
        values = x[0, 16 * number : 16 * (number + 1), 0].tolist()
        expected = [sum(h[n] * values[(t + n) % 16] for n in range(len(h))) for t in range(16)]
        got = y[0, 16 * number : 16 * (number + 1), 0]
        torch.testing.assert_close(got, torch.tensor(expected, dtype=x.dtype))


def test_coefficients_of_another_shape_are_named():
    x = torch.zeros(2, 8, 3)
    for a in (torch.zeros(2), torch.zeros(2, 1, 3), torch.zeros(2, 1, 3, 1)):
        with pytest.raises(ValueError, match="a must have"):
            circular_filter(x, a, 8)


def test_a_transform_shorter_than_a_bin_is_refused():
    with pytest.raises(ValueError, match="fft_length must be at least bin_length; got 7"):
        circular_filter(torch.zeros(2, 8, 3), torch.zeros(2, 1, 3, 2), 8, fft_length=7)
