"""``python -m etl`` is ``flowtrail``."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """The command line. A service may be told to stop at any moment: also while it loads, and before it serves."""
    if "serve" in sys.argv:
        signal.signal(signal.SIGTERM, _nothing_to_finish_yet)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # whatever it would reload has yet to be read
    from etl.cli import main as run

    run()


def _nothing_to_finish_yet(*_: object) -> None:
    """Ends the process with 0, what a transaction has in hand is rolled back; until the service takes its signals."""
    raise SystemExit(0)


if __name__ == "__main__":
    main()
