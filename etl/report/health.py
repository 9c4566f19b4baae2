"""The state of the targets and of the service: which targets fail, are refused, held or overdue, and what ran last.

Only this module reads these facts. `/freshness`, `/metrics`, `status`, the page and the report show its result, so they
cannot disagree. A time ahead of now was recorded while a clock was ahead. It counts neither as an observation, nor as a
change or a success: a target that was last observed then is judged like one that was never observed, by its failures
and by whether the runs of its schedule end.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Connection, Engine, bindparam, text

from etl.config import Schedule
from etl.domain.model import REFUSED_FOR_GOOD, Target
from etl.report import condition_checks
from etl.report.conditions import Condition, DetectedCondition, clock_went_back, conditions, overdue
from etl.report.overdue import Overdue, overdue_targets, records_of
from etl.report.reading import short_transaction
from etl.schema import UtcTime

REFUSED_NAMED_AT_MOST: Final = 100
CLOCKS_DIFFER_BY: Final = dt.timedelta(minutes=1)
"""How far ahead of now a time may lie without being reported: the clocks of machines differ a little."""


class TargetSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What the database alone says about the targets that are not retired. Times are aware, in UTC.

    No target is both ``failing`` and ``refused``; any target may be held as well.
    """

    targets: int
    never_observed: int
    failing: int
    """Targets whose last attempt got no valid answer, but whose next one may."""
    refused: int
    """Targets that EnOS refuses until somebody changes a right or the schedule."""
    held: int
    held_workflows: int
    listed: int
    """Workflows in the lists of all targets; one that two targets see counts twice."""
    checked: condition_checks.LastCheck | None = None
    """The service's last check of the trail."""
    detected: Sequence[DetectedCondition] = ()
    """What is wrong with the targets and in general."""
    began: Mapping[tuple[str, str], dt.datetime] = {}
    """When conditions began, by code and cause, as the active service has stored it."""
    ahead: int
    """Targets whose latest observation lies ahead of now, by more than clocks differ."""
    ahead_until: dt.datetime | None
    """The latest of those observations."""
    last_observation_at: dt.datetime | None
    oldest_observation_at: dt.datetime | None
    """The latest observation of the target that was observed least recently."""
    overdue: tuple[Overdue, ...] | None = None
    """None: the schedules are not known."""

    def conditions(self, own: Sequence[DetectedCondition] = ()) -> list[Condition]:
        """What is wrong, the worst first; ``own``: what only the calling process knows."""
        return conditions([*own, *self._detected()], dict(self.began))

    def _detected(self) -> list[DetectedCondition]:
        clock = [] if self.ahead_until is None else [clock_went_back(self.ahead, self.ahead_until)]
        return [*self.detected, *clock]


class HealthSnapshot(TargetSummary, frozen=True, kw_only=True):
    """The same, plus what needs the schedules: which targets are overdue."""

    last_change_at: dt.datetime | None
    overdue: tuple[Overdue, ...]
    refused_targets: tuple[Target, ...]
    """The first hundred."""
    last_success_at: Mapping[str, dt.datetime | None]
    """When the last run of each schedule ended in which some target succeeded; None: there was none yet."""

    def _detected(self) -> list[DetectedCondition]:
        late = [overdue(len(self.overdue), [str(each.target) for each in self.overdue[:3]])] if self.overdue else []
        return [*super()._detected(), *late]

    @property
    def fresh(self) -> bool:
        """Whether no target is overdue. A refused target never is: it is reported, but pages nobody."""
        return not self.overdue

    @property
    def freshness(self) -> Literal["fresh", "overdue"]:
        return "fresh" if self.fresh else "overdue"

    @property
    def overdue_by_schedule(self) -> dict[str, int]:
        """How many targets of each schedule are overdue."""
        counts = Counter(each.schedule for each in self.overdue)
        return {name: counts[name] for name in self.last_success_at}


_CODES: Final[dict[str, Any]] = {"codes": sorted(REFUSED_FOR_GOOD)}
_EACH_CODE: Final[Any] = bindparam("codes", expanding=True)
_SUMMARY: Final = (
    text("""
    SELECT count(*) AS targets, coalesce(sum(CASE WHEN versions = 0 THEN 1 ELSE 0 END), 0) AS never_observed,
           coalesce(sum(CASE WHEN last_error_code IN :codes THEN 0 WHEN consecutive_failures > 0 THEN 1 ELSE 0 END), 0)
               AS failing,
           coalesce(sum(CASE WHEN last_error_code IN :codes THEN 1 ELSE 0 END), 0) AS refused,
           coalesce(sum(CASE WHEN held_since IS NOT NULL THEN 1 ELSE 0 END), 0) AS held,
           coalesce(sum(flow_count), 0) AS listed,
           min(CASE WHEN last_observed_at <= :now THEN last_observed_at END) AS oldest_observation_at,
           max(CASE WHEN last_observed_at <= :now THEN last_observed_at END) AS last_observation_at,
           coalesce(sum(CASE WHEN last_observed_at > :ahead THEN 1 ELSE 0 END), 0) AS ahead,
           max(CASE WHEN last_observed_at > :ahead THEN last_observed_at END) AS ahead_until
      FROM target_health WHERE retired_at IS NULL
    """)
    .bindparams(_EACH_CODE, bindparam("now", type_=UtcTime), bindparam("ahead", type_=UtcTime))
    .columns(oldest_observation_at=UtcTime, last_observation_at=UtcTime, ahead_until=UtcTime)
)
_HELD_REMOVALS: Final = text("""
    SELECT count(*) FROM workflow w JOIN target t ON t.id = w.target_id
     WHERE (w.missing_since IS NOT NULL OR w.doubted IS NOT NULL) AND t.held_since IS NOT NULL AND t.retired_at IS NULL
    """)
_LAST_CHANGE: Final = (
    text("SELECT max(observed_at) AS at FROM change_set WHERE observed_at <= :now")
    .bindparams(bindparam("now", type_=UtcTime))
    .columns(at=UtcTime)
)
_REFUSED: Final = text("""
    SELECT org_id, user_id, expression FROM target WHERE retired_at IS NULL AND last_error_code IN :codes
     ORDER BY org_id, user_id, expression LIMIT :most
    """).bindparams(_EACH_CODE)


def read(
    engine: Engine,
    schedules: Sequence[Schedule],
    now: dt.datetime,
    known_since: Mapping[str, dt.datetime] | None = None,
) -> HealthSnapshot:
    """The health of ``schedules`` at ``now``, in one short transaction.

    ``known_since``: since when the service has known each schedule; used for schedules that never ran. Raises
    DatabaseError.
    """
    with short_transaction(engine) as connection:
        return read_within(connection, schedules, now, known_since)


def read_within(
    connection: Connection,
    schedules: Sequence[Schedule],
    now: dt.datetime,
    known_since: Mapping[str, dt.datetime] | None = None,
) -> HealthSnapshot:
    """The same, within the caller's transaction."""
    records = records_of(connection, schedules, now)
    summary = _summary(connection, now)
    summary["detected"] += condition_checks.of_schedules(connection, schedules, summary["targets"])
    return HealthSnapshot(
        **summary,
        last_change_at=connection.execute(_LAST_CHANGE, {"now": now}).scalar_one(),
        overdue=tuple(overdue_targets(connection, schedules, records, now, known_since or {})),
        refused_targets=tuple(
            Target(*row) for row in connection.execute(_REFUSED, {**_CODES, "most": REFUSED_NAMED_AT_MOST})
        ),
        last_success_at={name: record.succeeded_at for name, record in records.items()},
    )


def summary_within(connection: Connection, now: dt.datetime) -> TargetSummary:
    """The part that needs no schedules. Raises DatabaseError."""
    return TargetSummary(**_summary(connection, now))


def _summary(connection: Connection, now: dt.datetime) -> dict[str, Any]:
    found = connection.execute(_SUMMARY, {**_CODES, "now": now, "ahead": now + CLOCKS_DIFFER_BY}).one()
    held_workflows = connection.execute(_HELD_REMOVALS).scalar_one()
    stored = condition_checks.read_stored(connection, now)
    damage = condition_checks.damage_of(connection.engine)
    check = condition_checks.last_check(connection)
    wrong = [
        *([damage] if damage else condition_checks.of_the_disk(connection.engine)),
        *stored.of_the_service,
        *condition_checks.of_the_trail(check),
        *condition_checks.of_targets(connection, found.targets - found.refused, found.held, held_workflows),
    ]
    return {
        **found._mapping,
        "held_workflows": held_workflows,
        "detected": wrong,
        "began": stored.since,
        "checked": check,
    }
