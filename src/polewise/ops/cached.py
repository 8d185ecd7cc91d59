"""What was computed from parameters, kept for as long as they stay the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from polewise.ops.eager import is_transformed, values_are_at_hand


class Cached:
    """Keeps one result from call to call.

    Only where no gradient is wanted. What it was made of is compared value by value before it is
    used again, so that no way of changing it is overlooked. On an accelerator, which would have to
    be waited for, in compiled programs and under `torch.func` nothing is kept. It is neither copied
    nor saved with its module.
    """

    _last: tuple[list[Tensor], Hashable, Tensor] | None = None

    def __call__(
        self, make: Callable[[], Tensor], of: Sequence[Tensor], key: Hashable = None
    ) -> Tensor:
        """The result of `make`, which depends on the tensors `of` and on `key`."""
        wanted = torch.is_grad_enabled() and any(each.requires_grad for each in of)
        if wanted or not all(map(values_are_at_hand, of)) or is_transformed():
            return make()
        last = self._last
        if last is None or last[1] != key or not all(map(_same, last[0], of)):
            # Not as inference tensors, which a later call with gradients could not use.
            with torch.inference_mode(False), torch.no_grad():
                last = self._last = [each.detach().clone() for each in of], key, make()
        return last[2]

    def __getstate__(self) -> dict[str, object]:
        return {}


def _same(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left, right)
