"""``python -m etl`` is ``flowtrail``."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from etl.system import streams


def main() -> None:
    """The command line. It may be told to stop at any moment: also while it loads, and before a service serves."""
    streams.claim()
    if "serve" in sys.argv:
        signal.signal(signal.SIGTERM, _nothing_to_finish_yet)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # whatever it would reload has yet to be read
    else:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores SIGHUP, and goes on doing so
                signal.signal(number, _end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # what a shell starts with `&` ignores it
        signal.signal(signal.SIGINT, _end)
    try:
        from etl.cli import main as run

        run()
    except (MemoryError, ImportError, OSError, SystemError) as error:
        if not _is_lack_of_memory(error):
            raise
        sys.stderr.write("This process gets too little memory: see `ulimit -v`, or the limit of its container.\n")
        sys.exit(1)


def _is_lack_of_memory(error: Exception) -> bool:
    """A library that cannot be loaded for it is an ImportError, with the words of the dynamic linker.

    The interpreter itself may fail to say why: a SystemError, "error return without exception set".
    """
    lacking = ("failed to map segment", "annot allocate memory", "without exception set")
    return isinstance(error, MemoryError) or any(words in str(error) for words in lacking)


def _nothing_to_finish_yet(*_: object) -> None:
    """Ends the process with 0, what a transaction has in hand is rolled back; until the service takes its signals."""
    raise SystemExit(0)


def _end(number: int, _: FrameType | None) -> None:
    """Ends a command with the exit code that shells know for the signal, and removes what is half written."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
