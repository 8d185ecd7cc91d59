r"""One long sequence over several processes: what each must know of those before it.

A row of `size * length` steps lies in `size` pieces of `length`, one per process, in order of
rank. Windows need the last entries of the piece before. A recursion $s' = T s + e$ over a whole
piece is summed up by its transition $T$ and its end $e$ from rest: all processes exchange
these few numbers and each finds the state before its own piece,

$$ s_r = T_{r-1} s_{r-1} + e_{r-1}, \qquad s_0 = 0. $$

Gradients travel the same way back. Both directions make the same calls on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from polewise.ops.associative_filter import SMALLEST_DECAY, associative_filter
from polewise.ops.direct_form import direct_form_filter
from polewise.ops.normal_form import normal_form_filter


class Shards:
    """The pieces of a sequence, one per process of a group."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def __deepcopy__(self, memo: dict) -> Shards:
        return self  # a process group cannot be copied, and need not be

    def piece(self, x: Float[Tensor, "batch total ..."]) -> Float[Tensor, "batch length ..."]:
        """This process's part of a whole sequence.

        Raises:
            ValueError: the sequence cannot be cut into equal pieces.
        """
        if x.shape[1] % self.size:
            raise ValueError(
                f"x must have a multiple of {self.size} steps, one piece a process; "
                f"got {x.shape[1]}."
            )
        return x.chunk(self.size, 1)[self.rank]

    def whole(self, piece: Float[Tensor, "batch length ..."]) -> Float[Tensor, "batch total ..."]:
        """The whole sequence from all pieces.

        For outputs from which every process computes the same loss: the gradient of the piece
        is `size` times its share, so that the *mean* over processes, which data-parallel
        engines take, is the gradient of the loss.
        """
        return _Whole.apply(piece, self)

    def require_whole(self, x: Tensor, state: object, lengths: Tensor | None, **units: int) -> None:
        """A piece starts where the one before ends, at the start of a bin and of a chunk.

        Raises:
            ValueError: a state or lengths, or a piece that is empty or does not hold whole `units`.
        """
        if state is not None or lengths is not None:
            raise ValueError(
                "state and lengths must be None while a sequence is split over processes: every "
                "piece starts where the one before ends."
            )
        if not x.shape[1]:
            raise ValueError("x must have at least 1 step on every process; got 0.")
        for name, unit in units.items():
            if x.shape[1] % unit:
                raise ValueError(
                    f"x must have a multiple of {name} = {unit} steps on every process; "
                    f"got {x.shape[1]}."
                )

    def gather(self, x: Float[Tensor, ...]) -> Float[Tensor, "size ..."]:
        """`x` of every process, in order of rank."""
        return _Gather.apply(x, self)

    def from_before(self, last: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """`last` of the process before; 0 on the first."""
        return _Shift.apply(last, self)

    def window_before(self, x: Float[Tensor, "batch length ..."], steps: int) -> Tensor:
        """The last `steps` steps of the piece before.

        Raises:
            ValueError: the piece is shorter than the window.
        """
        if x.shape[1] < steps:
            raise ValueError(
                f"x must have at least {steps} steps on every process, as far as a window reaches "
                f"back; got {x.shape[1]}."
            )
        return self.from_before(x[:, x.shape[1] - steps :])

    def state_before(
        self, transition: Tensor, end: Tensor, step: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The state before this piece, of a recursion with `step(T, s, e)` over a whole one."""
        transitions, ends = self.gather(transition), self.gather(end)
        before = [torch.zeros_like(end)]
        for rank in range(self.size - 1):
            before.append(step(transitions[rank], before[-1], ends[rank]))
        # All of them in one tensor: the exchange is then part of every rank's gradient.
        return torch.stack(before)[self.rank]


def normal_form_state_before(
    x: Float[Tensor, "batch length dim"],
    decay: Float[Tensor, "batch bins dim"],
    angle: Float[Tensor, "batch bins dim"],
    bin_length: int,
    shards: Shards,
) -> Float[Tensor, "batch dim 2"]:
    """The state of `normal_form_filter` before this piece: 4 numbers a channel and process."""
    _, end = normal_form_filter(x, decay, angle, bin_length)
    steps = torch.full((decay.shape[1], 1), bin_length, device=x.device)
    steps[-1] = x.shape[1] - (decay.shape[1] - 1) * bin_length
    radius, turn = (decay**steps).prod(1), (angle * steps).sum(1)
    transition = torch.stack([radius * turn.cos(), radius * turn.sin()], -1)
    return shards.state_before(transition.to(end.dtype), end, _turn_and_add)


def direct_form_state_before(
    x: Float[Tensor, "batch length dim"],
    a: Float[Tensor, "batch bins dim 2"],
    bin_length: int,
    shards: Shards,
) -> Float[Tensor, "batch dim 2"]:
    """The state of `direct_form_filter` before this piece: 6 numbers a channel and process."""
    _, end = direct_form_filter(x, a, bin_length)
    columns = []
    for unit in torch.eye(2, dtype=end.dtype, device=end.device):
        _, column = direct_form_filter(
            torch.zeros_like(x), a, bin_length, state=unit.expand_as(end)
        )
        columns.append(column)
    return shards.state_before(torch.stack(columns, -1), end, _map_and_add)


def associative_state_before(
    k: Float[Tensor, "batch length heads key_dim"],
    v: Float[Tensor, "batch length heads value_dim"],
    decay: Float[Tensor, "batch length heads"],
    step: Float[Tensor, "batch length heads"],
    key_head: Sequence[int],
    shards: Shards,
) -> Float[Tensor, "batch heads 1 key_dim value_dim"]:
    """The state of `associative_filter` before this piece, with real poles: its own size a process,
    and a pole."""
    _, end = associative_filter(k, k, v, decay, step=step, key_head=key_head)
    pole = decay.to(end.dtype).clamp(min=SMALLEST_DECAY).log().sum(1).exp()[..., None, None, None]
    return shards.state_before(pole, end, _scale_and_add)


def _scale_and_add(transition: Tensor, state: Tensor, end: Tensor) -> Tensor:
    return transition * state + end


def _turn_and_add(transition: Tensor, state: Tensor, end: Tensor) -> Tensor:
    """Complex numbers as pairs on the last axis."""
    (cosine, sine), (real, imag) = transition.unbind(-1), state.unbind(-1)
    return torch.stack([cosine * real - sine * imag, sine * real + cosine * imag], -1) + end


def _map_and_add(transition: Tensor, state: Tensor, end: Tensor) -> Tensor:
    """A matrix on the last two axes."""
    return (transition * state[..., None, :]).sum(-1) + end  # autocast narrows a product


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, shards: Shards) -> Tensor:
        ctx.shards = shards
        return _gathered(x, shards)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.shards.group)
        return grad[ctx.shards.rank], None


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx, piece: Tensor, shards: Shards) -> Tensor:
        ctx.shards = shards
        return _gathered(piece, shards).movedim(0, 1).flatten(1, 2)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.shards.piece(grad) * ctx.shards.size, None


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(ctx, last: Tensor, shards: Shards) -> Tensor:
        ctx.shards = shards
        return _exchange(last, shards, shards.rank + 1, shards.rank - 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _exchange(grad, ctx.shards, ctx.shards.rank - 1, ctx.shards.rank + 1), None


def _gathered(x: Tensor, shards: Shards) -> Tensor:
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(shards.size)]
    dist.all_gather(parts, x, group=shards.group)
    return torch.stack(parts)


def _exchange(x: Tensor, shards: Shards, to: int, source: int) -> Tensor:
    """Send `x` to one neighbour and return what the other sends; 0 where there is none."""
    received = torch.zeros_like(x, memory_format=torch.contiguous_format)
    transfers = []
    if 0 <= to < shards.size:
        transfers.append(dist.P2POp(dist.isend, x.contiguous(), group=shards.group, group_peer=to))
    if 0 <= source < shards.size:
        transfers.append(dist.P2POp(dist.irecv, received, group=shards.group, group_peer=source))
    if transfers:
        for request in dist.batch_isend_irecv(transfers):
            request.wait()
    return received
