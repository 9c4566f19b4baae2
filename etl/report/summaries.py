"""Sums and short lists for the page and the report, never all rows. Each function reads in the page's transaction."""

# ruff: noqa: S608 - every piece of a statement is a constant of this file; what comes from outside is bound

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, select, text

from etl.domain.holds import code, shown_set
from etl.domain.model import CYCLE_LABELS, Target
from etl.report.listings import IS_HELD, latest_reason
from etl.report.names import with_ids
from etl.report.reading import fetch, with_times
from etl.schema import TARGET_KEY, UtcTime, target

OTHER: Final = "other"
"""Stands for every cycle that EnOS does not document, and for no cycle."""
CYCLES: Final = (*reversed(CYCLE_LABELS), OTHER)


class Scope(NamedTuple):
    """Which days are summed up, both included, and of which organisation ("": of all)."""

    since: dt.date
    until: dt.date
    org: str = ""
    everything: bool = True
    """Whether coverage gaps and changes outside these days are listed, too."""
    zone: dt.tzinfo = dt.UTC
    """Where a day begins at midnight."""

    def __str__(self) -> str:
        return f"the time from {self.since} to {self.until}"

    @property
    def begins_at(self) -> dt.datetime:
        return dt.datetime.combine(self.since, dt.time(), self.zone)

    @property
    def ends_at(self) -> dt.datetime:
        """The first moment after it."""
        return dt.datetime.combine(self.until + dt.timedelta(days=1), dt.time(), self.zone)


class Day(NamedTuple):
    """What happened in the organisations on a day."""

    day: dt.date
    events: Mapping[str, int]
    """How many of each of ``EVENT_KINDS``."""


class DaySnapshot(NamedTuple):
    """What there was at the end of a day."""

    day: dt.date
    by_cycle: Mapping[str, int]
    """How many workflows the organisations had, for each of ``CYCLES``."""
    unobserved: int
    """Targets whose list is not known: in a coverage gap with changes inside, or in an open one."""
    targets: int
    """Targets that had been observed by then and were not retired."""

    @property
    def share_unobserved(self) -> float:
        """0 to 1."""
        return min(1.0, self.unobserved / self.targets) if self.targets else 0.0


class Churn(NamedTuple):
    """What happened in an organisation."""

    org_id: str
    events: Mapping[str, int]
    """How many of each of ``EVENT_KINDS``."""
    workflows: int
    """How many it has now."""


class Hold(NamedTuple):
    """A target of which something is held."""

    org_id: str
    user_id: str
    expression: str
    held_since: dt.datetime
    held_workflows: int
    flow_count: int
    reason: str | None
    code: str
    """The code that ``guard approve`` takes to approve exactly this."""


class MostChanged(NamedTuple):
    """A workflow that changed often."""

    org_id: str
    flow_id: str
    changes: int


def state(connection: Connection) -> tuple[int, ...]:
    """A value that changes whenever a sum of this module may: newest version, span and step, and a count of targets."""
    return tuple(int(number) for number in connection.execute(text(_STATE)).one())


_STATE: Final = """
SELECT coalesce((SELECT max(id) FROM change_set), 0), coalesce((SELECT max(id) FROM observation), 0),
       coalesce((SELECT max(id) FROM org_step), 0), (SELECT count(retired_at) + count(observation_id) FROM target)
"""


def entries(connection: Connection) -> int:
    """How many entries all lists have."""
    return int(connection.execute(text(_ENTRIES)).scalar_one())


_ENTRIES: Final = "SELECT coalesce(sum(flow_count), 0) FROM target WHERE retired_at IS NULL"


def workflows(connection: Connection, org: str = "") -> int:
    """How many workflows exist now; each counts once in its organisation."""
    sql = f"SELECT count(*) FROM org_workflow WHERE TRUE{_only(org)}"
    return int(connection.execute(text(sql), _given(org)).scalar_one())


def days(connection: Connection, scope: Scope) -> list[Day]:
    """Every day of the scope, with the events of its organisations."""
    found: dict[dt.date, Counter[str]] = {}
    sql = f"SELECT {_minute(connection, 'observed_at')}, kind, count(*) FROM org_event{_within(scope)} GROUP BY 1, 2"
    for day, kind, number in _by_day(connection, sql, scope):
        found.setdefault(day, Counter())[kind] += number
    return [Day(day, found.get(day, Counter())) for day in _calendar(scope.since, scope.until)]


def churn(connection: Connection, scope: Scope, limit: int) -> tuple[list[Churn], int]:
    """The organisations with most events, and how many have any."""
    found: dict[str, Counter[str]] = {}
    sql = f"SELECT org_id, kind, count(*) FROM org_event{_within(scope)} GROUP BY 1, 2"
    for org_id, kind, number in _rows(connection, sql, scope):
        found.setdefault(org_id, Counter())[kind] += int(number)
    most = sorted(found, key=lambda org_id: (-found[org_id].total(), org_id))[:limit]
    return [Churn(org_id, found[org_id], workflows(connection, org_id)) for org_id in most], len(found)


def day_snapshots(connection: Connection, scope: Scope, today: dt.date) -> list[DaySnapshot]:
    """The end of every day of the scope (today: now): how many workflows ``org_workflow_history`` has then."""
    until_now = scope._replace(until=today)
    unobserved, targets = _unobserved(connection, until_now), _targets(connection, until_now)
    count, gained = _before(connection, scope), _gained(connection, scope)
    found = []
    for day in _calendar(scope.since, scope.until):
        count.update(gained.get(day, {}))
        found.append(DaySnapshot(day, {cycle: count[cycle] for cycle in CYCLES}, unobserved[day], targets[day]))
    return found


def _before(connection: Connection, scope: Scope) -> Counter[str]:
    """How many workflows of each cycle there were when the scope begins."""
    sql = f"""
    SELECT {_cycle("cycle")}, count(*) FROM org_workflow_history
    WHERE valid_from < :since AND (valid_to IS NULL OR valid_to >= :since){_only(scope.org)} GROUP BY 1
    """
    return Counter({cycle: int(number) for cycle, number in _rows(connection, sql, scope)})


def _gained(connection: Connection, scope: Scope) -> dict[dt.date, Counter[str]]:
    """How many more workflows of each cycle there were at the end of each day than at its beginning."""
    gained: dict[dt.date, Counter[str]] = {}
    for bound, sign in (("valid_from", 1), ("valid_to", -1)):
        sql = f"""
        SELECT {_minute(connection, bound)}, {_cycle("cycle")}, count(*) FROM org_workflow_history
        WHERE {bound} >= :since AND {bound} < :end{_only(scope.org)} GROUP BY 1, 2
        """
        for day, cycle, number in _by_day(connection, sql, scope):
            gained.setdefault(day, Counter())[cycle] += sign * number
    return gained


def _unobserved(connection: Connection, scope: Scope) -> Counter[dt.date]:
    """How many gaps cover the end of each day, except those with the same list on both sides."""
    sql = f"""
    SELECT {_minute(connection, "gap_from")}, {_minute(connection, "gap_to")}, count(*)
    FROM coverage_gap
    WHERE (gap_to IS NULL OR (changed_inside AND gap_to >= :since)){_only(scope.org)} GROUP BY 1, 2
    """
    steps: Counter[dt.date] = Counter()
    for begins, ends, number in _by_day(connection, sql, scope, 2):
        steps[max(begins, scope.since)] += number
        steps[ends or scope.until + dt.timedelta(days=1)] -= number
    return _summed(steps, scope)


def first_day(connection: Connection, scope: Scope) -> dt.date | None:
    """The day of the first observation in the scope's organisations; None: there was none yet."""
    org = "WHERE target_id IN (SELECT id FROM target WHERE org_id = :org)" if scope.org else ""
    found = text(f"SELECT min(observed_at) AS at FROM change_set {org}").columns(at=UtcTime)
    first = connection.execute(found, _given(scope.org)).scalar()
    return None if first is None else first.astimezone(scope.zone).date()


_GONE: Final = "(CASE WHEN s.observed_at > away.left_at THEN s.observed_at ELSE away.left_at END)"
"""The start of an absence. (After a clock went back, answers may be dated into an absence.)"""
_AWAY: Final = """
SELECT target_id, at AS left_at, back_at
FROM (SELECT target_id, kind, at, lead(at) OVER (PARTITION BY target_id ORDER BY at, id) AS back_at
      FROM target_membership WHERE schedule IS NULL) memberships
WHERE kind = 'retired' AND back_at >= :since
"""
"""The absences of targets that were retired and came back."""


def _targets(connection: Connection, scope: Scope) -> Counter[dt.date]:
    """How many targets had been observed by the end of each day, and were not retired."""
    only, since, steps = _only(scope.org, "t.org_id"), scope.since, Counter[dt.date]()
    sql = f"""
    SELECT {_minute(connection, "s.observed_at")}, {_minute(connection, "t.retired_at")}, count(*)
    FROM target t JOIN change_set s ON s.target_id = t.id AND s.version = 1{only} GROUP BY 1, 2
    """
    for day, retired, number in _by_day(connection, sql, scope, 2):
        steps[max(day, since)] += number
        if retired is not None:
            steps[max(retired, since)] -= number
    away = f"""
    SELECT {_minute(connection, _GONE)}, {_minute(connection, "away.back_at")}, count(*)
    FROM ({_AWAY}) away JOIN target t ON t.id = away.target_id{only}
    JOIN change_set s ON s.target_id = away.target_id AND s.version = 1 AND s.observed_at <= away.back_at GROUP BY 1, 2
    """
    for left, back, number in _by_day(connection, away, scope, 2):
        steps[max(left, since)] -= number
        steps[max(back, since)] += number
    return _summed(steps, scope)


def _summed(steps: Counter[dt.date], scope: Scope) -> Counter[dt.date]:
    for before, day in pairwise(_calendar(scope.since, scope.until)):
        steps[day] += steps[before]
    return steps


def open_gap_count(connection: Connection) -> int:
    """How many gaps are open, without reading those that have ended."""
    return int(connection.execute(text(_OPEN_GAPS)).scalar_one())


_OPEN_GAPS: Final = """
SELECT count(*) FROM target WHERE observation_id IS NULL AND retired_at IS NULL AND version > 0
"""


def holds(connection: Connection, *, org: str = "", user: str = "", limit: int) -> list[Hold]:
    """The targets of which something is held, the oldest hold first, each with the latest reason and its code."""
    columns = (target.c.id, *TARGET_KEY, target.c.held_since, target.c.flow_count, latest_reason())
    chosen = select(*columns).where(IS_HELD).order_by(target.c.held_since, *TARGET_KEY)
    rows = connection.execute(with_ids(connection.dialect.name, chosen, org, user).limit(limit)).all()
    held = _held(connection, [row.id for row in rows])
    return [_hold(row, held[row.id]) for row in rows]


def _hold(row: Any, held: Sequence[tuple[str, str | None]]) -> Hold:
    whose = Target(row.org_id, row.user_id, row.expression)
    scope = shown_set(whose, row.held_since, held).scope
    return Hold(*whose, row.held_since, len(held), row.flow_count, row.reason, code(scope))


def _held(connection: Connection, target_ids: Sequence[int]) -> dict[int, list[tuple[str, str | None]]]:
    """The workflows of which something is held, and which changes, for each of these targets."""
    sql = text(
        "SELECT target_id, flow_id, doubted FROM workflow"
        " WHERE target_id IN :ids AND (missing_since IS NOT NULL OR doubted IS NOT NULL)"
    )
    held: dict[int, list[tuple[str, str | None]]] = {target_id: [] for target_id in target_ids}
    for target_id, *row in connection.execute(sql.bindparams(bindparam("ids", expanding=True)), {"ids": target_ids}):
        held[target_id].append((row[0], row[1]))
    return held


def most_changed(connection: Connection, scope: Scope, limit: int) -> list[MostChanged]:
    """The workflows to which most happened."""
    sql = f"""
    SELECT org_id, flow_id, count(*) FROM org_event{_within(scope)}
    GROUP BY org_id, flow_id ORDER BY 3 DESC, 1, 2 LIMIT :limit
    """
    return fetch(connection, MostChanged, sql, **_parameters(scope), limit=limit)


# ---------------------------------------------------------------------------------------------------- pieces of SQL


def _rows(connection: Connection, sql: str, scope: Scope) -> Iterable[Any]:
    """The rows of a statement with those of ``:since``, ``:end`` and ``:org`` that it names."""
    given = {name: value for name, value in _parameters(scope).items() if f":{name}" in sql}
    return connection.execute(with_times(sql, given), given)


def _by_day(connection: Connection, sql: str, scope: Scope, days: int = 1) -> Iterator[Any]:
    """Rows of a statement whose first ``days`` columns are ``_minute``, which become days of the scope's zone."""
    for row in _rows(connection, sql, scope):
        yield (*(_day_of(minute, scope.zone) for minute in row[:days]), *row[days:])


def _day_of(minute: str | None, zone: dt.tzinfo) -> dt.date | None:
    return dt.datetime.fromisoformat(f"{minute}+00:00").astimezone(zone).date() if minute else None


def _minute(connection: Connection, column: str) -> str:
    """The minute of a time, as text: zones begin their days with one, and the databases know fewer zones than we."""
    if connection.dialect.name == "sqlite":
        return f"substr({column}, 1, 16)"
    return f"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI')"


def _only(org: str, column: str = "org_id") -> str:
    return f" AND {column} = :org" if org else ""


def _within(scope: Scope) -> str:
    return f" WHERE observed_at >= :since AND observed_at < :end{_only(scope.org)}"


def _given(org: str) -> dict[str, Any]:
    return {"org": org} if org else {}


def _parameters(scope: Scope) -> dict[str, Any]:
    return {"since": scope.begins_at, "end": scope.ends_at, **_given(scope.org)}


def _cycle(column: str) -> str:
    return f"CASE WHEN {column} IN ({', '.join(map(repr, CYCLE_LABELS))}) THEN {column} ELSE '{OTHER}' END"


def _calendar(since: dt.date, until: dt.date) -> list[dt.date]:
    return [since + dt.timedelta(days=number) for number in range((until - since).days + 1)]
