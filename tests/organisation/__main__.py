"""``python -m tests.organisation``: as many simulated events as you like."""

from __future__ import annotations

import sys

from tests.organisation.command import main

if __name__ == "__main__":
    sys.exit(main())
