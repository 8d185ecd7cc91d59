"""Filters for the tests to draw, and the normal form run by its definition."""

import math

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from polewise import filters

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


def run_normal_form(decay, angle, mix, x):
    """The definition, step by step."""
    pole, state, outputs = decay * np.exp(1j * angle), 0j, []
    for value in x:
        state = pole * state + value
        outputs.append(mix[0] * state.real + mix[1] * state.imag)
    return np.array(outputs)
