"""Facts about Hyena and the long convolutions: they are the published sums."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional

from polewise.mixers import HyenaConfig, LongConvConfig
from polewise.ops import long_conv


def convolved(x, kernel):
    """Tap by tap."""
    y = torch.zeros_like(x)
    for tap in range(min(len(kernel), x.shape[1])):
        y[:, tap:] += kernel[tap] * x[:, : x.shape[1] - tap]
    return y


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_long_convolution_is_the_published_sum():
    torch.manual_seed(0)
    mixer = LongConvConfig(dim=4, taps=9, kernels=3, squash=0.01).build().double()
    x = drawn(2, 30, 4)
    parts = []
    for convolution in mixer.convolutions:
        h = convolution.kernel
        squashed = torch.where(h > 0.01, h - 0.01, torch.where(h < -0.01, h + 0.01, 0))
        parts.append(convolved(x, squashed) + convolution.skip * x)
    values, gate = mixer.to_output(functional.gelu(torch.cat(parts, -1))).chunk(2, -1)
    torch.testing.assert_close(mixer(x)[0], values * gate.sigmoid(), rtol=1e-9, atol=1e-9)


def test_hyena_is_the_published_order_two():
    torch.manual_seed(0)
    mixer = HyenaConfig(dim=4, taps=12, hidden=6, bands=3).build().double()
    x = drawn(2, 30, 4)
    mixed = convolved(mixer.to_gates_value(x), mixer.short_conv.kernel) + mixer.short_conv.bias
    u, w, v = mixed.split(4, -1)
    z = w * v
    expected = mixer.to_output(u * (convolved(z, mixer.kernel()) + mixer.skip * z))
    torch.testing.assert_close(mixer(x)[0], expected, rtol=1e-9, atol=1e-9)


def test_hyena_starts_as_published():
    """Small and smooth kernels, gates near constants."""
    torch.manual_seed(0)
    mixer = HyenaConfig(dim=128, taps=512).build()
    for linear in (mixer.to_gates_value, mixer.to_output, *mixer.kernel.layers):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.2)
        assert linear.bias is None or not linear.bias.any()
    for part in (mixer.short_conv.kernel, mixer.short_conv.bias):
        assert part.abs().max() <= 3**-0.5
        assert part.std().item() == pytest.approx(1 / 3, rel=0.1)
    kernel = mixer.kernel()
    assert kernel.abs().max() < 0.5
    assert (kernel[1:] - kernel[:-1]).abs().max() < 0.02


def test_the_kernel_of_hyena_is_a_function_of_the_time_alone():
    """Number by number, at one tap and channel."""
    torch.manual_seed(0)
    kernel = HyenaConfig(dim=4, taps=12, hidden=6, bands=3).build().kernel.double()
    tap, channel = 5, 2
    angles = [
        2 * math.pi * tap / 12 * band
        for band in torch.linspace(1e-4, 2, 3, dtype=torch.float64).tolist()
    ]
    read = [tap / 11, *map(math.cos, angles), *(-math.sin(angle) for angle in angles)]
    h = torch.tensor(read, dtype=torch.float64)
    for layer in kernel.layers[:-1]:
        h = torch.sin(kernel.sharpness * (layer.weight @ h + layer.bias))
    slow, fast = math.log(1e-2) / 1.5, math.log(1e-2) / 0.3
    fading = abs(slow + (fast - slow) * channel / 3)
    expected = (kernel.layers[-1].weight @ h)[channel] * math.exp(-tap / 11 * fading)
    torch.testing.assert_close(kernel()[tap, channel], expected, rtol=1e-6, atol=1e-9)


def test_the_kernel_of_hyena_counts_its_taps_in_any_precision():
    """bfloat16 counts to 256: later taps would share their time with their neighbours."""
    torch.manual_seed(0)
    kernel = HyenaConfig(dim=4, taps=1000).build().kernel.bfloat16()
    exact = copy.deepcopy(kernel).double()()
    torch.testing.assert_close(kernel().double(), exact, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(kernel.float()().double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("taps", [1, 2, 40])
def test_a_single_step_of_a_long_convolution_is_the_sum_itself(taps):
    x, kernel = drawn(2, 30, 3), drawn(taps, 3)
    _, state = long_conv(x[:, :-1], kernel)
    y, after = long_conv(x[:, -1:], kernel, state=state)
    whole, end = long_conv(x, kernel)
    torch.testing.assert_close(y, whole[:, -1:], rtol=1e-10, atol=1e-10)
    assert torch.equal(after, end)


def test_a_hyena_writes_its_kernel_once_until_it_changes(monkeypatch):
    torch.manual_seed(0)
    mixer, x = HyenaConfig(dim=4, taps=9).build(), torch.randn(1, 20, 4)
    written = []
    write = type(mixer.kernel)._write
    monkeypatch.setattr(type(mixer.kernel), "_write", lambda k: written.append(1) or write(k))
    with torch.no_grad():
        before, state = mixer(x)
        for _ in range(3):
            _, state = mixer(x[:, :1], state)
        assert len(written) == 1
        mixer.kernel.layers[0].weight.data += 0.1
        after, _ = mixer(x)
        assert len(written) == 2
        afresh, _ = copy.deepcopy(mixer)(x)
    assert not torch.equal(after, before)
    assert torch.equal(after, afresh)
    mixer(x)[0].sum().backward()
    assert mixer.kernel.sharpness.grad is not None
