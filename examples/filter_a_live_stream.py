"""Filter sound while it arrives: blocks of any size, the state in between, no clicks.

A resonance sweeps up and down over plucked noise, like a wah pedal. Its poles change every 4 ms,
the blocks come in whatever size the source hands over, and the two have nothing to do with each
other: `offset` says where in its bin a block starts, `state` what the blocks before left behind.
At the end the blocks are compared with one pass over everything.

    python examples/filter_a_live_stream.py
    python examples/filter_a_live_stream.py --form direct --seconds 60
    python examples/filter_a_live_stream.py --wav wah.wav        # listen to it
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from polewise import direct_form_filter, normal_form_filter
from polewise.filters import normal_form_to_coefficients

RATE = 16_000
"""Samples per second."""
BIN_LENGTH = 64
"""Samples that share their poles: 4 ms."""


def source(seconds: float, seed: int) -> Iterator[Tensor]:
    """Blocks (1, samples, 1) of a string that is plucked four times a second."""
    generator = torch.Generator().manual_seed(seed)
    position, end = 0, round(seconds * RATE)
    while position < end:
        size = int(torch.randint(16, 1025, (), generator=generator))
        time_since_pluck = (torch.arange(position, min(position + size, end)) / RATE) % 0.25
        noise = torch.randn(len(time_since_pluck), generator=generator)
        yield (0.1 * noise * torch.exp(-12 * time_since_pluck))[None, :, None]
        position += size


def poles(first_bin: int, bins: int) -> tuple[Tensor, Tensor]:
    """Radius and angle for each bin, (1, bins, 1): 300 to 2400 Hz and back in two seconds."""
    seconds = torch.arange(first_bin, first_bin + bins) * BIN_LENGTH / RATE
    hertz = 300 * 8 ** (0.5 - 0.5 * torch.cos(torch.pi * seconds))
    angle = 2 * torch.pi * hertz / RATE
    decay = torch.full_like(angle, math.exp(-1 / (0.01 * RATE)))  # rings for 10 ms
    return decay[None, :, None], angle[None, :, None]


def resonate(x: Tensor, position: int, state: Tensor | None, form: str) -> tuple[Tensor, Tensor]:
    """One block that starts at sample `position`, and the state for the next."""
    offset = position % BIN_LENGTH
    bins = math.ceil((offset + x.shape[1]) / BIN_LENGTH)
    decay, angle = poles(position // BIN_LENGTH, bins)
    if form == "normal":
        # White noise in, about the same loudness out, wherever the poles are.
        mix = torch.stack([(1 - decay**2).sqrt(), torch.zeros_like(decay)], -1)
        return normal_form_filter(x, decay, angle, BIN_LENGTH, mix=mix, offset=offset, state=state)
    a = normal_form_to_coefficients(decay, angle)
    return direct_form_filter(x, a, BIN_LENGTH, offset=offset, state=state)


def write_wav(path: Path, y: Tensor) -> None:
    """16-bit mono, as loud as it goes."""
    samples = (y.flatten() / y.abs().max() * 32767).to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.numpy().tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10, help="of sound (default 10)")
    parser.add_argument(
        "--form",
        choices=("normal", "direct"),
        default="normal",
        help="normal: radius and angle, stable however the poles move (default); "
        "direct: the coefficients a1, a2 of the difference equation",
    )
    parser.add_argument("--seed", type=int, default=0, help="of sound and block sizes")
    parser.add_argument("--wav", type=Path, help="file to write, to listen to")
    options = parser.parse_args()
    if not options.seconds > 0:
        parser.error(f"--seconds must be positive; got {options.seconds}.")

    resonate(torch.zeros(1, 8, 1), 0, None, options.form)  # the first call compiles
    inputs, outputs, milliseconds = [], [], []
    position, state = 0, None
    for block in source(options.seconds, options.seed):
        began = time.perf_counter()
        y, state = resonate(block, position, state, options.form)
        milliseconds.append(1000 * (time.perf_counter() - began))
        position += block.shape[1]
        inputs.append(block)
        outputs.append(y)

    sizes = [block.shape[1] for block in inputs]
    print(f"{len(sizes)} blocks of {min(sizes)} to {max(sizes)} samples at {RATE} Hz")
    print(
        f"latency per block: median {statistics.median(milliseconds):.2f} ms, "
        f"longest {max(milliseconds):.2f} ms; {sum(milliseconds) / 1000 / options.seconds:.1%} "
        "of the time that the sound takes"
    )
    streamed = torch.cat(outputs, 1)
    whole, _ = resonate(torch.cat(inputs, 1), 0, None, options.form)
    difference = (streamed - whole).abs().max() / whole.abs().max()
    print(f"largest difference from one pass: {difference:.1e} of the loudest sample")
    if not difference < 1e-5:
        raise SystemExit("the blocks must give what one pass gives.")
    if options.wav:
        write_wav(options.wav, streamed)
        print(f"written to {options.wav}")


if __name__ == "__main__":
    main()
