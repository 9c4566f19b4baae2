"""Standard input, output and error: what a command does never depends on them (the rule is in docs/operate.md)."""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import sys
import time
from typing import Any, Final, TextIO

_AT_ONCE: Final = 4096
"""A pipe that polls as writable takes this many bytes without blocking (PIPE_BUF)."""
_NEWLINE: Final = ord("\n")
_LOG_PATIENCE_SECONDS: Final = 5.0
"""How long a full pipe behind standard error may hold up the program before lines are dropped."""


class OutputLost(Exception):
    """Nobody reads the rest of a command's standard output. Not an error by itself: see ``finish``."""


class Output(io.FileIO):
    """A standard stream whose writes never raise: after the first failure, everything else is discarded."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.lost: OSError | None = None
        """Why the stream cannot be written any more."""

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        total = len(left)
        while left and self.lost is None:
            try:
                left = left[os.write(self.fileno(), left) :]
            except BlockingIOError:  # another process that shares the descriptor made it non-blocking
                _is_writable(self.fileno(), None)
            except OSError as error:
                self.lost = error
        return total


class LogOutput(io.FileIO):
    """Standard error: what cannot be written is dropped, and a pipe that nobody reads only delays for a short time.

    After a failure, every write tries again: a full disk may have room later.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        mode = os.fstat(descriptor).st_mode
        self._may_block = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        self._patience_seconds = _LOG_PATIENCE_SECONDS
        self._is_cut = False
        self._dropped = 0

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        total = len(left)
        if self._is_cut:  # the next line does not continue the one that was cut short
            left = memoryview(b"\n" + left)
        give_up = time.monotonic() + self._patience_seconds
        while left and self._wait(give_up):
            try:
                written = os.write(self.fileno(), left[:_AT_ONCE])
            except BlockingIOError:
                self._may_block = True
            except OSError:
                break
            else:
                self._is_cut = written < len(left) and left[written - 1] != _NEWLINE
                left = left[written:]
        self._dropped += len(left)
        self._patience_seconds = 0 if left else _LOG_PATIENCE_SECONDS
        return total

    def take_dropped(self) -> int:
        """How many bytes were dropped since the last call; 0 while nothing can be written."""
        if not self._dropped or (self._may_block and not _is_writable(self.fileno(), 0)):
            return 0
        dropped, self._dropped = self._dropped, 0
        return dropped

    def _wait(self, give_up: float) -> bool:
        return not self._may_block or _is_writable(self.fileno(), max(0.0, give_up - time.monotonic()))


def claim() -> None:
    """Take the three streams over, first thing in a process: no file may be opened before.

    A closed descriptor is opened on /dev/null. Otherwise the next file, such as the database, would become standard
    error, and the log would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_null(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - open as long as the process
    sys.stdout = _text(io.BufferedWriter(Output(1)), sys.stdout)
    sys.stderr = _text(io.BufferedWriter(LogOutput(2)), sys.stderr, line_buffering=True)


def is_lost(stream: TextIO) -> bool:
    """Whether nothing that is written to ``stream`` arrives any more."""
    return _loss(stream) is not None


def finish(code: int) -> tuple[int, str | None]:
    """The exit code of a command that ended with ``code``, once its output is flushed, and a complaint, if any.

    A reader that went away (``| head``) is fine. A full disk is a failure and a complaint.
    """
    sys.stdout.flush()
    loss = _loss(sys.stdout)
    if loss is None or loss.errno == errno.EPIPE:
        return code, None
    return (
        code or 1,
        f"Standard output could not be written: {loss.strerror}. Everything else that the command does is done.",
    )


def dropped(stream: TextIO) -> int:
    """How many bytes of the log were dropped since the last call; 0 while nothing can be written."""
    raw = _raw(stream)
    return raw.take_dropped() if isinstance(raw, LogOutput) else 0


def _open_null(descriptor: int) -> None:
    """All lower descriptors are open, so this is the lowest free one."""
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    os.set_inheritable(descriptor, True)


def _text(binary: io.BufferedWriter, before: TextIO | None, line_buffering: bool | None = None) -> TextIO:
    """A text stream that writes characters the terminal cannot show as escapes."""
    return io.TextIOWrapper(
        binary,
        encoding=before.encoding if before is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=binary.isatty() if line_buffering is None else line_buffering,
    )


def _loss(stream: TextIO) -> OSError | None:
    raw = _raw(stream)
    return raw.lost if isinstance(raw, Output) else None


def _raw(stream: TextIO) -> object:
    return getattr(getattr(stream, "buffer", None), "raw", None)


def _is_writable(descriptor: int, seconds: float | None) -> bool:
    """Whether a write would not block (it may fail); waits this long for that (None: for ever)."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(None if seconds is None else seconds * 1000))
