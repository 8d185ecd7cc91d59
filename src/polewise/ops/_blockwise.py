"""A linear recurrence with a 2 x 2 matrix at every step, without a loop over time.

    s[t] = M[t] s[t-1] + u[t]

Time is cut into blocks of 16. Inside all blocks at once, 16 steps build the sums from
rest and the products of matrices; what the blocks hand to each other is the same problem,
16 times shorter. Real arithmetic and fixed shapes throughout, so it runs on any device,
differentiates, and exports.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_BLOCK = 16


def cleared_at_bins(state: Tensor, offsets: Tensor, bin_length: int) -> Tensor:
    """States (batch, dim, 2), 0 in the rows whose next step starts a bin."""
    return torch.where((offsets % bin_length == 0)[:, None, None], 0, state)


def affine_scan(matrix: Tensor, drive: Tensor, fresh: Tensor, state: Tensor) -> Tensor:
    """All states of the recurrence.

    Args:
        matrix: M, (batch, length, dim, 2, 2).
        drive: u, (batch, length, dim, 2).
        fresh: (batch, length) bool; where True the state before the step counts as zero.
            (A zero matrix would not do: 0 * NaN is NaN.)
        state: s[-1], (batch, dim, 2).

    Returns:
        s, (batch, length, dim, 2).
    """
    # A state before a clearing is not used, so the matrix that it would meet is 0: products over
    # many clearings may overflow, and the gradient of what is put aside be 0 times infinity.
    matrix = matrix.masked_fill(fresh[..., None, None, None], 0)
    length = drive.shape[1]
    if length <= _BLOCK:
        states = []
        for t in range(length):
            state = _step(matrix[:, t], drive[:, t], fresh[:, t, None], state)
            states.append(state)
        return torch.stack(states, 1) if states else drive

    blocks = -(-length // _BLOCK)
    pad = blocks * _BLOCK - length
    identity = torch.eye(2, dtype=matrix.dtype, device=matrix.device)
    identity = identity.expand(matrix.shape[0], pad, matrix.shape[2], 2, 2)
    matrix = torch.cat([matrix, identity], 1).unflatten(1, (blocks, _BLOCK))
    drive_blocks = functional.pad(drive, (0, 0, 0, 0, 0, pad)).unflatten(1, (blocks, _BLOCK))
    fresh = functional.pad(fresh, (0, pad)).unflatten(1, (blocks, _BLOCK))

    product, total = matrix[:, :, 0], drive_blocks[:, :, 0]
    cleared = fresh[:, :, 0]
    products, totals, clears = [product], [total], [cleared]
    for t in range(1, _BLOCK):
        total = _step(matrix[:, :, t], drive_blocks[:, :, t], fresh[:, :, t, None], total)
        product = _times(matrix[:, :, t], product)
        cleared = cleared | fresh[:, :, t]
        products.append(product)
        totals.append(total)
        clears.append(cleared)

    ends = affine_scan(product, total, cleared, state)
    put_aside = torch.stack(clears, 2)[..., None, None]
    before = torch.cat([state[:, None], ends[:, :-1]], 1)[:, :, None].masked_fill(put_aside, 0)
    carried = _apply(torch.stack(products, 2), before).masked_fill(put_aside, 0)
    return (torch.stack(totals, 2) + carried).flatten(1, 2)[:, :length]


def _step(matrix: Tensor, drive: Tensor, fresh: Tensor, state: Tensor) -> Tensor:
    return _apply(matrix, state).masked_fill(fresh[..., None], 0) + drive


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix * vector[..., None, :]).sum(-1)


def _times(left: Tensor, right: Tensor) -> Tensor:
    return (left[..., :, :, None] * right[..., None, :, :]).sum(-2)


def bin_of_each_step(offsets: Tensor, length: int, bin_length: int, bins: int) -> Tensor:
    """The bin of every step of every row, (batch, length) int64."""
    time = torch.arange(length, device=offsets.device)
    return ((offsets[:, None] + time) // bin_length).clamp(max=max(bins - 1, 0))


def spread_over_steps(coefficients: Tensor, bin_index: Tensor) -> Tensor:
    """From one value a bin, (batch, bins, ...), to one a step, (batch, length, ...)."""
    rows = torch.arange(bin_index.shape[0], device=bin_index.device)[:, None]
    return coefficients[rows, bin_index]
