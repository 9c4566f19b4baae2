"""How the service looks after its proof: it checks its trail, and has its last seal stamped by an authority."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Engine

from etl import database, verify
from etl.domain.model import latest_of
from etl.errors import DatabaseError, SigningError
from etl.log import get_logger
from etl.report.conditions import Condition
from etl.store import Store
from etl.store.lease import Verified
from etl.system.background import BackgroundLoop

if TYPE_CHECKING:  # its libraries come with an extra
    from etl.signing.keys import PublicKey
    from etl.signing.timestamps import TimeStamp

LOOK_SECONDS: Final = 60.0
AGAIN_SECONDS: Final = 600.0
"""How long to wait after a failed request for a time stamp."""
_REMEDY: Final = "keep a copy of the database as it is, then run `flowtrail verify`"
_REST_AFTER_SECONDS: Final = 0.05
_OVERDUE: Final = 2
"""This many times ``every`` may pass before it is reported."""
_STOP_SECONDS: Final = 3.0


class _Stopped(Exception):
    """The service ends or is no longer active; the next active replica begins the check again."""


@dataclass(eq=False)
class Verification:
    """Runs in a separate thread. A finding stops nothing: it becomes a condition, and is logged."""

    engine: Engine
    store: Store
    _: KW_ONLY
    active: Callable[[], bool]
    clock: Callable[[], dt.datetime]
    every: dt.timedelta | None
    """How often what is new is checked, and how often all of it is (``full``); None: never."""
    full: dt.timedelta | None
    keys: Sequence[PublicKey] = ()
    """The keys of valid signatures; empty: not checked."""

    def __post_init__(self) -> None:
        self.loop = BackgroundLoop(
            "verification", self._step, first_after_seconds=LOOK_SECONDS, stop_within_seconds=_STOP_SECONDS
        )
        self._checked_at: dt.datetime | None = None
        """The time of the last check; before the first one, since when this replica has been active."""
        self._log: Any = get_logger("etl.service.verification")

    def _step(self) -> float:
        try:
            self.check_if_due()
        except (_Stopped, DatabaseError):
            return LOOK_SECONDS
        except Exception:
            self._log.exception("verification_failed", remedy="run `flowtrail verify`")
        return LOOK_SECONDS

    def check_if_due(self) -> None:
        """Check what is due, if anything."""
        if not self.active():
            return
        now, done = self.clock(), {each.kind: each for each in self.store.verified()}
        latest = max(done.values(), key=lambda each: each.ended_at, default=None)
        self._checked_at = latest_of(latest and latest.ended_at, self._checked_at) or now
        if _is_due(done.get("full"), self.full, now):
            self._check("full")
        elif _is_due(latest, self.every, now):
            if latest is not None and latest.findings:
                self._check(latest.kind)  # new rows cannot show that it was repaired
            else:
                self._check("trail", latest.last_seal if latest else 0)

    def condition(self) -> Condition | None:
        """The condition that a check is long overdue."""
        at, every = self._checked_at, self.every
        if every is None or at is None or not self.active() or self.clock() - at <= _OVERDUE * every:
            return None
        summary = f"The trail should be checked every {every}; last check at {at.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"
        return Condition("verify_overdue", summary, since=at)

    def _check(self, kind: str, since: int = 0) -> None:
        """Read the trail after the seal ``since``; record the findings, and up to which seal it was read."""
        began, working_since = self.clock(), time.monotonic()
        done, sealing = verify.Progress(0, 0, 0, 0), verify.Sealing(last=since)

        def report(progress: verify.Progress) -> None:
            """Rest as long as the work took, so that it takes at most half of a processor."""
            nonlocal done, working_since
            done = progress
            if not self.active() or self.loop.stopping:
                raise _Stopped
            if (worked := time.monotonic() - working_since) > _REST_AFTER_SECONDS:
                self.loop.wait(worked)
                working_since = time.monotonic()

        found = verify.verify(self.engine, since=since, progress=report, sealing=sealing, keys=self.keys)
        findings = [str(finding) for finding in found]
        if kind == "full":
            whole = database.integrity(self.engine)
            findings += [f"the file is damaged: {said}" for said in whole.damage]
        sums = {"targets": done.targets, "change_sets": done.change_sets, "last_seal": sealing.last}
        self.store.keep_verified(
            Verified(
                kind=kind,
                began_at=began,
                ended_at=self.clock(),
                **sums,
                findings=len(findings),
                finding="".join(findings[:1]),
            )
        )
        for finding in findings[:10]:
            self._log.error("trail_broken", finding=finding, remedy=_REMEDY)
        self._log.info("verified", kind=kind, after_seal=since, **sums, findings=len(findings))


def _is_due(done: Verified | None, every: dt.timedelta | None, now: dt.datetime) -> bool:
    """Whether a check is due. One that ended ahead of now was dated by a wrong clock, and does not count."""
    return every is not None and (done is None or not now - every < done.ended_at <= now)


@dataclass(eq=False)
class TimeStamps:
    """Runs in a separate thread: no run or seal waits for an authority. A failure is a condition."""

    store: Store
    request: Callable[[bytes], TimeStamp]
    """Asks the authority once; it raises SigningError."""
    _: KW_ONLY
    active: Callable[[], bool]
    clock: Callable[[], dt.datetime]
    every: dt.timedelta

    def __post_init__(self) -> None:
        self._failing: Condition | None = None
        self.loop = BackgroundLoop(
            "timestamps", self._step, first_after_seconds=LOOK_SECONDS, stop_within_seconds=_STOP_SECONDS
        )
        self._log: Any = get_logger("etl.service.verification")

    def condition(self) -> Condition | None:
        """The last request failed."""
        return self._failing if self.active() else None

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
        last = self.store.last_seal() if self.active() else None
        if last is None or last.seal_id == last.stamped_seal or not self._is_due(last.stamped_at):
            return
        try:
            stamp = self.request(last.message)
        except SigningError as error:
            self._fail(last.seal_id, str(error))
            return
        if self.store.keep_timestamp(last.seal_id, stamp.at, stamp.token):
            self._log.info("seal_stamped", seal=last.seal_id, at=str(stamp.at))
        self._failing = None

    def _is_due(self, stamped_at: dt.datetime | None) -> bool:
        """Whether a stamp is due. One ahead of now was made while our clock was wrong, or the authority's clock is."""
        now = self.clock()
        return stamped_at is None or not now - self.every < stamped_at <= now + self.every

    def _fail(self, seal_id: int, error: str) -> None:
        summary = f"No time stamp could be got for seal {seal_id}: {error.removesuffix('.')}"
        since = self._failing.since if self._failing else self.clock()
        if self._failing is None:
            self._log.warning("timestamp_failed", error=error, remedy="it is asked for again; no run waits for it")
        self._failing = Condition("timestamps_failing", summary, since=since)
