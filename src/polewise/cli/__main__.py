"""`python -m polewise.cli` is `polewise`."""

from __future__ import annotations

import sys

from polewise.cli import main

sys.exit(main())
