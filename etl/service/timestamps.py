"""Has the last seal stamped by an external authority: `[seal] timestamp_url`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import structlog

from etl.errors import DatabaseError, SigningError
from etl.report.conditions import DetectedCondition
from etl.store import Store
from etl.system.background import BackgroundLoop

if TYPE_CHECKING:  # its libraries come with an extra
    from etl.signing.timestamps import TimeStamp

LOOK_SECONDS: Final = 60.0
AGAIN_SECONDS: Final = 600.0
"""How long to wait after a failed request."""
_STOP_SECONDS: Final = 3.0


class TimeStamps:
    """Runs in a separate thread: no run or seal waits for an authority. A failure is a condition."""

    def __init__(
        self,
        store: Store,
        request: Callable[[bytes], TimeStamp],
        *,
        active: Callable[[], bool],
        clock: Callable[[], dt.datetime],
        every: dt.timedelta,
    ) -> None:
        """``request`` asks the authority once; it raises SigningError."""
        self._store = store
        self._request = request
        self._active = active
        self._clock = clock
        self._every = every
        self._failing: DetectedCondition | None = None
        self._loop = BackgroundLoop(
            "timestamps", self._step, first_after_seconds=LOOK_SECONDS, stop_within_seconds=_STOP_SECONDS
        )
        self._log: Any = structlog.get_logger("etl.service.timestamps")

    def running(self) -> BackgroundLoop:
        """Ask when a stamp is due, while the block runs."""
        return self._loop

    def condition(self) -> DetectedCondition | None:
        """The last request failed."""
        return self._failing if self._active() else None

    def _step(self) -> float:
        try:
            self.stamp_if_due()
        except DatabaseError:
            return LOOK_SECONDS
        except Exception:
            self._log.exception("timestamp_failed", remedy="it is asked for again")
        return LOOK_SECONDS if self._failing is None else AGAIN_SECONDS

    def stamp_if_due(self) -> None:
        """Have the last seal stamped, if that is due. Raises DatabaseError."""
        last = self._store.last_seal() if self._active() else None
        if last is None or last.seal_id == last.stamped_seal or not self._is_due(last.stamped_at):
            return
        try:
            stamp = self._request(last.message)
        except SigningError as error:
            self._fail(last.seal_id, str(error))
            return
        if self._store.keep_timestamp(last.seal_id, stamp.at, stamp.token):
            self._log.info("seal_stamped", seal=last.seal_id, at=str(stamp.at))
        self._failing = None

    def _is_due(self, stamped_at: dt.datetime | None) -> bool:
        """Whether a stamp is due. One ahead of now was made while our clock was wrong, or the authority's clock is."""
        now = self._clock()
        return stamped_at is None or not now - self._every < stamped_at <= now + self._every

    def _fail(self, seal_id: int, error: str) -> None:
        summary = f"No time stamp could be got for seal {seal_id}: {error.removesuffix('.')}"
        since = self._failing.since if self._failing else self._clock()
        if self._failing is None:
            self._log.warning("timestamp_failed", error=error, remedy="it is asked for again; no run waits for it")
        self._failing = DetectedCondition("timestamps_failing", summary, since=since)
