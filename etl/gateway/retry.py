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
    """At most so many requests a second, evenly spaced, by all threads together; 0 means no limit."""

    def __init__(self, requests_per_second: float, watchdog: Watchdog) -> None:
        self._interval = 1 / requests_per_second if requests_per_second > 0 else 0.0
        self._watchdog = watchdog
        self._lock = threading.Lock()
        self._next = 0.0

    def wait_for_turn(self, watch: Deadline) -> None:
        """Waits for this request's turn; raises when the deadline would pass before it, or a stop comes."""
        if self._interval:
            self._watchdog.wait(self._seconds_to_turn(watch))
        watch.check()

    def _seconds_to_turn(self, watch: Deadline) -> float:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            if turn >= watch.deadline:
                raise _no_turn(watch)
            self._next = turn + self._interval
        return turn - now


def _no_turn(watch: Deadline) -> GatewayUnreachable:
    error = GatewayUnreachable(
        f"no turn within the deadline of {watch.seconds:g} s: [gateway] requests_per_second is too low for its"
        " concurrency",
        code="deadline",
    )
    error.gateway_down_evidence = False
    return error


def persist(work: Callable[[], T], first: TransientGatewayError, watch: Deadline, stop: threading.Event) -> T:
    """Goes on after a first failure: full jitter, ``Retry-After`` with a floor, no pause past the deadline.

    Raises the last error when the next pause would end after the deadline, and at once what is not transient.
    """
    failed = [first]

    def again() -> T:
        if failed:
            raise failed.pop()
        return work()

    retrying = Retrying(
        stop=stop_before_delay(max(watch.remaining(), 0)),
        wait=pause_seconds,
        retry=retry_if_exception(helps_to_retry),
        sleep=sleep_using_event(stop),
        reraise=True,
    )
    return retrying(again)


def helps_to_retry(error: BaseException) -> bool:
    """Transient; but the certificate will be the same one a second later, and no time comes back."""
    return isinstance(error, TransientGatewayError) and error.code not in (CERTIFICATE, "deadline")


def pause_seconds(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_seconds if isinstance(error, TransientGatewayError) else None
    if asked is None:
        return _backoff(state)
    return max(asked, RETRY_AFTER_FLOOR_SECONDS) + random.uniform(0, RETRY_AFTER_FLOOR_SECONDS)
