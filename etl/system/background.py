"""Background threads: a loop that can be woken and stopped, and work that one thread does for all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class BackgroundLoop:
    """Calls ``step`` again and again in a daemon thread, until it is stopped.

    ``step`` returns the seconds until its next call, or None to end the loop; it must not raise. The first call comes
    after ``first_after_seconds``. With ``last_step``, one more call follows a stop. As a context manager it runs during
    the block, and waits at most ``stop_within_seconds`` for its end.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], float | None],
        *,
        first_after_seconds: float = 0.0,
        last_step: bool = False,
        stop_within_seconds: float | None = None,
    ) -> None:
        self._step = step
        self._stop_within_seconds = stop_within_seconds
        self._first_after_seconds = first_after_seconds
        self._last_step = last_step
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop(self._stop_within_seconds)

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

    def wake(self) -> None:
        """Make the next call now. From any thread."""
        self._wake.set()

    def wait(self, seconds: float) -> None:
        """Block until somebody wakes the loop, or for this long; for a caller that makes its own steps."""
        self._wake.wait(seconds)
        self._wake.clear()

    @property
    def stopping(self) -> bool:
        """Whether the loop has been asked to stop."""
        return self._stop.is_set()

    def stop(self, within_seconds: float | None = None) -> None:
        """Ask the loop to stop, and wait for that, at most this long."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(within_seconds)

    def _run(self) -> None:
        pause: float | None = self._first_after_seconds
        while pause is not None and not self.stopping:
            self.wait(pause)
            if not self.stopping:
                pause = self._step()
        if self._last_step:
            self._step()


class SingleFlight(Generic[T]):
    """Of all threads that want the same thing at once, one does the work; the others wait for its result."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flight: Future[T] | None = None

    def join(self) -> tuple[Future[T], bool]:
        """The future under way, and False; or, if there is none, a new future, and True: then the caller has to do the
        work and call ``end``. The caller should first check whether the work has just been done."""
        with self._lock:
            if self._flight is not None:
                return self._flight, False
            self._flight = Future()
            return self._flight, True

    def end(self, flight: Future[T], error: BaseException | None = None, result: T | None = None) -> None:
        """Give those who wait the result or the error; the next ``join`` begins a new flight."""
        with self._lock:
            self._flight = None
        if error is not None:
            flight.set_exception(error)
        else:
            flight.set_result(result)  # type: ignore[arg-type]  # T may be None
