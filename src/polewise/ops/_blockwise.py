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


def affine_scan(matrix: Tensor, drive: Tensor, cleared: Tensor, state: Tensor) -> Tensor:
    """All states of the recurrence.

    Args:
        matrix: M, (batch, length, dim, 2, 2).
        drive: u, (batch, length, dim, 2).
        cleared: (batch, length) bool; where True the state before the step counts as zero.
            (A zero matrix would not do: 0 * NaN is NaN.)
        state: s[-1], (batch, dim, 2).

    Returns:
        s, (batch, length, dim, 2).
    """
    # A state before a clearing is not used, so the matrix that it would meet is 0: products over
    # many clearings may overflow, and the gradient of what is put aside be 0 times infinity.
    matrix = matrix.masked_fill(cleared[..., None, None, None], 0)
    length = drive.shape[1]
    if length <= _BLOCK:
        states = []
        for t in range(length):
            state = _step(matrix[:, t], drive[:, t], cleared[:, t, None], state)
            states.append(state)
        return torch.stack(states, 1) if states else drive

    blocks = -(-length // _BLOCK)
    pad = blocks * _BLOCK - length
    identity = torch.eye(2, dtype=matrix.dtype, device=matrix.device)
    identity = identity.expand(matrix.shape[0], pad, matrix.shape[2], 2, 2)
    matrix = torch.cat([matrix, identity], 1).unflatten(1, (blocks, _BLOCK))
    drive_blocks = functional.pad(drive, (0, 0, 0, 0, 0, pad)).unflatten(1, (blocks, _BLOCK))
    cleared = functional.pad(cleared, (0, pad)).unflatten(1, (blocks, _BLOCK))

    product, total = matrix[:, :, 0], drive_blocks[:, :, 0]
    any_so_far = cleared[:, :, 0]
    products, totals, clears = [product], [total], [any_so_far]
    for t in range(1, _BLOCK):
        total = _step(matrix[:, :, t], drive_blocks[:, :, t], cleared[:, :, t, None], total)
        product = _times(matrix[:, :, t], product)
        any_so_far = any_so_far | cleared[:, :, t]
        products.append(product)
        totals.append(total)
        clears.append(any_so_far)

    ends = affine_scan(product, total, any_so_far, state)
    put_aside = torch.stack(clears, 2)[..., None, None]
    before = torch.cat([state[:, None], ends[:, :-1]], 1)[:, :, None].masked_fill(put_aside, 0)
    carried = _apply(torch.stack(products, 2), before).masked_fill(put_aside, 0)
    return (torch.stack(totals, 2) + carried).flatten(1, 2)[:, :length]


def _step(matrix: Tensor, drive: Tensor, cleared: Tensor, state: Tensor) -> Tensor:
    return _apply(matrix, state).masked_fill(cleared[..., None], 0) + drive


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix * vector[..., None, :]).sum(-1)


def _times(left: Tensor, right: Tensor) -> Tensor:
    return (left[..., :, :, None] * right[..., None, :, :]).sum(-2)
