"""The filters and what they are measured beside, as calls on the same input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import scipy.signal
import torch
from torch import Tensor
from torch.nn import functional

from polewise.ops import direct_form_filter, normal_form_filter

FLOOR = "x.clone()"


@dataclasses.dataclass(frozen=True)
class System:
    """One row of the table: a name, what it does, and the call that is timed."""

    name: str
    note: str
    call: Callable[[], object]
    moved: int | None = None
    """Fewest bytes that the work can read and write, where it is memory's work."""


@dataclasses.dataclass(frozen=True)
class Work:
    """The same input for all: `decay` and `angle` are the poles, `a` their coefficients."""

    x: Tensor
    grad: Tensor
    decay: Tensor
    angle: Tensor
    a: Tensor
    bin_length: int


def make_work(batch: int, length: int, dim: int, bin_length: int, seed: int) -> Work:
    """Random sequences and poles of radius 0.3 to 0.9, all angles."""
    generator = torch.Generator().manual_seed(seed)
    bins = -(-length // bin_length)
    x = torch.randn(batch, length, dim, generator=generator)
    grad = torch.randn(batch, length, dim, generator=generator)
    decay = 0.3 + 0.6 * torch.rand(batch, bins, dim, generator=generator)
    angle = torch.pi * torch.rand(batch, bins, dim, generator=generator)
    a = torch.stack([-2 * decay * torch.cos(angle), decay**2], -1)
    return Work(x, grad, decay, angle, a, bin_length)


def forward_and_backward(
    run: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """A call that filters and returns the gradient of every input."""
    leaves = tuple(value.detach().requires_grad_() for value in inputs)
    return lambda: torch.autograd.grad(run(*leaves), leaves, grad)


def fft_filter(x: Tensor, a: Tensor, bin_length: int, points: int, conjugate: bool) -> Tensor:
    """The published form: every bin times the sampled response, in frequency."""
    bins = x.unflatten(1, (-1, bin_length))
    delay = torch.exp(-2j * torch.pi * torch.arange(points // 2 + 1) / points)[:, None]
    a1, a2 = a.unsqueeze(2).unbind(-1)
    response = 1 / (1 + a1 * delay + a2 * delay**2)
    response = response.conj() if conjugate else response
    spectrum = torch.fft.rfft(bins, points, dim=2) * response
    return torch.fft.irfft(spectrum, points, dim=2)[:, :, :bin_length].flatten(1, 2)


def to_torchlpc(x: Tensor, a: Tensor, bin_length: int) -> tuple[Tensor, Tensor]:
    """One row a channel, one pair of coefficients a sample, as torchlpc wants them."""
    rows = x.transpose(1, 2).flatten(0, 1)
    per_sample = a.transpose(1, 2).flatten(0, 1).repeat_interleave(bin_length, 1)
    return rows, per_sample[:, : x.shape[1]]


def from_torchlpc(rows: Tensor, batch: int) -> Tensor:
    return rows.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()


def our_systems(work: Work) -> Iterator[System]:
    x, a, bin_length = work.x, work.a, work.bin_length
    out = torch.empty_like(x)

    def direct(x: Tensor, a: Tensor) -> Tensor:
        return direct_form_filter(x, a, bin_length)[0]

    def normal(x: Tensor, decay: Tensor, angle: Tensor) -> Tensor:
        return normal_form_filter(x, decay, angle, bin_length)[0]

    poles = (work.decay, work.angle)
    once, both = 2 * x.nbytes + a.nbytes, 5 * x.nbytes + 3 * a.nbytes
    yield System(FLOOR, "the floor: read, write fresh memory", x.clone, 2 * x.nbytes)
    yield System("out.copy_(x)", "memory that is there already", lambda: out.copy_(x), 2 * x.nbytes)
    yield System("direct_form_filter, forward", "ours", lambda: direct(x, a), once)
    yield System(
        "direct_form_filter, forward + backward",
        "ours, gradients of x and a",
        forward_and_backward(direct, (x, a), work.grad),
        both,
    )
    yield System("normal_form_filter, forward", "ours", lambda: normal(x, *poles), once)
    yield System(
        "normal_form_filter, forward + backward",
        "ours, gradients of x, decay and angle",
        forward_and_backward(normal, (x, *poles), work.grad),
        both,
    )


def torchlpc_systems(work: Work) -> Iterator[System]:
    from torchlpc import sample_wise_lpc

    batch = work.x.shape[0]
    rows, per_sample = (
        value.contiguous() for value in to_torchlpc(work.x, work.a, work.bin_length)
    )
    row_grad = work.grad.transpose(1, 2).flatten(0, 1).contiguous()

    def converted(x: Tensor, a: Tensor) -> Tensor:
        return from_torchlpc(sample_wise_lpc(*to_torchlpc(x, a, work.bin_length)), batch)

    yield System(
        "torchlpc, forward",
        "its own layout, made beforehand",
        lambda: sample_wise_lpc(rows, per_sample),
    )
    yield System(
        "torchlpc, forward + backward",
        "its own layout; gradients of every sample's a",
        forward_and_backward(sample_wise_lpc, (rows, per_sample), row_grad),
    )
    yield System(
        "torchlpc, from our layout, forward",
        "transpose and repeat included",
        lambda: converted(work.x, work.a),
    )
    yield System(
        "torchlpc, from our layout, forward + backward",
        "gradients of x and of each bin's a",
        forward_and_backward(converted, (work.x, work.a), work.grad),
    )


def other_systems(work: Work) -> Iterator[System]:
    x, a, bin_length = work.x, work.a, work.bin_length
    if x.shape[1] % bin_length == 0:
        yield System(
            "FFT in each bin, circular",
            "as published: conjugate, not causal, forward",
            lambda: fft_filter(x, a, bin_length, bin_length, conjugate=True),
        )
        yield System(
            "FFT in each bin, zero-padded",
            "twice the points, nearly linear, forward",
            lambda: fft_filter(x, a, bin_length, 2 * bin_length, conjugate=False),
        )
    fixed = [1.0, *a[0, 0, 0].tolist()]
    # As float32, or SciPy would filter in float64.
    denominator, signal = torch.tensor(fixed).numpy(), x.numpy()
    numerator = torch.ones(1).numpy()
    yield System(
        "scipy.signal.lfilter",
        "one fixed pair for all, one thread, forward",
        lambda: scipy.signal.lfilter(numerator, denominator, signal, axis=1),
    )


def moving_average(x: Tensor, decay: Tensor, weight: Tensor) -> Tensor:
    """MEGA's damped average as it is published: the sum of 16 exponentials a channel as one
    kernel, by FFT. `decay` and `weight` (memories, dim)."""
    length = x.shape[1]
    time = torch.arange(length)[:, None, None]
    kernel = (weight * (decay.log() * time).exp()).sum(1)
    spectrum = torch.fft.rfft(x, 2 * length, dim=1) * torch.fft.rfft(kernel, 2 * length, dim=0)
    return torch.fft.irfft(spectrum, 2 * length, dim=1)[:, :length]


def average_systems(work: Work) -> Iterator[System]:
    draw = torch.Generator().manual_seed(1)
    decay, weight = (torch.rand(16, work.x.shape[2], generator=draw) for _ in range(2))
    note = "16 exponentials a channel, the same at all times"
    yield System(
        "MEGA's average by FFT, forward", note, lambda: moving_average(work.x, decay, weight)
    )
    yield System(
        "MEGA's average by FFT, forward + backward",
        note,
        forward_and_backward(moving_average, (work.x, decay, weight), work.grad),
    )


def scan_systems(work: Work) -> Iterator[System]:
    """Transformers' selective scan as it runs without CUDA: a loop over time in Python."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    batch, length, dim = work.x.shape
    draw = torch.Generator().manual_seed(1)
    step = torch.rand(batch, dim, length, generator=draw)
    poles = -torch.rand(dim, 16, generator=draw)
    into, out = (torch.randn(batch, 16, length, generator=draw) for _ in range(2))
    x = work.x.transpose(1, 2).contiguous()
    yield System(
        "transformers' Mamba scan, forward",
        "16 states a channel, a loop over time",
        lambda: mamba_selective_scan(x, step, poles, into, out),
    )


def attention_systems(work: Work) -> Iterator[System]:
    """One head for every 64 channels."""

    def attend(x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (-1, min(64, x.shape[-1]))).transpose(1, 2)
        y = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        return y.transpose(1, 2).flatten(2)

    note = "causal, x as queries, keys and values"
    yield System("SDPA, forward", note, lambda: attend(work.x))
    yield System(
        "SDPA, forward + backward", note, forward_and_backward(attend, (work.x,), work.grad)
    )


def loop_systems(work: Work) -> Iterator[System]:
    x, a = work.x.double(), work.a.double()
    yield System(
        "float64 loop, forward",
        "the definition, step by step in Python",
        lambda: direct_form_filter(x, a, work.bin_length, backend="reference"),
    )
