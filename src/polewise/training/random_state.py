"""The random generators of a process, as tensors: Python's, numpy's, torch's, each GPU's."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed every generator that a model, a task or a mixer of the user's might draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Tensor]:
    """Return where every generator stands."""
    _, words, gauss = random.getstate()
    numpy: Any = np.random.get_state()
    _, keys, position, has_gauss, cached = numpy
    state = {
        "torch.cpu": torch.get_rng_state(),
        "python.words": torch.tensor(words, dtype=torch.int64),
        "python.gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy.keys": torch.tensor(keys.astype(np.int64)),
        "numpy.position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy.gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        for index, value in enumerate(torch.cuda.get_rng_state_all()):
            state[f"torch.cuda.{index}"] = value
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Put every generator where `random_state` found it.

    The generators of GPUs are left alone where there is another number of them.

    Raises:
        ArithmeticError, LookupError, RuntimeError, TypeError, ValueError: it is not what
            `random_state` returned.
    """
    gauss = state["python.gauss"].tolist()
    random.setstate((3, tuple(state["python.words"].tolist()), gauss[0] if gauss else None))
    keys = state["numpy.keys"].numpy().astype(np.uint32)
    position, has_gauss = state["numpy.position"].tolist()
    if keys.shape != (624,) or not 0 <= position <= 624:
        raise ValueError("numpy.keys and numpy.position are not a generator's")  # numpy trusts them
    np.random.set_state(("MT19937", keys, position, has_gauss, state["numpy.gauss"].item()))
    torch.set_rng_state(state["torch.cpu"])
    num_gpus = sum(name.startswith("torch.cuda.") for name in state)
    if torch.cuda.is_available() and num_gpus == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state[f"torch.cuda.{index}"] for index in range(num_gpus)])
