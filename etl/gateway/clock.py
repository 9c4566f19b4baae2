"""How far the gateway's clock is from ours, by the Date header of its answers."""

from __future__ import annotations

import datetime as dt

from etl.errors import PermanentGatewayError
from etl.gateway.faults import http_date
from etl.gateway.transport import Reply


class GatewayClock:
    """Compares the gateway's clock with ours. ``max_skew`` of 0 allows any difference."""

    def __init__(self, max_skew: dt.timedelta) -> None:
        self._max_seconds = max_skew.total_seconds()
        self.skew: dt.timedelta | None = None
        """How far the gateway was ahead of us in its latest answer; None: not known yet."""

    def measure(self, reply: Reply, asked_at: dt.datetime) -> float:
        """The skew in seconds, negative where the gateway is behind; 0 where the answer does not tell."""
        date = http_date(reply.headers.get("Date", ""))
        if date is None:
            return 0.0
        seconds = _skew_seconds(date, asked_at, reply.headers_at)
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


def _skew_seconds(date: dt.datetime, asked_at: dt.datetime, headers_at: dt.datetime) -> float:
    """Beyond what the request itself took."""
    if date > headers_at:
        return (date - headers_at).total_seconds()
    behind = (date - asked_at).total_seconds() + 1  # the header has whole seconds, rounded down
    return min(behind, 0.0)
