"""The command `polewise`, also `python -m polewise`."""

from __future__ import annotations

import sys
from importlib.util import find_spec

_NEEDED = (
    "transformers", "safetensors", "accelerate", "tyro", "rich", "tensorboard", "matplotlib",
)  # fmt: skip
"""What the commands cannot start without; the extra `train` installs it."""


def main() -> int:
    """Run one command; return the exit code. Without the packages that commands need, say so."""
    if find_spec("fcntl") is None:
        return _fail("the commands need Linux or macOS; layers, filters and models do not")
    missing = next((name for name in _NEEDED if find_spec(name) is None), None)
    if missing is not None:
        return _fail(
            f"the commands need {missing}, which is not installed: in a checkout of Polewise "
            'pip install ".[train]"'
        )
    try:
        from polewise.cli import main as run
    except KeyboardInterrupt:
        return _fail("stopped before it began", 130)
    except ImportError as error:  # a package of another version than the extra asks for
        return _fail(f'{error}. In a checkout of Polewise pip install ".[train]" mends it')
    return run()


def _fail(message: str, exit_code: int = 2) -> int:
    print(f"polewise: error: {message}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    raise SystemExit(main())
