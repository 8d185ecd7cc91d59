"""Where tests run side by side, each process keeps to one core.

Said before torch is imported, and to the processes that tests start: two teams of threads on the
same cores wait for each other.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
