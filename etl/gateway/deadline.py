"""One deadline for everything that is done for a target, and an end to waiting when a stop comes.

A socket's timeout starts again with every byte. So a separate thread watches the clock, and shuts the connection that a
late target is using. The reader then sees its end, and asks the Deadline why.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Final, Literal

from etl.errors import GatewayUnreachable, Interrupted

_TICK_SECONDS: Final = 0.05


class Handle:
    """A second handle on a connection's socket: it stays valid while TLS takes the first one over."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected.dup()
        self.lock = threading.Lock()
        """Held to shut and to close it: the number of a closed one may be another's. Each has its own, because whoever
        waits for a lock waits for the interpreter, too."""

    def shut(self, how: int) -> None:
        with suppress(OSError):  # no longer connected, or closed: its reader has woken already
            self._socket.shutdown(how)

    def close(self) -> None:
        with self.lock:
            self._socket.close()


class Deadline:
    """The deadline of one target, and the connection that its thread waits for at the moment. A context manager."""

    __slots__ = ("_held", "_watchdog", "cut", "ends_at", "seconds")

    def __init__(self, watchdog: Watchdog, seconds: float) -> None:
        self._watchdog = watchdog
        self._held: Handle | None = None
        self.seconds = seconds
        self.ends_at = time.monotonic() + seconds
        self.cut: Literal["", "deadline", "stop"] = ""

    def __enter__(self) -> Deadline:
        self._watchdog.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.discard(self)
        self.release()

    def remaining(self) -> float:
        return self.ends_at - time.monotonic()

    def hold(self, handle: Handle) -> None:
        """From now on this is what a cut shuts; at once, if the deadline has passed already."""
        self._held = handle
        if self.cut:
            handle.shut(socket.SHUT_RDWR)

    def release(self) -> None:
        """From now on a cut shuts nothing: another thread may use what was held."""
        if held := self._held:
            with held.lock:
                self._held = None

    def end(self, why: Literal["deadline", "stop"]) -> None:
        self.cut = self.cut or why
        if held := self._held:
            with held.lock:
                if self._held is held:
                    held.shut(socket.SHUT_RDWR)

    def pause(self, seconds: float) -> None:
        """Waits, but not beyond the deadline; returns early when the stop comes, which the next ``check`` reports."""
        self._watchdog.stop.wait(max(0.0, min(seconds, self.remaining())))

    def check(self) -> None:
        """Raises Interrupted if a stop came, GatewayUnreachable ("deadline") if the time is over."""
        if self._watchdog.stopping():
            raise Interrupted("stopped before the answer came")
        if self.cut or self.remaining() <= 0:
            raise GatewayUnreachable(f"no answer within the deadline of {self.seconds:g} s", code="deadline")


class Watchdog:
    """Ends what is late, and everything when ``stop`` is set or the watchdog is closed. Thread-safe."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._busy = threading.Event()
        self._deadlines: set[Deadline] = set()
        self._thread: threading.Thread | None = None

    def watch(self, seconds: float) -> Deadline:
        return Deadline(self, seconds)

    def add(self, deadline: Deadline) -> None:
        self._deadlines.add(deadline)
        if self._thread is None:
            self._begin()
        if not self._busy.is_set():
            self._busy.set()

    def discard(self, deadline: Deadline) -> None:
        self._deadlines.discard(deadline)

    def stopping(self) -> bool:
        return self.stop.is_set() or self._closing.is_set()

    def close(self) -> None:
        self._closing.set()
        self._busy.set()
        self._end_all()

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gateway-watchdog", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closing.is_set():
            if not self._deadlines:
                self._wait_for_work()
            elif self.stop.is_set():
                self._end_all()
                self._closing.wait(_TICK_SECONDS)
            else:
                self.stop.wait(self._until_next(time.monotonic()))

    def _wait_for_work(self) -> None:
        self._busy.clear()
        if not self._deadlines and not self._closing.is_set():
            self._busy.wait()

    def _until_next(self, now: float) -> float:
        """Ends what is late; returns how long the next look can wait (the stop event cannot wake this thread on
        close)."""
        next_deadline = now + _TICK_SECONDS
        for deadline in self._deadlines.copy():
            if deadline.ends_at <= now:
                deadline.end("deadline")
            else:
                next_deadline = min(next_deadline, deadline.ends_at)
        return next_deadline - now

    def _end_all(self) -> None:
        for deadline in self._deadlines.copy():
            deadline.end("stop")
