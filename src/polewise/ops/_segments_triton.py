"""What the Triton kernels of both filters share: time cut into segments, bins inside them.

A recursion is serial in time, and a GPU needs far more threads than there are channels. So
time is cut into segments and every program takes one segment of one row for one block of
neighbouring channels, a lane a channel:

1. run each segment from rest; it takes any state `s` before it to `transition s + end`;
2. carry the state over the segments, one cheap affine step for each;
3. run each segment again from its true state and write the outputs.

Gradients run the same way against time. Where segments are cut depends on neither the batch
nor the device, so a row has the same bits in any company, and nothing is added atomically.

A *run* is what a bin and a segment have in common: coefficients are read once a run. Run
(segment, bin) has the number `segment + bin`: from one run of a row to the next the segment
or the bin moves on, so no two runs of a row share a number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SEGMENT = 512
"""Steps in a segment, made a multiple of the bin where bins are shorter."""

AHEAD = tl.constexpr(8)
"""Steps read before the first of them is used: a memory access lasts hundreds of cycles."""

CONFIGURATIONS = [
    triton.Config({"BLOCK": block, "enable_fp_fusion": True}, num_warps=warps)
    for block, warps in ((64, 1), (32, 1), (128, 2), (128, 1))
]
if triton.knobs.runtime.interpret:  # nothing to time
    CONFIGURATIONS = CONFIGURATIONS[:1]

DYNAMIC = ["length", "bins", "bin_length", "steps", "segments"]
"""Arguments that a kernel must not be compiled for one by one."""


def on_its_device(run: Callable) -> Callable:
    """Run where the first tensor lives: Triton launches on the current device, whatever it gets."""

    @functools.wraps(run)
    def guarded(x: Tensor, *others: Any) -> Any:
        with torch.cuda.device_of(x):
            return run(x, *others)

    return guarded


def segment_steps(bin_length: int) -> int:
    """Steps in a segment: whole bins where several fit."""
    return -(-SEGMENT // bin_length) * bin_length if bin_length < SEGMENT else SEGMENT


def num_segments(length: int, bin_length: int) -> int:
    return -(-length // segment_steps(bin_length))


def channels_adjacent(x: Tensor) -> Tensor:
    """`x` itself where its channels are neighbours in memory, else a copy that is."""
    return x if x.stride(-1) == 1 else x.contiguous()


def programs(dim: int, count: int):
    """The grid of a kernel that has `count` programs for every block of channels."""
    return lambda meta: (count * triton.cdiv(dim, meta["BLOCK"]),)


def sum_runs(
    parts: Tensor, offsets: Tensor, lengths: Tensor, like: Tensor, bin_length: int, segments: int
) -> Tensor:
    """Gradients of each bin, (batch, bins, dim, 2), from those of its runs, (batch, runs, 2, dim).

    A bin's runs are added in the order of time.
    """
    batch, bins, dim, _ = like.shape
    total = torch.empty(like.shape, dtype=parts.dtype, device=parts.device)
    _sum_runs[programs(dim, batch * bins)](
        parts, offsets, lengths, total, dim, bins, bin_length, segment_steps(bin_length), segments,
        parts.stride(0), parts.stride(1),
    )  # fmt: skip
    return total


@triton.jit
def locate(dim, parts, BLOCK: tl.constexpr):
    """Row, part of the row (a segment, a bin) and channels of this program."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(dim, BLOCK)
    channels = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    return program // blocks // parts, program // blocks % parts, channels, channels < dim


@triton.jit
def extent(offsets, lengths, row, bins, bin_length):
    """The row's offset and its real steps, never beyond what the bins cover."""
    offset = tl.maximum(tl.load(offsets + row), 0)
    covered = tl.cast(bins, tl.int64) * bin_length - offset
    return offset, tl.minimum(tl.load(lengths + row), covered)


@triton.jit
def clears(first, stop, offset, bin_length):
    """Whether a bin starts in [first, stop)."""
    return (offset + first + bin_length - 1) // bin_length * bin_length - offset < stop


@triton.jit
def read_ahead(here, stride, inside, AHEAD: tl.constexpr):
    """The values of the next `AHEAD` steps; a negative stride goes back in time."""
    values = ()
    for i in tl.static_range(AHEAD):
        values = values + (tl.load(here + i * stride, mask=inside, other=0),)  # type: ignore[assignment]  # noqa: RUF005
    return values


@triton.jit
def read_pair(pair, inside):
    """Two neighbours in memory, such as the coefficients of a bin or the parts of a state."""
    return tl.load(pair, mask=inside, other=0), tl.load(pair + 1, mask=inside, other=0)


@triton.jit
def write_pair(pair, first, second, inside):
    tl.store(pair, first, mask=inside)
    tl.store(pair + 1, second, mask=inside)


@triton.jit
def write_zeros(rows, first, stop, stride, inside):
    """Padding comes out as 0. `rows` points at the row's first step."""
    here = rows + first * stride
    for _ in range(stop - first):
        tl.store(here, 0.0, mask=inside)
        here += stride


@triton.autotune(configs=CONFIGURATIONS, key=["dim"])
@triton.jit(do_not_specialize=DYNAMIC)
def _sum_runs(
    parts, offsets, lengths, total, dim: tl.constexpr, bins, bin_length, steps, segments, parts_row,
    parts_run, BLOCK: tl.constexpr,
):  # fmt: skip
    row, index, channels, inside = locate(dim, bins, BLOCK)
    offset, real = extent(offsets, lengths, row, bins, bin_length)
    first = tl.maximum(index * bin_length - offset, 0)
    stop = tl.minimum((index + 1) * bin_length - offset, real)
    first_sum = tl.zeros([BLOCK], total.dtype.element_ty)
    second_sum = tl.zeros([BLOCK], total.dtype.element_ty)
    until = tl.where(first < stop, tl.cdiv(stop, steps), 0)
    for segment in tl.range(first // steps, until, num_stages=4):
        run = parts + row * parts_row + (segment + index) * parts_run + channels
        first_sum += tl.load(run, mask=inside, other=0)
        second_sum += tl.load(run + dim, mask=inside, other=0)
    write_pair(total + ((row * bins + index) * dim + channels) * 2, first_sum, second_sum, inside)
