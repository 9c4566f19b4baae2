"""``python -m tests.crash``: the crash proof without a clock to mind."""

from __future__ import annotations

import sys

from tests.crash.command import main

if __name__ == "__main__":
    sys.exit(main())
