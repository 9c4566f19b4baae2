"""``python -m tests.organisation``: as many simulated events as you like."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from organisation.command import main

if __name__ == "__main__":
    sys.exit(main())
