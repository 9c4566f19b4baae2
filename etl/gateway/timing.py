"""When a request may go out and with which timestamp, how long to pause between tries, and how far clocks are apart."""

from __future__ import annotations

import datetime as dt
import random
import threading
import time
from array import array
from collections.abc import Callable, Hashable, Mapping
from typing import Final, NamedTuple, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from etl.errors import GatewayUnreachable, PermanentGatewayError, TransientGatewayError
from etl.gateway.deadline import Deadline
from etl.gateway.errors import CERTIFICATE, http_date

T = TypeVar("T")

RETRY_AFTER_FLOOR_SECONDS: Final = 0.2
_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 60.0
_TOO_LOW: Final = "[gateway] requests_per_second is too low for its concurrency"
_PAUSED: Final = "the gateway had too much to do, and all requests pause for longer than that"
_BUCKETS: Final = 4096
_CORRECTED_BACK_MS: Final = 60_000
_backoff = wait_random_exponential(multiplier=0.2, max=20, min=0.05)


class RequestPacing:
    """Limits the requests of all threads together: so many a second, evenly spaced (0: no limit); none in a pause."""

    def __init__(self, requests_per_second: float) -> None:
        self._interval = 1 / requests_per_second if requests_per_second > 0 else 0.0
        self._lock = threading.Lock()
        self._next = self._quiet_until = 0.0
        self._pause = _FIRST_PAUSE_SECONDS
        self.slowed_seconds = 0.0
        """How long all requests together have paused because the gateway had too much to do."""

    def wait_for_turn(self, deadline: Deadline) -> None:
        """Waits for this request's turn; raises if the deadline would pass before it, or a stop comes."""
        if self._interval or self._quiet_until > time.monotonic():
            deadline.pause(self._seconds_to_turn(deadline))
        deadline.check()

    def slow_down(self, asked_seconds: float | None) -> None:
        """Begin a pause: as long as the gateway asks for, or (None) twice as long each time, until something is
        answered."""
        with self._lock:
            now = time.monotonic()
            if asked_seconds is None and now < self._quiet_until:
                return  # it was sent before the pause
            until = now + min(self._pause if asked_seconds is None else asked_seconds, _LONGEST_PAUSE_SECONDS)
            self.slowed_seconds += max(0.0, until - max(now, self._quiet_until))
            self._quiet_until = max(until, self._quiet_until)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)

    def answered(self) -> None:
        """The gateway answers: the next pause is short again."""
        self._pause = _FIRST_PAUSE_SECONDS

    def _seconds_to_turn(self, deadline: Deadline) -> float:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next, self._quiet_until)
            if turn >= deadline.ends_at:
                paused = self._quiet_until >= deadline.ends_at
                why, code = (_PAUSED, "http_429") if paused else (_TOO_LOW, "deadline")
                error = GatewayUnreachable(f"no turn within the deadline of {deadline.seconds:g} s: {why}", code=code)
                error.gateway_down_evidence = paused
                raise error
            self._next = turn + self._interval
        return turn - now


def retry_until_deadline(work: Callable[[], T], first: TransientGatewayError, deadline: Deadline) -> T:
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
        sleep=deadline.pause,
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


class Moment(NamedTuple):
    at: dt.datetime
    timestamp_ms: int


class Timestamps:
    """Timestamps that strictly increase for each asker, in constant memory (askers share 4096 buckets).

    If the wall clock is set back by less than a minute, timestamps go on in steps of 1 ms; if by more, they follow it.
    """

    def __init__(self, clock: Callable[[], dt.datetime]) -> None:
        self._clock = clock
        self._last = array("q", bytes(8 * _BUCKETS))
        self._lock = threading.Lock()

    def next(self, asker: Hashable) -> Moment:
        bucket = hash(asker) % _BUCKETS
        with self._lock:
            at = self._clock()
            now, last = int(at.timestamp() * 1000), self._last[bucket]
            set_back = now < last - _CORRECTED_BACK_MS
            stamp = self._last[bucket] = now if now > last or set_back else last + 1
        return Moment(at, stamp)


class GatewayClock:
    """Compares the gateway's clock with ours. ``max_skew`` of 0 allows any difference."""

    def __init__(self, max_skew: dt.timedelta) -> None:
        self._max_seconds = max_skew.total_seconds()
        self.skew: dt.timedelta | None = None
        """How far the gateway was ahead of us in its latest answer; None: not known yet."""

    def measure(self, headers: Mapping[str, str], headers_at: dt.datetime, asked_at: dt.datetime) -> float:
        """The skew in seconds, beyond what the request itself took; negative where the gateway is behind; 0 where the
        answer does not tell."""
        date = http_date(headers.get("Date", ""))
        if date is None:
            return 0.0
        behind = (date - asked_at).total_seconds() + 1  # the header has whole seconds, rounded down
        seconds = (date - headers_at).total_seconds() if date > headers_at else min(behind, 0.0)
        self.skew = dt.timedelta(seconds=seconds)
        return seconds

    def refuse(self, seconds: float) -> None:
        """Raises PermanentGatewayError where clocks so far apart make an answer untrustworthy."""
        if self._max_seconds <= 0 or abs(seconds) <= self._max_seconds:
            return
        way = "ahead of" if seconds > 0 else "behind"
        raise PermanentGatewayError(
            f"the gateway's clock (its Date header) is {abs(seconds):.0f} s {way} this machine's: set the clock right,"
            " or allow more by [gateway] max_clock_skew",
            code="clock_skew",
        )
