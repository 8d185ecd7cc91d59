"""Filtered products of keys and values as compiled loops, gradient included.

The recursion as it is written, step by step: its state stays in the nearest cache, and nothing is
laid out again, which chunks of matrix products spend most of their time on.

Gradient. Against time, with G[t] what the future says about S[t],

    G[t] = q[t] gy[t]^T + conj(p[t+1]) G[t+1],
    grad q[t] = Re S[t] gy[t],            grad k[t] = s[t] Re G[t] v[t],
    grad v[t] = s[t] g[t] + d gy[t],      grad s[t] = g[t] v[t],    g[t] = Re G[t]^T k[t],
    grad p[t] = sum of G[t] conj(S[t-1]), grad d = sum of gy[t] v[t].

Forward keeps the state where a segment of 32 or 64 steps starts; backward goes on from there, a
segment at a time from the last to the first, and holds its states in the second cache.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polewise.ops._compiled import array, compiled, copied, fresh, run_heads, vectorised
from polewise.ops._products import segment_length

WIDTH = 64
"""Columns of the state that are filtered together. A number known to the compiler: its loops over
columns become straight code, where short ones of unknown length would be mostly ends."""

WINDOW = 512
"""Steps whose gradients of a key that heads share are held head by head, until they are summed."""


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    step: Tensor,
    pole: Tensor,
    skip: Tensor,
    state: Tensor,
    key_head: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the state where every segment starts."""
    size = segment_length(state)
    y, last = fresh(v), torch.empty(state.shape, dtype=state.dtype)
    starts = fresh(state[:, :, None].expand(-1, -1, -(-v.shape[1] // size), -1, -1, -1))
    run_heads(
        _forward, v, array(q), array(k), array(v), array(step), array(pole), copied(skip),
        array(state), np.array(key_head, np.int64), y.numpy(), last.numpy(), starts.numpy(), size,
    )  # fmt: skip
    return y, last, starts


def backward(
    grad_y: Tensor,
    grad_last: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    step: Tensor,
    pole: Tensor,
    skip: Tensor,
    starts: Tensor,
    key_head: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, step, pole, skip and the first state."""
    size, segments, heads = segment_length(grad_last), starts.shape[2], v.shape[2]
    grad_q, grad_k, grad_v = fresh(q), fresh(k), fresh(v)
    grad_step, grad_pole = (torch.empty(like.shape, dtype=v.dtype) for like in (step, pole))
    grad_skip = torch.zeros(v.shape[0], len(skip), dtype=v.dtype)
    grad_state = grad_last.clone(memory_format=torch.contiguous_format)
    # Units of different heads run at once, so each has gradients of its own to write.
    shared = key_head != list(range(k.shape[2]))
    window = WINDOW // size if shared else max(segments, 1)
    by_query, by_key = grad_q, grad_k
    if shared:
        wide = k[:, : window * size, :1].expand(-1, -1, heads, -1)
        by_query, by_key = fresh(wide), fresh(wide)
    arrays = (
        *(array(each) for each in (grad_y, q, k, v, step, pole)), copied(skip), array(starts),
        np.array(key_head, np.int64),
        *(each.numpy() for each in (by_query, by_key, grad_v, grad_step, grad_pole)),
        grad_skip.numpy(), grad_state.numpy(),
    )  # fmt: skip
    for stop in range(segments, 0, -window):
        start = max(stop - window, 0)
        run_heads(_backward, v, *arrays, size, start, stop)
        if shared:
            for grad, by_head in ((grad_q, by_query), (grad_k, by_key)):
                part = grad[:, start * size : stop * size].zero_()
                part.index_add_(
                    2, torch.tensor(key_head, dtype=torch.int64), by_head[:, : part.shape[1]]
                )
    return grad_q, grad_k, grad_v, grad_step, grad_pole, grad_skip.sum(0), grad_state


@compiled
def _forward(
    q, k, v, step, pole, skip, state, key_head, y, last, starts, segment_length, first, stop
):
    length, heads, value_dim = v.shape[1:]
    parts, key_dim = state.shape[2:4]
    now = np.empty((parts, key_dim, WIDTH), v.dtype)
    queries = np.empty((segment_length, key_dim), v.dtype)
    keys = np.empty((segment_length, key_dim), v.dtype)
    values = np.zeros((segment_length, WIDTH), v.dtype)
    out = np.empty((segment_length, WIDTH), v.dtype)
    for unit in range(first, stop):
        row, head = unit // heads, unit % heads
        pair = key_head[head]
        for low in range(0, value_dim, WIDTH):
            now[:], values[:] = 0, 0  # beyond the last column they stay so
            _copy_columns(state[row, head], low, now, 0)
            for segment in range(starts.shape[2]):
                start = segment * segment_length
                steps = min(segment_length, length - start)
                _copy_columns(now, 0, starts[row, head, segment], low)
                _gather(q[row], start, steps, pair, 0, queries)
                _gather(k[row], start, steps, pair, 0, keys)
                _gather(v[row], start, steps, head, low, values)
                for n in range(steps):
                    _copy(values[n], out[n])
                    _scale(out[n], skip[head])
                    _scale(values[n], step[row, start + n, head])
                    poles = pole[row, start + n, head]
                    if parts == 1:
                        _advance(now[0], poles[0], queries[n], keys[n], values[n], out[n])
                    else:
                        _advance_turning(
                            now[0], now[1], poles[0], poles[1], queries[n], keys[n], values[n],
                            out[n],
                        )  # fmt: skip
                _scatter(out, steps, head, low, start, y[row])
            _copy_columns(now, 0, last[row, head], low)


@compiled
def _backward(
    grad_y, q, k, v, step, pole, skip, starts, key_head, grad_q, grad_k, grad_v, grad_step,
    grad_pole, grad_skip, grad_state, segment_length, first_segment, stop_segment, first, stop,
):  # fmt: skip
    """Segment by segment, the last one first: along time the states and what they say about the
    queries, then against time the gradient of the state. `grad_q` and `grad_k` begin with the first
    of these segments, and `grad_state` goes from behind the last of them to before the first."""
    length, heads, value_dim = v.shape[1:]
    parts, key_dim = grad_state.shape[2:4]
    begin, end = first_segment * segment_length, min(stop_segment * segment_length, length)
    future = np.empty((parts, key_dim, WIDTH), v.dtype)
    held = np.empty((segment_length + 1, parts, key_dim, WIDTH), v.dtype)
    queries = np.empty((segment_length, key_dim), v.dtype)
    keys = np.empty((segment_length, key_dim), v.dtype)
    values = np.zeros((segment_length, WIDTH), v.dtype)
    grads = np.zeros((segment_length, WIDTH), v.dtype)
    out = np.empty((segment_length, WIDTH), v.dtype)
    line = np.empty(WIDTH, v.dtype)
    for unit in range(first, stop):
        row, head = unit // heads, unit % heads
        pair = key_head[head]
        for t in range(begin, end):
            grad_q[row, t - begin, head], grad_k[row, t - begin, head] = 0, 0
            grad_step[row, t, head], grad_pole[row, t, head] = 0, 0
        for low in range(0, value_dim, WIDTH):
            future[:], held[0], grads[:] = 0, 0, 0
            _copy_columns(grad_state[row, head], low, future, 0)
            for segment in range(stop_segment - 1, first_segment - 1, -1):
                start = segment * segment_length
                steps = min(segment_length, length - start)
                _copy_columns(starts[row, head, segment], low, held[0], 0)
                _gather(q[row], start, steps, pair, 0, queries)
                _gather(k[row], start, steps, pair, 0, keys)
                values[:] = 0  # beyond the last column a step that is NaN has left its own
                _gather(v[row], start, steps, head, low, values)
                _gather(grad_y[row], start, steps, head, low, grads)
                out[:] = 0
                for n in range(steps):
                    grad_skip[row, head] += _product(grads[n], values[n])
                    _scale(values[n], step[row, start + n, head])
                    before, after, poles = held[n], held[n + 1], pole[row, start + n, head]
                    grad_q_t = grad_q[row, start - begin + n, head]
                    if parts == 1:
                        _recall(
                            before[0], after[0], poles[0], keys[n], values[n], grads[n], grad_q_t
                        )
                    else:
                        _recall_turning(
                            before[0], before[1], after[0], after[1], poles[0], poles[1], keys[n],
                            values[n], grads[n], grad_q_t,
                        )  # fmt: skip
                for n in range(steps - 1, -1, -1):
                    before, poles, by_pole = (
                        held[n],
                        pole[row, start + n, head],
                        grad_pole[row, start + n, head],
                    )
                    grad_k_t = grad_k[row, start - begin + n, head]
                    if poles.size == 1:
                        _retreat_together(
                            future[0], before[0], poles[0], queries[n], keys[n], values[n],
                            grads[n], grad_k_t, out[n], by_pole[0], line,
                        )  # fmt: skip
                    elif parts == 1:
                        _retreat(
                            future[0], before[0], poles[0], queries[n], keys[n], values[n],
                            grads[n], grad_k_t, out[n], by_pole[0],
                        )  # fmt: skip
                    else:
                        _retreat_turning(
                            future[0], future[1], before[0], before[1], poles[0], poles[1],
                            queries[n], keys[n], values[n], grads[n], grad_k_t, out[n],
                            by_pole[0], by_pole[1],
                        )  # fmt: skip
                for n in range(steps):
                    at = (row, start + n, head)
                    grad_step[at] += _product(out[n], v[row, start + n, head, low:])
                    _scale(out[n], step[at])
                    _add_scaled(out[n], grads[n], skip[head])
                _scatter(out, steps, head, low, start, grad_v[row])
            _copy_columns(future, 0, grad_state[row, head], low)


@vectorised
def _copy(source, target):
    """Copy up to the shorter of two lines."""
    for c in range(min(len(source), len(target))):
        target[c] = source[c]


@compiled
def _gather(rows, start, steps, head, low, lines):
    """What a segment of a sequence, (length, heads, columns), has for one head, from a column on:
    read in one go, and side by side for the loops."""
    for n in range(steps):
        _copy(rows[start + n, head, low:], lines[n])


@vectorised
def _scale(line, factor):
    for c in range(WIDTH):
        line[c] *= factor


@vectorised
def _add_scaled(line, other, factor):
    for c in range(WIDTH):
        line[c] += factor * other[c]


@vectorised
def _product(line, row):
    """Inner product over the shorter of two lines."""
    total = line[0] * row[0]
    for c in range(1, min(len(line), len(row))):
        total += line[c] * row[c]
    return total


@compiled
def _scatter(lines, steps, head, low, start, rows):
    for n in range(steps):
        _copy(lines[n], rows[start + n, head, low:])


@vectorised
def _copy_columns(source, source_low, target, target_low):
    """The same of states, (parts, key_dim, columns), from a column on."""
    for part in range(len(source)):
        for i in range(source.shape[1]):
            _copy(source[part, i, source_low:], target[part, i, target_low:])


@vectorised
def _advance(state, decay, q, k, v, y):
    """One step of the state, and what the query reads from it."""
    for i in range(len(k)):
        row, kept, query, key = state[i], decay[min(i, len(decay) - 1)], q[i], k[i]
        for c in range(WIDTH):
            row[c] = kept * row[c] + key * v[c]
            y[c] += query * row[c]


@vectorised
def _advance_turning(real, imag, cosine, sine, q, k, v, y):
    for i in range(len(k)):
        re, im, query, key, at = real[i], imag[i], q[i], k[i], min(i, len(cosine) - 1)
        along, across = cosine[at], sine[at]
        for c in range(WIDTH):
            turned = across * re[c] + along * im[c]
            re[c] = along * re[c] - across * im[c] + key * v[c]
            im[c] = turned
            y[c] += query * re[c]


@vectorised
def _recall(before, after, decay, k, v, grad_y, grad_q):
    """One step of the state, and what it says about the query."""
    for i in range(len(k)):
        old, new, kept, key = before[i], after[i], decay[min(i, len(decay) - 1)], k[i]
        total = grad_q[i]
        for c in range(WIDTH):
            state = kept * old[c] + key * v[c]
            new[c] = state
            total += state * grad_y[c]
        grad_q[i] = total


@vectorised
def _recall_turning(
    before_real, before_imag, after_real, after_imag, cosine, sine, k, v, grad_y, grad_q
):
    for i in range(len(k)):
        old_re, old_im, re, im = before_real[i], before_imag[i], after_real[i], after_imag[i]
        key, total, at = k[i], grad_q[i], min(i, len(cosine) - 1)
        along, across = cosine[at], sine[at]
        for c in range(WIDTH):
            state = along * old_re[c] - across * old_im[c] + key * v[c]
            im[c] = across * old_re[c] + along * old_im[c]
            re[c] = state
            total += state * grad_y[c]
        grad_q[i] = total


@vectorised
def _retreat(future, before, decay, q, k, v, grad_y, grad_k, grad_v, grad_decay):
    """One step of the state's gradient against time, and what it says about the rest, where every
    key has a pole of its own."""
    for i in range(len(k)):
        row, old, kept, query, key = future[i], before[i], decay[i], q[i], k[i]
        by_key, by_decay = grad_k[i], grad_decay[i]
        for c in range(WIDTH):
            grad = row[c] + query * grad_y[c]
            by_key += grad * v[c]
            by_decay += grad * old[c]
            grad_v[c] += key * grad
            row[c] = kept * grad
        grad_k[i], grad_decay[i] = by_key, by_decay


@vectorised
def _retreat_together(future, before, decay, q, k, v, grad_y, grad_k, grad_v, grad_decay, line):
    """The same where all keys share one. Its gradient is summed over keys in a line, column by
    column, and over columns once: with two sums in the inner loop it takes twice as long."""
    kept, total = decay[0], grad_decay[0]
    for c in range(WIDTH):
        line[c] = 0
    for i in range(len(k)):
        row, old, query, key, by_key = future[i], before[i], q[i], k[i], grad_k[i]
        for c in range(WIDTH):
            grad = row[c] + query * grad_y[c]
            by_key += grad * v[c]
            line[c] += grad * old[c]
            grad_v[c] += key * grad
            row[c] = kept * grad
        grad_k[i] = by_key
    for c in range(WIDTH):
        total += line[c]
    grad_decay[0] = total


@vectorised
def _retreat_turning(
    future_real, future_imag, before_real, before_imag, cosine, sine, q, k, v, grad_y, grad_k,
    grad_v, grad_cosine, grad_sine,
):  # fmt: skip
    for i in range(len(k)):
        re, im, old_re, old_im = future_real[i], future_imag[i], before_real[i], before_imag[i]
        at = min(i, len(cosine) - 1)
        along, across, query, key, by_key = cosine[at], sine[at], q[i], k[i], grad_k[i]
        by_cosine, by_sine = grad_cosine[at], grad_sine[at]
        for c in range(WIDTH):
            grad, turned = re[c] + query * grad_y[c], im[c]
            by_key += grad * v[c]
            by_cosine += grad * old_re[c] + turned * old_im[c]
            by_sine += turned * old_re[c] - grad * old_im[c]
            grad_v[c] += key * grad
            re[c] = along * grad + across * turned
            im[c] = along * turned - across * grad
        grad_k[i], grad_cosine[at], grad_sine[at] = by_key, by_cosine, by_sine
