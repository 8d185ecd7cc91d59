"""The gated filter: an associative filter whose key channels forget at rates of their own.

S[t] = diag(decay[t]) S[t-1] + k[t] v[t]^T,    y[t] = q[t]^T S[t]
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from polewise.ops._backends import usable_backend
from polewise.ops._checks import checked_lengths, require_axes, require_like, state_or_rest
from polewise.ops._products import filtered_products
from polewise.ops.nan_masking import clean_and_mark, put_back_from_then_on
from polewise.ops.padding import hide_padding
from polewise.ops.precision import without_autocast

CHUNK = 8
"""Steps whose products are taken at once; memory grows with it, key_dim numbers a pair."""


def gated_filter(
    q: Float[Tensor, "batch length heads key_dim"],
    k: Float[Tensor, "batch length heads key_dim"],
    v: Float[Tensor, "batch length heads value_dim"],
    decay: Float[Tensor, "batch length heads key_dim"],
    *,
    lengths: Int[Tensor, " batch"] | None = None,
    state: Float[Tensor, "batch heads key_dim value_dim"] | None = None,
    backend: Literal["reference", "torch", "cpu"] | None = None,
) -> tuple[
    Float[Tensor, "batch length heads value_dim"],
    Float[Tensor, "batch heads key_dim value_dim"],
]:
    r"""Filter the products $k_t v_t^\top$ with a real pole for every key channel and step.

    $$ S_t = \operatorname{diag}(\rho_t)\, S_{t-1} + k_t v_t^\top, \qquad y_t = q_t^\top S_t $$

    `associative_filter` has one pole for all channels of a head, and costs less.

    Args:
        q, k, v: queries, keys, values.
        decay: $\rho_t$, meant to lie in [0, 1]. Not checked: looking at the values would stall an
            accelerator at every call.
        lengths: real steps in each row. From there on the row's state is held and its
            output is 0.
        state: $S_{-1}$; None is empty.
        backend: "reference" is the recursion in float64, step by step; "torch" works in
            chunks of 8 steps, in float32 or wider; "cpu" is the recursion, compiled. None takes
            the fastest.

    Returns:
        y: like `v`, in its dtype.
        state: $S$ after the last real step, float32 or wider.

    Every floating argument has a gradient; "cpu" has no second one, and inside `torch.func` and
    forward-mode differentiation None takes "torch".

    Raises:
        ValueError: a shape or device is not as written above, or `backend` is unknown.
        TypeError: a dtype is not as written above.

    Source:
        Yang et al. 2024 (gated linear attention), Eq. 3, and its chunkwise form; weights inside a
        chunk as products of decays, pair by pair, ours: exact for decays of any size, 0 included.
    """
    axes = "(batch, length, heads, key_dim)"
    require_axes("q", q, axes)
    batch, length, heads, key_dim = q.shape
    require_like("k", k, (batch, length, heads, key_dim), q, axes)
    require_axes("v", v, "(batch, length, heads, value_dim)")
    value_dim = v.shape[-1]
    require_like("v", v, (batch, length, heads, value_dim), q, "(batch, length, heads, value_dim)")
    require_like("decay", decay, (batch, length, heads, key_dim), q, axes)
    shape = (batch, heads, key_dim, value_dim)
    state = state_or_rest(state, shape, q, "(batch, heads, key_dim, value_dim)")
    run = _BACKENDS[usable_backend(backend, _BACKENDS, q)]
    if length == 1 and backend is None:
        run = _step_by_step  # as in decoding: chunks or loops would cost more to call

    # Padding: no product, no decay.
    lengths = checked_lengths(lengths, q)
    decay = hide_padding(decay, lengths, fill=1)
    given, dtype = v.dtype, state.dtype
    q, k, v = (hide_padding(part, lengths).to(dtype) for part in (q, k, v))
    with without_autocast(q.device):
        y, last = run(q, k, v, decay.to(dtype), state)
    return hide_padding(y, lengths).to(given), last


def _definition(q, k, v, decay, state):
    """The recursion in float64."""
    y, last = _step_by_step(q.double(), k.double(), v.double(), decay.double(), state.double())
    return y.to(state.dtype), last.to(state.dtype)


def _step_by_step(q, k, v, decay, state):
    """The recursion, one step at a time."""
    outputs = []
    for t in range(q.shape[1]):
        product = k[:, t, :, :, None] * v[:, t, :, None, :]
        state = decay[:, t, :, :, None] * state + product
        outputs.append((q[:, t, :, None, :] @ state)[:, :, 0])
    return torch.stack(outputs, 1) if outputs else v.clone(), state


def _by_chunks(q, k, v, decay, state):
    """Inside chunks a masked product, then from chunk to chunk the state.

    Letters: b batch, h heads, n chunks, i, j steps of a chunk, k key_dim, v value_dim.
    """
    length = q.shape[1]
    if not length:
        return v.clone(), state.clone()
    (k, v, decay), marks = clean_and_mark(k, v, decay)
    q, k, v = (_chunks(part) for part in (q, k, v))
    decay = _chunks(decay, fill=1.0)

    # How much of step j is left at step i. Products of decays never overflow, where quotients of
    # long products would, and their gradients are as exact as they are.
    rows, row = [], torch.zeros_like(decay)
    steps = torch.eye(decay.shape[3], dtype=decay.dtype, device=decay.device)
    for kept, new in zip(decay.unbind(3), steps, strict=True):
        row = kept[..., None, :] * row + new[:, None]
        rows.append(row)
    left = torch.stack(rows, 3)
    weights = torch.einsum("bhnijk,bhnik->bhnij", left * k[..., None, :, :], q)

    added = (k * left[..., -1, :, :]).transpose(-1, -2) @ v
    carried = decay[..., :1, :] * left[..., :, 0, :]
    starts = []
    for kept, new in zip(carried[..., -1, :, None].unbind(2), added.unbind(2), strict=True):
        starts.append(state)
        state = kept * state + new
    y = weights @ v + (q * carried) @ torch.stack(starts, 2)
    y = y.flatten(2, 3).transpose(1, 2)[:, :length]
    return put_back_from_then_on(y, state, marks)


def _compiled(q, k, v, decay, state):
    step, skip = v.new_ones(v.shape[:3]), v.new_zeros(v.shape[2])
    y, last, _ = filtered_products(
        q, k, v, step, decay[..., None, :], skip, state[:, :, None], list(range(v.shape[2]))
    )
    return y, last[:, :, 0]


_BACKENDS = {"reference": _definition, "torch": _by_chunks, "cpu": _compiled}


def _chunks(x: Tensor, fill: float = 0.0) -> Tensor:
    """(batch, length, heads, ...) -> (batch, heads, chunks, CHUNK, ...), filled at the end."""
    chunk = min(CHUNK, x.shape[1])
    x = functional.pad(x, (*[0, 0] * (x.ndim - 2), 0, -x.shape[1] % chunk), value=fill)
    return x.unflatten(1, (-1, chunk)).movedim(3, 1)
