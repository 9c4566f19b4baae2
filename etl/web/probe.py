"""Checks something that may be slow or unreachable, for many concurrent callers that cannot wait long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Generic, TypeVar

from etl.errors import DatabaseUnreachable
from etl.system.background import SingleFlight

T = TypeVar("T")

PATIENCE_SECONDS: Final = 3.0
"""How long a caller waits; less than probes and scrapers wait for us."""
_REST: Final = 10
_LONGEST_REST_SECONDS: Final = 30.0
"""A check that took a second is not repeated for ten, so that frequent callers do not keep the database busy."""


class CachedProbe(Generic[T]):
    """The result or the error of ``look``, called by one thread at a time, within PATIENCE_SECONDS.

    If a call takes longer, the last result is returned until it is ``good_for_seconds`` old; then DatabaseUnreachable
    is raised. The call continues in its thread, and no other one begins meanwhile.
    """

    def __init__(self, look: Callable[[], T], *, good_for_seconds: float = 0.0) -> None:
        self._look = look
        self._good_for_seconds = good_for_seconds
        self._patience_seconds = PATIENCE_SECONDS
        self._flights = SingleFlight[T]()
        self._latest: Future[T] | None = None
        """The last result, which is returned until the rest is over."""
        self._rests_until = 0.0
        self._seen: T | None = None
        self._good_until = 0.0

    def __call__(self) -> T:
        try:
            return self._look_at_most_once().result(self._patience_seconds)
        except TimeoutError:
            if self._seen is not None and time.monotonic() < self._good_until:
                return self._seen
            raise DatabaseUnreachable(
                f"The database does not answer within {self._patience_seconds:g} s: it may be down, or busy."
            ) from None

    def _look_at_most_once(self) -> Future[T]:
        latest = self._latest
        if latest is not None and time.monotonic() < self._rests_until:
            return latest
        flight, leads = self._flights.join()
        if leads:
            threading.Thread(target=self._probe, args=(flight,), name="probe", daemon=True).start()
        return flight

    def _probe(self, flight: Future[T]) -> None:
        began = time.monotonic()
        try:
            self._seen = seen = self._look()
        except Exception as error:
            self._latest = None
            self._flights.end(flight, error)
            return
        ended = time.monotonic()
        self._good_until = ended + self._good_for_seconds
        self._rests_until = ended + min(_REST * (ended - began), _LONGEST_REST_SECONDS)
        self._latest = flight
        self._flights.end(flight, result=seen)
