"""Where `torch.autocast` must narrow nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Switch `torch.autocast` off for a device; it knows nothing of "meta"."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
