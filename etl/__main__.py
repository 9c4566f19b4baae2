"""``python -m etl`` is ``flowtrail``."""

from __future__ import annotations

import gc
import signal
import sys
from types import FrameType

from etl.system import streams


def main() -> None:
    """Run the command line. A stop may come at any moment, also while it loads, or before a service serves."""
    streams.claim()
    gc.disable()  # a tenth of the time to load a command would go to looking through what is loaded, which stays
    if "serve" in sys.argv:
        signal.signal(signal.SIGTERM, _nothing_to_finish_yet)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # there is nothing to reload yet
    else:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # under `nohup`, SIGHUP stays ignored
                signal.signal(number, _end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job that a shell starts with `&` ignores it
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
    """Whether memory was lacking. A library that cannot be loaded then raises ImportError with the linker's message.

    The interpreter itself may fail to say why: SystemError, "error return without exception set".
    """
    lacking = ("failed to map segment", "annot allocate memory", "without exception set")
    return isinstance(error, MemoryError) or any(words in str(error) for words in lacking)


def _nothing_to_finish_yet(*_: object) -> None:
    """Ends the process with 0 until the service handles signals; open transactions are rolled back."""
    raise SystemExit(0)


def _end(number: int, _: FrameType | None) -> None:
    """Ends a command with the usual exit code for the signal, and removes half-written files."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
