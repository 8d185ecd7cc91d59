"""The command `polewise`, also `python -m polewise`."""

from __future__ import annotations

import sys
from importlib.util import find_spec

_NEEDED = (
    "transformers", "safetensors", "accelerate", "tyro", "rich", "tensorboard", "matplotlib",
)  # fmt: skip
"""What the extra `train` installs, by the names of the modules."""


def main() -> int:
    """Run one command; return the exit code. Without the packages that commands need, say so."""
    missing = next((name for name in _NEEDED if find_spec(name) is None), None)
    if missing is not None:
        print(
            f"polewise: error: the commands need {missing}, which is not installed: "
            'pip install "polewise[train]", or in a checkout pip install ".[train]"',
            file=sys.stderr,
        )
        return 2
    from polewise.cli import main as run

    return run()


if __name__ == "__main__":
    raise SystemExit(main())
