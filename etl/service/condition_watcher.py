"""Watches conditions: their beginnings and ends are logged, and the active replica stores them."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import structlog

from etl.errors import DatabaseError
from etl.report.conditions import OF_THE_DATABASE, OF_THE_SERVICE, Condition, DetectedCondition, conditions
from etl.report.health import HealthSnapshot
from etl.store import Store
from etl.store.notifications import OpenCondition
from etl.system.background import BackgroundLoop

TICK_SECONDS: Final = 5.0
_SHARE: Final = 20
"""Reading the state of all targets takes at most one twentieth of the time."""


class ConditionWatcher:
    """Runs in a separate thread, so that nothing slow delays a run."""

    def __init__(
        self,
        store: Store,
        *,
        active: Callable[[], bool],
        read: Callable[[], HealthSnapshot],
        own: Callable[[], Sequence[DetectedCondition]],
        clock: Callable[[], dt.datetime],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """``read``: what the database knows; ``own``: what only this process knows; ``changed`` is called after
        changes."""
        self._store = store
        self._active = active
        self._read = read
        self._own = own
        self._clock = clock
        self._changed = changed
        self._not_before = 0.0
        self._unwritten: dict[tuple[str, str], Condition] = {}
        """Conditions of the database itself, which cannot be stored."""
        self._log: Any = structlog.get_logger("etl.service.conditions")

    def running(self) -> BackgroundLoop:
        """Watch while the block runs."""
        return BackgroundLoop(
            "conditions", self._step, first_after_seconds=TICK_SECONDS, stop_within_seconds=TICK_SECONDS
        )

    def _step(self) -> float:
        try:
            self.check()
        except DatabaseError:  # the service itself reports that it cannot write
            return TICK_SECONDS
        except Exception:
            self._log.exception("conditions_not_read")
        return TICK_SECONDS

    def check(self) -> None:
        """Compare what is wrong now with what was wrong before."""
        own = list(self._own())
        self._log_database_conditions([each for each in conditions(own) if each.code in OF_THE_DATABASE])
        if self._unwritten or not self._active() or time.monotonic() < self._not_before:
            return
        began = time.monotonic()
        found = self._read().conditions(own)
        mine = {(each.code, each.cause) for each in own}
        now = self._clock()
        # what an active replica stored about itself ends with its cause, not with what it reads back
        wrong = [each for each in found if each.code not in OF_THE_DATABASE]
        wrong = [each for each in wrong if each.code not in OF_THE_SERVICE or each.key in mine]
        changes = self._store.keep_conditions([_open_condition(each, now) for each in wrong], now)
        self._not_before = time.monotonic() + _SHARE * (time.monotonic() - began)
        by_key = {each.key: each for each in wrong}
        for begun in changes.began:
            self._log_begun(by_key[begun.code, begun.cause])
        for ended in changes.ended:
            self._log.info("condition_ended", code=ended.code, sentence=ended.said)
        if changes.began or changes.ended:
            self._changed()

    def _log_database_conditions(self, found: Sequence[Condition]) -> None:
        now = {each.key: each for each in found}
        for key in now.keys() - self._unwritten.keys():
            self._log_begun(now[key])
        for key in self._unwritten.keys() - now.keys():
            self._log.info("condition_ended", code=key[0], sentence=self._unwritten[key].sentence)
        self._unwritten = now

    def _log_begun(self, condition: Condition) -> None:
        level = {"down": self._log.error, "degraded": self._log.warning, "notice": self._log.info}
        level[condition.severity](
            "condition_began",
            code=condition.code,
            subjects=condition.subjects,
            sentence=condition.sentence,
            remedy=condition.remedy,
        )


def _open_condition(each: Condition, now: dt.datetime) -> OpenCondition:
    return OpenCondition(
        each.code,
        each.cause,
        each.since or now,
        each.subjects,
        msgspec.json.encode(list(each.first)).decode(),
        each.summary,
        each.remedy,
    )
