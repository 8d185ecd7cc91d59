"""What every mixer asks of what it is given."""

from __future__ import annotations

from torch import Tensor


def require_input(x: Tensor, dim: int, state: object = None, *, causal: bool = True) -> None:
    """Check that `x` is a sequence of `dim` channels, and that a state can be gone on from.

    Raises:
        ValueError: another shape, or a state where the mixer looks both ways.
    """
    if x.ndim != 3 or x.shape[-1] != dim:
        raise ValueError(f"x must have shape (batch, length, {dim}); got {tuple(x.shape)}.")
    if state is not None and not causal:
        raise ValueError("state must be None without causal: both directions need it all.")
