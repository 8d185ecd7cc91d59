"""The long convolution, whole and in a stream: a part of `filters.py`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from filter_systems import System, forward_and_backward
from interleaved import measure, ratio
from polewise.ops import KernelSpectrum, long_conv
from shared import spread

DIM = 256
SEGMENTS = (1, 16, 256)
TEXTBOOK = "FFT of twice the length"


def convolution(options: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of one system: milliseconds, and times those of the textbook's; of a stream
    microseconds a step."""
    length = max(options.length // 2, SEGMENTS[-1])
    generator = torch.Generator().manual_seed(options.seed)
    x, kernel, grad = (torch.randn(1, length, DIM, generator=generator) for _ in range(3))
    kernel = kernel[0] / length**0.5
    with torch.no_grad():
        ours, theirs = long_conv(x, kernel)[0], _textbook(x, kernel)
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    if not error < 1e-4:
        raise SystemExit(f"long_conv and the textbook differ by {error:.1e} of the largest value.")
    whole, streams = list(_whole(x, kernel, grad)), dict(_streams(x, kernel))
    times = measure([*whole, *streams.values()], options.rounds)
    rows = []
    for steps, system in [*((length, each) for each in whole), *streams.items()]:
        taken = spread([1e3 * each for each in times[system.name] if each is not None])
        work = system.name.partition(", ")[2]
        over = ratio(times, system.name, f"{TEXTBOOK}, {work}")["median"] if work else ""
        rows.append(
            {
                "system": system.name, "note": system.note, "taps": length, "dim": DIM,
                "steps": steps, "median_ms": taken["median"], "low_ms": taken["low"],
                "high_ms": taken["high"], "us_a_step": 1e3 * taken["median"] / steps,
                "over_textbook": over,
            }
        )  # fmt: skip
    return rows


def _whole(x: Tensor, kernel: Tensor, grad: Tensor) -> Iterator[System]:
    kept = KernelSpectrum()

    def ours(x: Tensor, kernel: Tensor) -> Tensor:
        return long_conv(x, kernel)[0]

    for name, run in ((TEXTBOOK, _textbook), ("long_conv", ours)):
        yield System(f"{name}, forward", "", partial(run, x, kernel))
        both = forward_and_backward(run, (x, kernel), grad)
        yield System(f"{name}, forward + backward", "", both)
    call = partial(long_conv, x, kernel, spectrum=kept)
    yield System("long_conv(spectrum=), forward", "the kernel's transform kept", call)


def _streams(x: Tensor, kernel: Tensor) -> Iterator[tuple[int, System]]:
    """Segments of so many steps, after one as long as the kernel."""
    _, state = long_conv(x, kernel)
    for steps in SEGMENTS:
        call = partial(long_conv, x[:, :steps], kernel, state=state, spectrum=KernelSpectrum())
        name, note = f"a stream in segments of {steps}", "the kernel's transform kept"
        yield steps, System(name, note, call)


def _textbook(x: Tensor, kernel: Tensor) -> Tensor:
    size = 2 * x.shape[1]
    spectrum = torch.fft.rfft(x, size, dim=1) * torch.fft.rfft(kernel, size, dim=0)
    return torch.fft.irfft(spectrum, size, dim=1)[:, : x.shape[1]]
