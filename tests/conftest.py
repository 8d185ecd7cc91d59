"""Where tests run side by side, each process keeps to one core.

Said before torch is imported, and to the processes that tests start: two teams of threads on the
same cores wait for each other.
"""

import os
import sys

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def one_accelerator_per_test():
    """accelerate keeps what a process has told it."""
    yield
    if (accelerate := sys.modules.get("accelerate.state")) is not None:
        accelerate.AcceleratorState._reset_state(reset_partial_state=True)
