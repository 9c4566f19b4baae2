"""What the active replica does besides its runs: it keeps heads, deletes old issues, and stores what is wrong."""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import Engine

from etl.errors import DatabaseError
from etl.log import get_logger
from etl.report.conditions import OF_THE_DATABASE, OF_THE_SERVICE, Condition, conditions
from etl.report.health import HealthSnapshot
from etl.store import Store
from etl.store.notifications import OpenCondition
from etl.system.background import BackgroundLoop
from etl.verify import HeadsFile

TICK_SECONDS: Final = 5.0
"""How soon the heads of a finished run are in the file."""
PRUNE_SECONDS: Final = 3600.0
UNSURE_SECONDS: Final = 300.0
"""How long to wait for a gateway's `Date` before pruning without it; some gateways never send one."""
_SHARE: Final = 20
"""Reading the heads, or the state, of all targets takes at most one twentieth of the time."""
_STOP_SECONDS: Final = 3.0


_log = get_logger("etl.service.maintenance")


def append_heads(heads: HeadsFile, now: dt.datetime) -> None:
    """Append to the file of heads what it does not have, and log what that shows. Raises OSError and DatabaseError."""
    appended = heads.catch_up(now)
    if appended.heads:
        _log.debug("heads_kept", heads=appended.heads)
    if appended.set_back:
        _log.warning(
            "heads_set_back",
            targets=appended.set_back,
            remedy="the file of heads knew later versions: was a backup restored? See `flowtrail verify --against`",
        )


def keep_heads_once(file: Path, engine: Engine, now: dt.datetime) -> None:
    """The same for a command. A file that cannot be written is logged: whatever appends to it next catches up. Raises
    DatabaseError."""
    try:
        append_heads(HeadsFile(file, engine), now)
    except OSError as error:
        remedy = f"the run is recorded, and the next one that appends here catches up; look at {file}"
        _log.warning("heads_file_failed", error=str(error), remedy=remedy)


@dataclass(eq=False)
class Maintenance:
    """Runs in a separate thread, so that a slow or full disk delays no run. It works while ``active``."""

    store: Store
    _: KW_ONLY
    active: Callable[[], bool]
    clock: Callable[[], dt.datetime]
    keep_runs: dt.timedelta | None
    heads: HeadsFile | None
    has_receivers: bool
    clock_is_right: Callable[[], bool | None] = lambda: True
    """None while unknown; nothing is deleted while it is False."""

    def __post_init__(self) -> None:
        self.loop = BackgroundLoop(
            "maintenance",
            self._step,
            first_after_seconds=TICK_SECONDS,
            last_step=True,  # for the last runs
            stop_within_seconds=_STOP_SECONDS,
        )
        self._seen: object = None
        self._active_since: float | None = None
        self._prune_at = self._look_at = 0.0
        self._troubles: dict[str, str] = {}

    def _step(self) -> float:
        if not self.active():
            self._seen, self._active_since, self._prune_at = None, None, 0.0
            return TICK_SECONDS
        self._active_since = self._active_since or time.monotonic()
        if self.heads is not None:
            self._attempt("heads_file", self._keep_heads, remedy=f"it is tried again; look at {self.heads.path}")
        if self.keep_runs is not None and time.monotonic() >= self._prune_at and self._may_go_on():
            self._attempt("pruning", self._prune, remedy="it is tried again")
        return TICK_SECONDS

    def _attempt(self, what: str, work: Callable[[], None], remedy: str) -> None:
        """Log a failure once, and the recovery. The service itself logs that the database is away."""
        try:
            work()
        except DatabaseError:
            return
        except Exception as error:
            if self._troubles.get(what) != str(error):
                _log.warning(f"{what}_failed", error=str(error), remedy=remedy)
            self._troubles[what] = str(error)
        else:
            if self._troubles.pop(what, None) is not None:
                _log.info(f"{what}_works_again")

    def _keep_heads(self) -> None:
        """Append the heads. Only runs change them: there is nothing to do until one has begun, written or ended."""
        assert self.heads is not None  # noqa: S101 - the caller looked
        began = time.monotonic()
        marks = self.store.marks()
        if marks == self._seen or (began < self._look_at and not self.loop.stopping):
            return
        append_heads(self.heads, self.clock())
        self._seen, self._look_at = marks, began + _SHARE * (time.monotonic() - began)

    def _prune(self) -> None:
        assert self.keep_runs is not None  # noqa: S101 - the caller looked
        self._prune_at = time.monotonic() + PRUNE_SECONDS
        now = self.clock()
        gone = self.store.prune_runs(now - self.keep_runs, now, has_receivers=self.has_receivers, go_on=self._may_go_on)
        if gone.runs:
            _log.info("runs_pruned", runs=gone.runs, issues=gone.issues)

    def _may_go_on(self) -> bool:
        """Not by a clock that is not trusted: one that is years ahead would make every run look old."""
        right = self.clock_is_right()
        if right is None:
            right = time.monotonic() - (self._active_since or math.inf) >= UNSURE_SECONDS
        return self.active() and right and not self.loop.stopping


@dataclass(eq=False)
class ConditionWatcher:
    """Runs in a separate thread, so that nothing slow delays a run."""

    store: Store
    _: KW_ONLY
    active: Callable[[], bool]
    read: Callable[[], HealthSnapshot]
    """What the database knows."""
    own: Callable[[], Sequence[Condition]]
    """What only this process knows."""
    clock: Callable[[], dt.datetime]
    changed: Callable[[], None] = lambda: None
    """Called after changes."""

    def __post_init__(self) -> None:
        self._not_before = 0.0
        self._unwritten: dict[tuple[str, str], Condition] = {}
        """Conditions of the database itself, which cannot be stored."""
        self._log: Any = get_logger("etl.service.conditions")
        self.loop = BackgroundLoop(
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
        own = list(self.own())
        self._log_database_conditions([each for each in conditions(own) if each.code in OF_THE_DATABASE])
        if self._unwritten or not self.active() or time.monotonic() < self._not_before:
            return
        began = time.monotonic()
        found = self.read().conditions(own)
        mine = {(each.code, each.cause) for each in own}
        now = self.clock()
        # what an active replica stored about itself ends with its cause, not with what it reads back
        wrong = [each for each in found if each.code not in OF_THE_DATABASE]
        wrong = [each for each in wrong if each.code not in OF_THE_SERVICE or each.key in mine]
        changes = self.store.keep_conditions([_open_condition(each, now) for each in wrong], now)
        self._not_before = time.monotonic() + _SHARE * (time.monotonic() - began)
        by_key = {each.key: each for each in wrong}
        for begun in changes.began:
            self._log_begun(by_key[begun.code, begun.cause])
        for ended in changes.ended:
            self._log.info("condition_ended", code=ended.code, sentence=ended.said)
        if changes.began or changes.ended:
            self.changed()

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
