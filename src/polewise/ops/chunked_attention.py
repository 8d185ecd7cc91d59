"""Local attention: every token looks at its own chunk, or at its last `chunk_length` tokens.

    y[i] = sum_j softmax_j(q[i] . k[j] / sqrt(head_dim) + bias[i - j]) v[j]

over the visible j. Both kinds of window are one band: token i sees j in (i - width[i], i],
with width = the position in the chunk + 1, or the whole chunk length when it slides.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from polewise.ops._backends import usable_backend
from polewise.ops._checks import (
    require_axes,
    require_like,
    require_positive,
    require_rows,
)
from polewise.ops.nan_masking import clean_and_mark, put_back
from polewise.ops.padding import hide_padding, newest, real_steps
from polewise.ops.softmax_attention import softmax_attention


class WindowState(NamedTuple):
    """What the next segment can still see. Batch first; its size never grows."""

    keys: Float[Tensor, "batch chunk heads head_dim"]
    """The last `chunk_length` keys, newest last."""
    values: Float[Tensor, "batch chunk heads value_dim"]
    position: Int[Tensor, " batch"]
    """Tokens seen so far by each row."""


def chunked_attention(
    q: Float[Tensor, "batch length heads head_dim"],
    k: Float[Tensor, "batch length heads head_dim"],
    v: Float[Tensor, "batch length heads value_dim"],
    chunk_length: int,
    *,
    bias: Float[Tensor, "heads distances"] | None = None,
    causal: bool = True,
    sliding: bool = False,
    lengths: Int[Tensor, " batch"] | None = None,
    state: WindowState | None = None,
    backend: Literal["reference", "torch"] | None = None,
) -> tuple[Float[Tensor, "batch length heads value_dim"], WindowState | None]:
    r"""Softmax attention inside chunks of $M$ tokens.

    $$ y_i = \sum_{j \in V(i)} \operatorname{softmax}_j\!\left(
       \frac{q_i \cdot k_j}{\sqrt{d}} + b_{i-j} \right) v_j $$

    with $V(i)$ the tokens of i's chunk up to i; all of the chunk without `causal`; the last
    $M$ tokens with `sliding`. Chunks are counted from each row's first token.

    Args:
        q, k, v: queries, keys, values.
        chunk_length: $M$.
        bias: $b$, added to the logits by distance: entry d is for $i - j = d$ when causal
            (`distances` = M), entry $M - 1 + i - j$ otherwise (`distances` = 2M - 1).
        causal: hide later tokens.
        sliding: look back over the chunk's edge, $M$ tokens in all. Needs `causal`.
        lengths: real tokens in each row; later ones are not seen and give 0.
        state: what the segment before returned; None at the start. Needs `causal`.
        backend: "reference" is the sum in float64, token by token; "torch" uses
            `scaled_dot_product_attention`.

    Returns:
        y: like `v`, in its dtype. A product of query and key that overflows may make earlier
            outputs of its chunk NaN.
        state: for the next segment; None without `causal`.

    Raises:
        ValueError: a shape or device is not as written above, or `sliding` or a state
            without `causal`.
        TypeError: a dtype or the state is not as written above.

    Source:
        Ma et al. 2023 (MEGA-chunk); Lutati et al. 2023, Eq. 9-10; the exact state is ours.
    """
    axes = "(batch, length, heads, head_dim)"
    require_axes("q", q, axes)
    batch, length, heads, head_dim = q.shape
    require_like("k", k, (batch, length, heads, head_dim), q, axes)
    require_axes("v", v, "(batch, length, heads, value_dim)")
    shape = (batch, length, heads, v.shape[-1])
    require_like("v", v, shape, q, "(batch, length, heads, value_dim)")
    require_positive("chunk_length", chunk_length, "tokens")
    if bias is not None:
        distances = chunk_length if causal else 2 * chunk_length - 1
        require_like("bias", bias, (heads, distances), q, "(heads, distances)")
    if not causal and (sliding or state is not None):
        raise ValueError(
            "causal must be True for a sliding window or a state; got causal=False with "
            f"sliding={sliding} and {'a' if state is not None else 'no'} state."
        )
    run = _BACKENDS[usable_backend(backend, _BACKENDS, q)]
    given, wide = v.dtype, torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    q, k, v = (part.to(wide) for part in (q, k, v))
    steps = real_steps(q, lengths)
    lengths = None if lengths is None else steps
    # Padding may be anything, and 0 times infinity is NaN.
    q, k, v = (hide_padding(part, lengths) for part in (q, k, v))
    if not causal:
        y = run(q, k, v, chunk_length, bias, steps, None, sliding, False)
        return hide_padding(y, lengths).to(given), None

    if state is None:
        before = _empty_state(k, v, chunk_length)
    elif not isinstance(state, WindowState):
        raise TypeError(f"state must be a WindowState; got {type(state).__name__}.")
    else:
        # One that was begun under autocast, or outside of it, goes on in the precision of now.
        keys, values = (
            kept.to(now.dtype) if isinstance(kept, Tensor) and kept.is_floating_point() else kept
            for kept, now in ((state.keys, k), (state.values, v))
        )
        kept = (batch, chunk_length, heads)
        axes = "(batch, chunk_length, heads, {})"
        require_like("state.keys", keys, (*kept, head_dim), q, axes.format("head_dim"))
        require_like("state.values", values, (*kept, v.shape[-1]), q, axes.format("value_dim"))
        require_rows("state.position", state.position, q)
        before = WindowState(keys, values, state.position)
    after = WindowState(
        newest(before.keys, k, lengths), newest(before.values, v, lengths), before.position + steps
    )
    if length == 1 and backend is None:
        y = _one_step(q, after, chunk_length, bias, sliding)
        return hide_padding(y, lengths).to(given), after
    # Nothing to look back at: own chunk only, half the work.
    looks_back = before if sliding or state is not None else None
    y = run(q, k, v, chunk_length, bias, steps, looks_back, sliding, True)
    return hide_padding(y, lengths).to(given), after


def _empty_state(k: Tensor, v: Tensor, chunk_length: int) -> WindowState:
    batch = k.shape[0]
    return WindowState(
        k.new_zeros(batch, chunk_length, *k.shape[2:]),
        v.new_zeros(batch, chunk_length, *v.shape[2:]),
        torch.zeros(batch, dtype=torch.int64, device=k.device),
    )


def _definition(q, k, v, chunk_length, bias, steps, before, sliding, causal):
    """The sum, token by token, in float64."""
    past = 0 if before is None else chunk_length
    keys = k.double() if before is None else torch.cat([before.keys, k], 1).double()
    values = v.double() if before is None else torch.cat([before.values, v], 1).double()
    rows = []
    for row in range(q.shape[0]):
        seen = 0 if before is None else int(before.position[row])
        outputs = []
        for i in range(q.shape[1]):
            if i >= steps[row]:
                outputs.append(torch.zeros_like(values[row, 0]))
                continue
            start = i - (seen + i) % chunk_length
            first = max(i - chunk_length + 1, -seen) if sliding else start
            end = i + 1 if causal else min(start + chunk_length, int(steps[row]))
            visible = slice(past + first, past + end)
            logits = (keys[row, visible] * q[row, i].double()).sum(-1) / math.sqrt(q.shape[-1])
            if bias is not None:
                distance = i - torch.arange(first, end) + (0 if causal else chunk_length - 1)
                logits = logits + bias.double()[:, distance].T
            weights = logits.softmax(0)
            outputs.append((weights[..., None] * values[row, visible]).sum(0))
        rows.append(torch.stack(outputs) if outputs else v[row].double())
    return (torch.stack(rows) if rows else v).to(v.dtype)


def _one_step(q, after, chunk_length, bias, sliding):
    """A single query, as in decoding, against the keys that are kept, its own among them."""
    seen = after.position[:, None]
    width = seen.clamp(1, chunk_length) if sliding else (seen - 1) % chunk_length + 1
    distance = torch.arange(chunk_length - 1, -1, -1, device=q.device)
    visible = distance < width
    # What is hidden gets weight 0, and 0 * NaN is NaN.
    k, v = (
        torch.where(visible[..., None, None], kept, 0).transpose(1, 2)
        for kept in (after.keys, after.values)
    )
    mask = visible[:, None, None]
    if bias is not None:
        mask = torch.where(mask, bias.to(q.dtype).flip(1)[:, None], -math.inf)
    y = softmax_attention(q.transpose(1, 2), k, v, attn_mask=mask)
    return y.transpose(1, 2)


def _by_chunks(q, k, v, chunk_length, bias, steps, before, sliding, causal):
    """Blocks of queries against their own keys, and the block before where it can be seen."""
    length = q.shape[1]
    if not q.numel():
        return v.clone()
    # No block is longer than the sequence; a trace, which has no length, takes whole chunks.
    size = chunk_length if torch.compiler.is_compiling() else min(chunk_length, length)
    blocks = -(-length // size)
    query_time = torch.arange(size, device=q.device)
    key_time = query_time
    q, k, v = (_blocks(part, size) for part in (q, k, v))
    if before is not None:
        k = _with_previous(before.keys.to(k.dtype), k)
        v = _with_previous(before.values.to(v.dtype), v)
        key_time = torch.arange(-chunk_length, size, device=q.device)
    (k, v), marks = clean_and_mark(k, v)

    distance = query_time[:, None] - key_time
    # (batch or 1, blocks or 1, chunk, keys): who sees whom.
    if before is None:
        visible = (distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool))[
            None, None
        ]
    elif sliding:
        seen = before.position.clamp(max=chunk_length)[:, None, None]
        block_start = size * torch.arange(blocks, device=q.device)[:, None]
        filled = key_time + block_start >= -seen  # nothing lies before the first token
        visible = (distance >= 0) & (distance < chunk_length) & filled[..., None, :]
    else:
        phase = (before.position[:, None] + query_time) % chunk_length
        visible = ((distance >= 0) & (distance <= phase[..., None]))[:, None]
    if not causal:
        block_start = size * torch.arange(blocks, device=q.device)[:, None]
        real = key_time + block_start < steps[:, None, None]
        itself = torch.eye(size, dtype=torch.bool, device=q.device)
        visible = visible & real[:, :, None, :] | itself  # an empty softmax would be NaN

    mask = visible[:, :, None]
    if bias is not None:
        index = (distance if causal else distance + chunk_length - 1).clamp(0, bias.shape[1] - 1)
        mask = bias.to(q.dtype)[:, index].masked_fill(~mask, -math.inf)
    y = softmax_attention(q, k, v, attn_mask=mask)
    if marks is not None:
        y = put_back(y, visible[:, :, None].to(marks.dtype) @ marks[..., None])
    return y.transpose(2, 3).flatten(1, 2)[:, :length]


def _blocks(x: Tensor, size: int) -> Tensor:
    """(batch, length, heads, d) -> (batch, blocks, heads, size, d), zeros at the end."""
    padding = -x.shape[1] % size
    if padding:
        x = functional.pad(x, (0, 0, 0, 0, 0, padding))
    return x.unflatten(1, (-1, size)).transpose(2, 3)


def _with_previous(first: Tensor, blocks: Tensor) -> Tensor:
    """Before every block's keys those of the block before; `first`, a whole chunk, before the
    first, which is alone where it is shorter."""
    previous = first.transpose(1, 2)[:, None]
    if first.shape[1] == blocks.shape[3]:
        previous = torch.cat([previous, blocks[:, :-1]], 1)
    return torch.cat([previous, blocks], 3)


_BACKENDS = {"reference": _definition, "torch": _by_chunks}
