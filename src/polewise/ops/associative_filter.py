"""The associative filter: adaptive poles over key-value products instead of channels.

    S[t] = decay[t] e^{j angle[t]} S[t-1] + step[t] k[t] v[t]^T
    y[t] = Re(q[t]^T S[t]) + skip v[t]

A filter adds up what passed; it cannot bind a key to its value. Filtering the products
can: a query that meets its key reads the value back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from polewise.ops._backends import usable_backend
from polewise.ops._checks import (
    checked_lengths,
    require_axes,
    require_like,
    state_or_rest,
)
from polewise.ops._products import filtered_products
from polewise.ops.nan_masking import clean_and_mark, put_back_from_then_on
from polewise.ops.padding import hide_padding
from polewise.ops.precision import dtype_name, without_autocast

CHUNK = 32
"""Steps whose products are taken at once."""

LARGEST_KEY = 128
"""Widest key that a Triton kernel keeps in registers."""

SMALLEST_DECAY = 1e-30
"""Smaller ones act as this one, whose logarithm float32 still has."""

SPAN = 64
"""Chunks whose states are found at once; longer sequences go span by span."""


def associative_filter(
    q: Float[Tensor, "batch length key_heads key_dim"],
    k: Float[Tensor, "batch length key_heads key_dim"],
    v: Float[Tensor, "batch length heads value_dim"],
    decay: Float[Tensor, "batch length heads"],
    angle: Float[Tensor, "batch length heads"] | None = None,
    *,
    step: Float[Tensor, "batch length heads"] | None = None,
    skip: Float[Tensor, " heads"] | None = None,
    key_head: Sequence[int] | None = None,
    lengths: Int[Tensor, " batch"] | None = None,
    state: Float[Tensor, "batch heads parts key_dim value_dim"] | None = None,
    backend: Literal["reference", "torch", "cpu", "triton"] | None = None,
) -> tuple[
    Float[Tensor, "batch length heads value_dim"],
    Float[Tensor, "batch heads parts key_dim value_dim"],
]:
    r"""Filter the products $k_t v_t^\top$ of each head with a pole that moves at every step.

    $$ S_t = \rho_t e^{j\varphi_t} S_{t-1} + s_t k_t v_t^\top, \qquad
       y_t = \operatorname{Re}(q_t^\top S_t) + d\,v_t $$

    The same contraction as `normal_form_filter`: $|S_t| \le \rho_t |S_{t-1}| + |s_t||k_t||v_t|$.
    $\rho = 1$ is linear attention, a constant $\rho$ is RetNet's and Lightning Attention's
    decay, a moving $\rho$ with $\varphi = 0$ is gated linear attention's and Mamba-2's.

    Args:
        q, k, v: queries, keys, values. Keys of norm at most 1 keep the state bounded. One head of
            queries and keys is that of all heads; "torch" then computes their products once.
        decay: $\rho_t$, meant to lie in (0, 1]; values below 1e-30 act as 1e-30.
        angle: $\varphi_t$, radians a step; None keeps the poles real.
        step: $s_t$, how much of a product is taken in; None is 1.
        skip: $d$, how much of the values themselves is added, one number a head; None is 0.
            "cpu" multiplies and adds as it goes, and keeps nothing for either.
        key_head: for each head of `v` the head of `q` and `k` it looks up with. None: the same, or
            the only one.
        lengths: real steps in each row. From there on the row's state is held and its
            output is 0.
        state: $S_{-1}$, `parts` = 1 for real poles, 2 for complex ones (real and imaginary
            part); None is empty.
        backend: "reference" is the recursion in float64, step by step; "torch" works in
            chunks of 32 steps by matrix products, in float32 or wider; "triton" does so in
            kernels for a GPU (up to float32, keys of at most 128); "cpu" is the recursion,
            compiled. None takes the fastest.

    Returns:
        y: like `v`, in its dtype. A product that overflows may make earlier outputs of its
            chunk NaN, except with "cpu" and "reference".
        state: $S$ after the last real step, float32 or wider.

    Every floating argument has a gradient; "cpu" and "triton" have no second one, and inside
    `torch.func` and forward-mode differentiation None takes "torch". `torch.autocast` casts
    nothing here.

    Raises:
        ValueError: a shape or device is not as written above, or `backend` is unknown.
        TypeError: a dtype is not as written above.

    Source:
        Ours, after Katharopoulos et al. 2020 (linear attention), Yang et al. 2024 (gated
        linear attention, chunkwise form), Dao & Gu 2024 (Mamba-2).
    """
    axes = "(batch, length, heads, key_dim)"
    require_axes("q", q, axes)
    batch, length, _, key_dim = q.shape
    require_like("k", k, tuple(q.shape), q, axes)
    require_axes("v", v, "(batch, length, heads, value_dim)")
    heads, value_dim = v.shape[2:]
    key_head = _require_key_head(key_head, q.shape[2], heads)
    require_like("v", v, (batch, length, heads, value_dim), q, "(batch, length, heads, value_dim)")
    require_like("decay", decay, (batch, length, heads), q, "(batch, length, heads)")
    if angle is not None:
        require_like("angle", angle, (batch, length, heads), q, "(batch, length, heads)")
    if step is not None:
        require_like("step", step, (batch, length, heads), q, "(batch, length, heads)")
    if skip is not None:
        require_like("skip", skip, (heads,), q, "(heads,)")
    parts = 1 if angle is None else 2
    shape = (batch, heads, parts, key_dim, value_dim)
    state = state_or_rest(state, shape, q, "(batch, heads, parts, key_dim, value_dim)")
    given, dtype = v.dtype, state.dtype
    takes = None
    if q.dtype == torch.float64 or key_dim > LARGEST_KEY:
        takes = (
            f"up to float32 and keys of at most {LARGEST_KEY} channels; got {dtype_name(q.dtype)} "
            f"and {key_dim}"
        )
    run = _BACKENDS[usable_backend(backend, _BACKENDS, q, triton=takes)]
    if length == 1 and backend is None:
        run = _step_by_step  # as in decoding: chunks or loops would cost more to call

    # Padding: no product, no decay.
    lengths = checked_lengths(lengths, q)
    decay = hide_padding(decay, lengths, fill=1)
    angle, step = (
        None if each is None else hide_padding(each, lengths).to(dtype) for each in (angle, step)
    )
    q, k, v = (hide_padding(part, lengths) for part in (q, k, v))
    if run is not _triton:
        q, k, v = (part.to(dtype) for part in (q, k, v))
    with without_autocast(q.device):
        decay = decay.to(dtype)
        if run is _compiled:
            y, last = _compiled(q, k, v, decay, angle, step, skip, state, key_head)
        else:
            y, last = _around(run, q, k, v, decay, angle, step, skip, state, key_head)
    return hide_padding(y, lengths).to(given), last


def _around(recursion, q, k, v, decay, angle, step, skip, state, key_head):
    """Give each head its keys, multiply the values by their steps, run the recursion, add the skip;
    "cpu" does all of this as it goes."""
    if q.shape[2] > 1 and key_head != list(range(q.shape[2])):
        # Not by index: a list of them is sent to a GPU, which is waited for, at every call.
        of_q, of_k = q.unbind(2), k.unbind(2)
        q = torch.stack([of_q[head] for head in key_head], 2)
        k = torch.stack([of_k[head] for head in key_head], 2)
    # In float32 or wider, rounded once.
    taken = v if step is None else (step[..., None] * v).to(v.dtype)
    y, last = recursion(q, k, taken, decay, angle, state)
    return y if skip is None else y + skip.to(state.dtype)[:, None] * v, last


def _require_key_head(key_head: Sequence[int] | None, key_heads: int, heads: int) -> list[int]:
    if key_head is None:
        if key_heads not in (1, heads):
            raise ValueError(
                f"q and k must have the {heads} heads of v, or one for all; got {key_heads}. "
                "Otherwise say which is whose with key_head."
            )
        return list(range(heads)) if key_heads == heads else [0] * heads
    numbers = [each if isinstance(each, int) else -1 for each in key_head]
    if len(numbers) != heads or not all(0 <= each < key_heads for each in numbers):
        raise ValueError(
            f"key_head must have a number from 0 to {key_heads - 1}, a head of q and k, for each "
            f"of {heads} heads; got {list(key_head)}."
        )
    return numbers


def _definition(q, k, v, decay, angle, state):
    """The recursion in float64."""
    turn = None if angle is None else angle.double()
    y, last = _step_by_step(
        q.double(), k.double(), v.double(), decay.double(), turn, state.double()
    )
    return y.to(state.dtype), last.to(state.dtype)


def _step_by_step(q, k, v, decay, angle, state):
    """The recursion, one step at a time."""
    outputs = []
    for t in range(q.shape[1]):
        product = k[:, t, :, :, None] * v[:, t, :, None, :]
        radius = decay[:, t, :, None, None].clamp(min=SMALLEST_DECAY)
        if angle is None:
            state = (radius * state[:, :, 0] + product)[:, :, None]
        else:
            turn = angle[:, t, :, None, None]
            cosine, sine = radius * turn.cos(), radius * turn.sin()
            real, imag = state.unbind(2)
            state = torch.stack(
                [cosine * real - sine * imag + product, sine * real + cosine * imag], 2
            )
        outputs.append((q[:, t, :, None, :] @ state[:, :, 0])[:, :, 0])
    return torch.stack(outputs, 1) if outputs else v.clone(), state


def _by_chunks(q, k, v, decay, angle, state):
    """Span by span; a span is at most 64 chunks of 32 steps."""
    length = q.shape[1]
    poles = decay[..., None] if angle is None else torch.stack([decay, angle], -1)
    (k, v, poles), marks = clean_and_mark(k, v, poles)
    if not isinstance(length, int):
        # An exported program that leaves the length open has no loop over it: one span is all. A
        # slice would ask whether there is anything to cut, and hold the program to the answer.
        y, state = _span(q, k, v, poles, state)
        y = y.index_select(1, torch.arange(length, device=y.device))
        return put_back_from_then_on(y, state, marks)
    outputs = []
    for start in range(0, length, CHUNK * SPAN):
        span = slice(start, min(start + CHUNK * SPAN, length))
        y, state = _span(q[:, span], k[:, span], v[:, span], poles[:, span], state)
        outputs.append(y[:, : span.stop - start])
    if not outputs:
        return v.clone(), state.clone()
    return put_back_from_then_on(torch.cat(outputs, 1), state, marks)


def _span(q, k, v, poles, state):
    """Inside chunks a masked product, between chunks their states; y goes on to the chunk's end.

    Letters: b batch, h heads, n, m chunks, i, j steps of a chunk, k key_dim, v value_dim,
    p parts of the state (real, imaginary).
    """
    log_decay = poles[..., 0].clamp(min=SMALLEST_DECAY).log()
    q, k, v, log_decay = (_chunks(part) for part in (q, k, v, log_decay))

    # How much of step j is left at step i, and at both ends of the chunk.
    log_left = _sums_between(log_decay)
    log_before = log_decay.cumsum(-1)
    log_after = log_left[..., -1, :]
    between = log_left.exp()
    carried, kept = log_before.exp()[..., None], log_after.exp()[..., None]
    v_end, scale = v, None
    if poles.shape[-1] == 1:
        weights = (q @ k.transpose(-1, -2)) * between
        k_end, q_start = k[:, :, :, None], q[:, :, :, None]
        if k.shape[1] == v.shape[1]:
            k_end, q_start = k_end * kept[:, :, :, None], q_start * carried[:, :, :, None]
        else:  # what all heads share stays as it is, for all of them are then one product
            v_end, scale = v * kept, carried
        chunk_pole = torch.stack([log_before[..., -1], torch.zeros_like(log_before[..., -1])], -1)
    else:
        phase = _chunks(poles[..., 1])
        turned = _sums_between(phase)
        turned = turned.masked_fill(turned.isinf(), 0)
        turn_before, turn_after = phase.cumsum(-1)[..., None], turned[..., -1, :, None]
        weights = (q @ k.transpose(-1, -2)) * between * turned.cos()
        k_end = torch.stack([k * kept * turn_after.cos(), k * kept * turn_after.sin()], 3)
        q_start = torch.stack(
            [q * carried * turn_before.cos(), -q * carried * turn_before.sin()], 3
        )
        chunk_pole = torch.stack([log_before[..., -1], turn_before[..., -1, 0]], -1)

    added = torch.einsum("bhnpjk,bhnjv->bhnpkv", k_end, v_end)
    starts, last = _states_of_chunks(added, chunk_pole, state)
    read = torch.einsum("bhnpik,bhnpkv->bhniv", q_start, starts)
    y = weights @ v + (read if scale is None else scale * read)
    return y.flatten(2, 3).transpose(1, 2), last


def _triton(q, k, v, decay, angle, state):
    """The same chunks as kernels, whose masks are products too: cleaned first, marked after."""
    from polewise.ops._associative_triton import forward  # Triton is not everywhere

    q, k = (part.expand(-1, -1, v.shape[2], -1) for part in (q, k))
    poles = decay[..., None] if angle is None else torch.stack([decay, angle], -1)
    (k, v, poles), marks = clean_and_mark(k, v, poles)
    turn = None if angle is None else poles[..., 1]
    y, last, _ = forward(q, k, v, poles[..., 0], turn, state)
    return put_back_from_then_on(y, last, marks)


def _compiled(q, k, v, decay, angle, step, skip, state, key_head):
    step = torch.ones_like(decay) if step is None else step
    skip = v.new_zeros(v.shape[2]) if skip is None else skip.to(v.dtype)
    decay = decay.clamp(min=SMALLEST_DECAY)
    parts = [decay] if angle is None else [decay * angle.cos(), decay * angle.sin()]
    pole = torch.stack(parts, -1)[..., None]
    y, last, _ = filtered_products(q, k, v, step, pole, skip, state, key_head)
    return y, last


_BACKENDS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "reference": _definition, "torch": _by_chunks, "cpu": _compiled, "triton": _triton,
}  # fmt: skip


def _chunks(x: Tensor) -> Tensor:
    """(batch, length, heads, ...) -> (batch, heads, chunks, CHUNK, ...), zeros at the end.

    A zero is neutral for all: no product, a logarithm of 1, no turn.
    """
    length = x.shape[1]
    chunk = min(CHUNK, length) if isinstance(length, int) else CHUNK
    chunks = (length + chunk - 1) // chunk
    tail = [0, 0] * (x.ndim - 2)
    x = functional.pad(x, (*tail, 0, chunks * chunk - length))
    return x.unflatten(1, (chunks, chunk)).movedim(3, 1)


def _sums_between(x: Tensor) -> Tensor:
    """x[j+1] + ... + x[i] for j <= i, -inf above; summed directly, not as a difference of
    two long sums, which would lose the small ones."""
    size = x.shape[-1]
    below = torch.ones(size, size, dtype=torch.bool, device=x.device).tril(-1)
    sums = x[..., :, None].expand(*x.shape, size).masked_fill(~below, 0).cumsum(-2)
    return sums.masked_fill(~(below | below.new_ones(size).diag()), -torch.inf)


def _states_of_chunks(added: Tensor, chunk_pole: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state before every chunk and after the last, from what each chunk adds.

    The same recursion one level up: with at most 64 chunks it is one small matrix product.
    """
    added = torch.cat([state[:, :, None], added], 2)
    log_pole = functional.pad(chunk_pole, (0, 0, 1, 0))
    left = _sums_between(log_pole[..., 0]).exp()
    if added.shape[3] == 1:
        states = torch.einsum("bhnm,bhmpkv->bhnpkv", left, added)
    else:
        turned = _sums_between(log_pole[..., 1])
        turned = turned.masked_fill(turned.isinf(), 0)
        cosine, sine = left * turned.cos(), left * turned.sin()
        turn = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)
        states = torch.einsum("bhnmrp,bhmpkv->bhnrkv", turn, added)
    return states[:, :, :-1], states[:, :, -1].clone()  # a view would keep them all
