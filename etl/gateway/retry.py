"""When a request may go out: the client-side limit, and the pauses between tries."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_before_delay,
    wait_random_exponential,
)

from etl.errors import GatewayUnreachable, TransientGatewayError
from etl.gateway.deadline import Deadline, Watchdog

T = TypeVar("T")

RETRY_AFTER_FLOOR_SECONDS: Final = 0.2
CERTIFICATE: Final = "tls_certificate"
_backoff = wait_random_exponential(multiplier=0.2, max=20, min=0.05)


class RequestPacing:
    """Limits the requests per second of all threads together, evenly spaced; 0 means no limit."""

    def __init__(self, requests_per_second: float, watchdog: Watchdog) -> None:
        self._interval = 1 / requests_per_second if requests_per_second > 0 else 0.0
        self._watchdog = watchdog
        self._lock = threading.Lock()
        self._next = 0.0

    def wait_for_turn(self, deadline: Deadline) -> None:
        """Waits for this request's turn; raises if the deadline would pass before it, or a stop comes."""
        if self._interval:
            self._watchdog.wait(self._seconds_to_turn(deadline))
        deadline.check()

    def _seconds_to_turn(self, deadline: Deadline) -> float:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            if turn >= deadline.ends_at:
                raise _no_turn(deadline)
            self._next = turn + self._interval
        return turn - now


def _no_turn(deadline: Deadline) -> GatewayUnreachable:
    error = GatewayUnreachable(
        f"no turn within the deadline of {deadline.seconds:g} s: [gateway] requests_per_second is too low for its"
        " concurrency",
        code="deadline",
    )
    error.gateway_down_evidence = False
    return error


def persist(work: Callable[[], T], first: TransientGatewayError, deadline: Deadline, stop: threading.Event) -> T:
    """Retries after a first failure: full jitter, ``Retry-After`` with a minimum, no pause beyond the deadline.

    Raises the last error if the next pause would end after the deadline, and errors that are not transient at once.
    """
    failed = [first]

    def again() -> T:
        if failed:
            raise failed.pop()
        return work()

    retrying = Retrying(
        stop=stop_before_delay(max(deadline.remaining(), 0)),
        wait=pause_seconds,
        retry=retry_if_exception(helps_to_retry),
        sleep=sleep_using_event(stop),
        reraise=True,
    )
    return retrying(again)


def helps_to_retry(error: BaseException) -> bool:
    """Whether it is transient; a bad certificate stays bad, and a deadline that has passed stays passed."""
    return isinstance(error, TransientGatewayError) and error.code not in (CERTIFICATE, "deadline")


def pause_seconds(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_seconds if isinstance(error, TransientGatewayError) else None
    if asked is None:
        return _backoff(state)
    return max(asked, RETRY_AFTER_FLOOR_SECONDS) + random.uniform(0, RETRY_AFTER_FLOOR_SECONDS)
