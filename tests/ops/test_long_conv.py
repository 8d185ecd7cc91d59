"""Facts about the long convolution, and its kept spectrum: it saves work and changes no result."""

from __future__ import annotations

import copy
import importlib
import io

import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.drawing import Draw

from polewise.layers import RegularisedConv
from polewise.ops import KernelSpectrum, long_conv
from polewise.ops.long_conv import good_fft_length


@pytest.mark.parametrize("length", [0, 1, 17])
@pytest.mark.parametrize("taps", [1, 4, 30])
def test_the_long_convolution_equals_its_sum_and_streams(length, taps):
    draw = Draw()
    x, kernel = draw.normal(2, length, 3), draw.normal(taps, 3)
    state, lengths = draw.normal(2, taps - 1, 3), torch.tensor([length, length // 2])
    ours = long_conv(x, kernel, lengths=lengths, state=state)
    wanted = long_conv(x, kernel, lengths=lengths, state=state, backend="reference")
    torch.testing.assert_close(ours, wanted)
    whole, end = long_conv(x, kernel, state=state)
    left, middle = long_conv(x[:, : length // 3], kernel, state=state)
    right, last = long_conv(x[:, length // 3 :], kernel, state=middle)
    torch.testing.assert_close(torch.cat([left, right], 1), whole)
    assert torch.equal(last, end)


def test_the_long_convolution_equals_scipy():
    draw = Draw()
    x, kernel = draw.normal(1, 100, 1), draw.normal(30, 1)
    wanted = scipy.signal.lfilter(kernel[:, 0].numpy(), [1], x[0, :, 0].numpy())
    torch.testing.assert_close(long_conv(x, kernel)[0][0, :, 0], torch.as_tensor(wanted))


@given(at_least=st.integers(1, 5000))
@settings(deadline=None)
def test_fft_lengths_are_smooth_and_the_smallest(at_least):
    def smooth(n):
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    assert good_fft_length(at_least) == next(n for n in range(at_least, 10**4) if smooth(n))


@pytest.fixture
def transforms(monkeypatch):
    """Counts the transforms of kernels."""
    module = importlib.import_module("polewise.ops.long_conv")
    counted = []
    transform = module._spectrum
    monkeypatch.setattr(module, "_spectrum", lambda *given: counted.append(1) or transform(*given))
    return counted


def test_a_kept_spectrum_is_computed_once_and_changes_no_bit(transforms):
    draw, spectrum = Draw(), KernelSpectrum()
    kernel = draw.normal(20, 3)
    for _ in range(3):
        x = draw.normal(2, 50, 3)
        assert torch.equal(long_conv(x, kernel, spectrum=spectrum)[0], long_conv(x, kernel)[0])
    assert len(transforms) == 1 + 3


def add_in_place(layer):
    with torch.no_grad():
        layer.kernel += 0.1


def write_past_the_version_counter(layer):
    layer.kernel.data[0, 0] += 0.1


def exchange_the_memory(layer):
    layer.kernel.data = layer.kernel.data.flip(0)


def step_an_optimizer(layer):
    layer.kernel.grad = torch.ones_like(layer.kernel)
    torch.optim.SGD([layer.kernel], lr=0.1).step()


def load_another(layer):
    torch.manual_seed(1)
    layer.load_state_dict(RegularisedConv(3, 20).state_dict())


def narrow_and_widen(layer):
    layer.bfloat16().float()


def raise_the_threshold(layer):
    layer.threshold = 0.05


@pytest.mark.parametrize(
    "change",
    [
        add_in_place, write_past_the_version_counter, exchange_the_memory, step_an_optimizer,
        load_another, narrow_and_widen, raise_the_threshold,
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_changed_kernel_is_never_answered_with_an_old_spectrum(change, mode):
    torch.manual_seed(0)
    layer, x = RegularisedConv(3, 20), Draw().normal(2, 50, 3).float()
    with mode():
        before, _ = layer(x)
    change(layer)
    with mode():
        after, _ = layer(x)
        afresh, _ = copy.deepcopy(layer)(x)
    assert not torch.equal(after, before)
    assert torch.equal(after, afresh)


def test_lengths_may_change_from_call_to_call():
    draw, spectrum, state = Draw(), KernelSpectrum(), None
    x, kernel = draw.normal(1, 90, 2), draw.normal(30, 2)
    whole, _ = long_conv(x, kernel)
    outputs = []
    for piece in x.split([40, 7, 40, 3], 1):
        y, state = long_conv(piece, kernel, state=state, spectrum=spectrum)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), whole)


def test_gradients_are_those_of_the_kernel_as_it_is():
    torch.manual_seed(0)
    layer, x = RegularisedConv(3, 20).double(), Draw().normal(2, 50, 3)
    with torch.inference_mode():
        layer(x)
    layer(x)[0].square().sum().backward()
    by_kernel = layer.kernel.grad.clone()
    layer.kernel.grad = None
    layer.spectrum = KernelSpectrum()
    layer(x)[0].square().sum().backward()
    assert torch.equal(layer.kernel.grad, by_kernel)
    # A frozen kernel's spectrum was found without gradients; those of x still pass.
    layer.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    with torch.inference_mode():
        layer(x)
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], leaf)


def test_copies_and_files_go_without_the_spectrum():
    torch.manual_seed(0)
    layer, x = RegularisedConv(3, 20), Draw().normal(2, 50, 3).float()
    fresh, used = io.BytesIO(), io.BytesIO()
    torch.save(layer, fresh)
    with torch.no_grad():
        expected, _ = layer(x)
    torch.save(layer, used)
    assert used.getvalue() == fresh.getvalue()
    used.seek(0)
    with torch.no_grad():
        assert torch.equal(torch.load(used, weights_only=False)(x)[0], expected)
