"""``python -m etl`` is ``flowtrail``."""

from __future__ import annotations

import gc
import signal
import sys
from contextlib import redirect_stderr
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
        with redirect_stderr(None):  # what the interpreter says as memory runs out is no help to anybody
            from etl.cli import main as run
        run()
    except Exception as error:
        if not (isinstance(error, MemoryError) or _is_at_its_limit()):
            raise
        sys.stderr.write("This process gets too little memory: see `ulimit -v`, or the limit of its container.\n")
        sys.exit(1)


def _is_at_its_limit() -> bool:
    """Whether memory is lacking. All kinds of errors may say so: ImportError, SystemError, even SyntaxError."""
    try:
        return not bytearray(32 << 20)
    except MemoryError:
        return True


def _nothing_to_finish_yet(*_: object) -> None:
    """Ends the process with 0 until the service handles signals; open transactions are rolled back."""
    raise SystemExit(0)


def _end(number: int, _: FrameType | None) -> None:
    """Ends a command with the usual exit code for the signal, and removes half-written files."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
