"""``python -m tests.crash``: the crash tests, for as long as you like."""

from __future__ import annotations

import sys

from tests.crash.command import main

if __name__ == "__main__":
    sys.exit(main())
