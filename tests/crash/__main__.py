"""``python -m tests.crash``: the crash proof without a clock to mind."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
