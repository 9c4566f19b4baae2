"""Sums and short lists for the page and the report, never all rows. Each function reads in the page's transaction."""

# ruff: noqa: S608 - every piece of a statement is a constant of this file; what comes from outside is bound

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import Connection, bindparam, text

from etl.domain.holds import code, held_set
from etl.domain.kinds import DELTA_KINDS
from etl.domain.model import CYCLE_LABELS, Target
from etl.report import statements
from etl.report.fetch import fetch, with_times
from etl.report.names import with_ids
from etl.report.summary_rows import CYCLES, OTHER, Churn, Day, DaySnapshot, Gap, Hold, MostChanged, Scope
from etl.report.trail_page import KIND_SQL
from etl.schema import UtcTime


def state(connection: Connection) -> tuple[int, int, int]:
    """A value that changes whenever a sum of this module may: newest version, newest span, and a count of targets."""
    row = connection.execute(text(_STATE)).one()
    return int(row[0]), int(row[1]), int(row[2])


_STATE: Final = """
SELECT coalesce((SELECT max(id) FROM change_set), 0), coalesce((SELECT max(id) FROM observation), 0),
       (SELECT count(retired_at) + count(observation_id) FROM target)
"""


def entries(connection: Connection) -> int:
    """How many entries all lists have."""
    return int(connection.execute(text(_ENTRIES)).scalar_one())


_ENTRIES: Final = "SELECT coalesce(sum(flow_count), 0) FROM target WHERE retired_at IS NULL"


def workflows(connection: Connection, org: str = "") -> int:
    """How many workflows exist now; each counts once in its organisation."""
    sql = f"""
    SELECT count(*) FROM (SELECT DISTINCT t.org_id, w.flow_id
                          FROM target t JOIN workflow w ON w.target_id = t.id
                          WHERE t.retired_at IS NULL{_only(org)}) one_each
    """
    return int(connection.execute(text(sql), _given(org)).scalar_one())


def days(connection: Connection, scope: Scope) -> list[Day]:
    """Every day of the scope, for its organisations together."""
    of_org = "JOIN target t ON t.id = s.target_id " if scope.org else ""
    sql = f"""
    SELECT {_day(connection, "s.observed_at")} AS day, {_sums()} FROM change_set s
    {of_org}WHERE s.observed_at >= :since{_only(scope.org)} GROUP BY 1
    """
    found = {day: Day(day, *counts) for day, *counts in _by_day(connection, sql, scope)}
    return [found.get(day, Day(day, *[0] * len(DELTA_KINDS))) for day in _calendar(scope.since, scope.until)]


def churn(connection: Connection, scope: Scope, limit: int) -> list[Churn]:
    """The organisations whose lists changed most, and how long their lists are now."""
    sql = f"""
    SELECT c.org_id, {", ".join(DELTA_KINDS)},
           coalesce((SELECT sum(flow_count) FROM target n WHERE n.org_id = c.org_id AND n.retired_at IS NULL), 0), orgs
    FROM (SELECT t.org_id, {_sums()}, count(*) OVER () AS orgs
          FROM change_set s JOIN target t ON t.id = s.target_id
          WHERE s.observed_at >= :since AND s.observed_at < :end AND s.kind = 'delta'{_only(scope.org)}
          GROUP BY t.org_id
          ORDER BY {_of_all_kinds("sum({})")} DESC, t.org_id LIMIT :limit) c
    ORDER BY {_of_all_kinds("{}")} DESC, c.org_id
    """
    return fetch(connection, Churn, sql, **_times(scope), limit=limit, **_given(scope.org))


def day_snapshots(connection: Connection, scope: Scope, today: dt.date) -> list[DaySnapshot]:
    """The end of every day of the scope (today: now), as ``flows --as-of`` would count it.

    Calculated back from now: the state before a day is the state after it without the changes of the day. A target that
    was retired took its whole list away then, and brought it back if it came back.
    """
    gained, until_now = _gained(connection, scope), scope._replace(until=today)
    unobserved, targets = _unobserved(connection, until_now), _targets(connection, until_now)
    now = connection.execute(text(_NOW.format(only=_only(scope.org))), _given(scope.org))
    count = Counter({str(cycle): int(number) for cycle, number in now})
    found = []
    for day in reversed(_calendar(scope.since, today)):
        found.append(DaySnapshot(day, {cycle: count[cycle] for cycle in CYCLES}, unobserved[day], targets[day]))
        count.subtract(gained.get(day, {}))
    return [each for each in found[::-1] if each.day <= scope.until]


def _gained(connection: Connection, scope: Scope) -> dict[dt.date, Counter[str]]:
    """By how much the lists grew on each day, for each cycle. Summed by change set first, in the order of an index,
    which saves the database from sorting all changes."""
    gained: dict[dt.date, Counter[str]] = {}
    known = [f"sum({_step(cycle)})" for cycle in CYCLE_LABELS]
    counted = [f"{step} AS n{number}" for number, step in enumerate((_STEP, *known))]
    sums = ", ".join(f"CAST(sum(n{number}) AS bigint)" for number in range(len(counted)))
    changed = f"""
    SELECT {_day(connection, "observed_at")} AS day, {sums}
    FROM (SELECT s.observed_at, s.id, {", ".join(counted)}
          FROM change_set s CROSS JOIN workflow_change c{" CROSS JOIN target t" if scope.org else ""}
          WHERE s.observed_at >= :since AND c.change_set_id = s.id
            {"AND t.id = s.target_id" if scope.org else ""}{_only(scope.org)}
            AND {KIND_SQL} IN ('baseline', 'added', 'removed', 'cycle_changed')
          GROUP BY s.observed_at, s.id) one_each
    GROUP BY 1
    """
    for day, total, *steps in _by_day(connection, changed, scope):
        gained[day] = Counter({**dict(zip(CYCLE_LABELS, steps, strict=True)), OTHER: total - sum(steps)})
    retired = f"""
    SELECT {_day(connection, "t.retired_at")} AS day, {_cycle("w.cycle")}, count(*)
    FROM target t JOIN workflow w ON w.target_id = t.id
    WHERE t.retired_at >= :since{_only(scope.org)} GROUP BY 1, 2
    """
    for day, cycle, number in _by_day(connection, retired, scope):
        gained.setdefault(day, Counter())[cycle] -= number
    for left, back, total, *steps in _absences(connection, scope):
        taken = Counter({**dict(zip(CYCLE_LABELS, steps, strict=True)), OTHER: total - sum(steps)})
        gained.setdefault(left, Counter()).subtract(taken)
        gained.setdefault(back, Counter()).update(taken)
    return gained


def _absences(connection: Connection, scope: Scope) -> Iterator[Any]:
    """For targets that retired and came back: both days, how many workflows they had, and how many of each cycle."""
    known = ", ".join(f"CAST(sum({_step(cycle)}) AS bigint)" for cycle in CYCLE_LABELS)
    sql = f"""
    SELECT {_day(connection, _GONE)} AS day, {_day(connection, "away.back_at")}, CAST({_STEP} AS bigint), {known}
    FROM ({_AWAY}) away JOIN target t ON t.id = away.target_id{_only(scope.org)}
    JOIN change_set s ON s.target_id = away.target_id AND s.observed_at <= away.back_at
    JOIN workflow_change c ON c.change_set_id = s.id
    WHERE {KIND_SQL} IN ('baseline', 'added', 'removed', 'cycle_changed')
    GROUP BY 1, 2
    """
    return ((left, _as_date(back), *rest) for left, back, *rest in _by_day(connection, sql, scope))


_GONE: Final = "(CASE WHEN s.observed_at > away.left_at THEN s.observed_at ELSE away.left_at END)"
"""The start of an absence. (After a clock went back, answers may be dated into an absence.)"""
_AWAY: Final = """
SELECT target_id, at AS left_at, back_at
FROM (SELECT target_id, kind, at, lead(at) OVER (PARTITION BY target_id ORDER BY at, id) AS back_at
      FROM target_membership WHERE schedule IS NULL) memberships
WHERE kind = 'retired' AND back_at >= :since
"""
"""The absences of targets that were retired and came back."""


def _unobserved(connection: Connection, scope: Scope) -> Counter[dt.date]:
    """How many gaps cover the end of each day, except those with the same list on both sides."""
    sql = f"""
    SELECT {_day(connection, "gap_from")} AS day, {_day(connection, "gap_to")}, count(*)
    FROM coverage_gap
    WHERE (gap_to IS NULL OR (changed_inside AND gap_to >= :since)){_only(scope.org, "org_id")} GROUP BY 1, 2
    """
    steps: Counter[dt.date] = Counter()
    for begins, ends, number in _by_day(connection, sql, scope):
        steps[max(begins, scope.since)] += number
        steps[_as_date(ends) or scope.until + dt.timedelta(days=1)] -= number
    return _summed(steps, scope)


def first_day(connection: Connection) -> dt.date | None:
    """The day (UTC) of the first observation; None: there was none yet."""
    found = connection.execute(_FIRST).scalar()
    return None if found is None else found.date()


_FIRST: Final = text("SELECT min(observed_at) AS at FROM change_set").columns(at=UtcTime)


def _targets(connection: Connection, scope: Scope) -> Counter[dt.date]:
    """How many targets had been observed by the end of each day, and were not retired."""
    sql = f"""
    SELECT {_day(connection, "s.observed_at")} AS day, {_day(connection, "t.retired_at")}, count(*)
    FROM target t JOIN change_set s ON s.target_id = t.id AND s.version = 1{_only(scope.org)} GROUP BY 1, 2
    """
    since, steps = scope.since, Counter[dt.date]()
    for day, retired, number in connection.execute(text(sql), _given(scope.org)):
        steps[max(_as_date(day) or since, since)] += number
        if retired is not None:
            steps[max(_as_date(retired) or since, since)] -= number
    away = f"""
    SELECT {_day(connection, _GONE)} AS day, {_day(connection, "away.back_at")}, count(*)
    FROM ({_AWAY}) away JOIN target t ON t.id = away.target_id{_only(scope.org)}
    JOIN change_set s ON s.target_id = away.target_id AND s.version = 1 AND s.observed_at <= away.back_at GROUP BY 1, 2
    """
    for left, back, number in _by_day(connection, away, scope):
        steps[max(left, since)] -= number
        steps[max(_as_date(back) or since, since)] += number
    return _summed(steps, scope)


def _summed(steps: Counter[dt.date], scope: Scope) -> Counter[dt.date]:
    for before, day in pairwise(_calendar(scope.since, scope.until)):
        steps[day] += steps[before]
    return steps


def gaps(connection: Connection, limit: int, offset: int = 0, scope: Scope | None = None) -> list[Gap]:
    """Open gaps first, then the latest; those that lie in the scope, at least in part."""
    where, given = _gaps_of(scope)
    sql = f"""
    SELECT {", ".join(Gap._fields)} FROM coverage_gap{where}
    ORDER BY CASE WHEN gap_to IS NULL THEN 0 ELSE 1 END, gap_from DESC, org_id, user_id, expression
    LIMIT :limit OFFSET :offset
    """
    return fetch(connection, Gap, sql, limit=limit, offset=offset, **given)


def gap_counts(connection: Connection, scope: Scope | None = None) -> tuple[int, int]:
    """How many gaps there are, and how many of them are open."""
    where, given = _gaps_of(scope)
    sql = f"SELECT count(*), count(*) - count(gap_to) FROM coverage_gap{where}"
    row = connection.execute(with_times(sql, given), given).one()
    return int(row[0]), int(row[1])


def _gaps_of(scope: Scope | None) -> tuple[str, dict[str, Any]]:
    if scope is None:
        return "", {}
    only = _only(scope.org, "org_id")
    where = f" WHERE (gap_to IS NULL OR gap_to >= :since) AND gap_from < :end{only}"
    return where, {**_times(scope), **_given(scope.org)}


def open_gap_count(connection: Connection) -> int:
    """How many gaps are open, without reading those that have ended."""
    return int(connection.execute(text(_OPEN_GAPS)).scalar_one())


_OPEN_GAPS: Final = """
SELECT count(*) FROM target WHERE observation_id IS NULL AND retired_at IS NULL AND version > 0
"""


def holds(connection: Connection, *, org: str = "", user: str = "", limit: int) -> list[Hold]:
    """The targets whose removals are held, the oldest hold first, each with the latest reason and its code."""
    chosen = with_ids(connection.dialect.name, statements.held_targets(), org, user).limit(limit)
    rows = connection.execute(chosen).all()
    missing = _missing(connection, [row.id for row in rows])
    return [_hold(row, missing[row.id]) for row in rows]


def _hold(row: Any, missing: Sequence[str]) -> Hold:
    target = Target(row.org_id, row.user_id, row.expression)
    scope = held_set(target, row.held_since, missing).scope
    return Hold(*target, row.held_since, len(missing), row.flow_count, row.reason, code(scope))


def _missing(connection: Connection, target_ids: Sequence[int]) -> dict[int, list[str]]:
    """The workflows whose removal is held, for each of these targets."""
    sql = text("SELECT target_id, flow_id FROM workflow WHERE target_id IN :ids AND missing_since IS NOT NULL")
    missing: dict[int, list[str]] = {target_id: [] for target_id in target_ids}
    for target_id, flow_id in connection.execute(sql.bindparams(bindparam("ids", expanding=True)), {"ids": target_ids}):
        missing[target_id].append(flow_id)
    return missing


def most_changed(connection: Connection, scope: Scope, limit: int) -> list[MostChanged]:
    """The workflows that changed most often, over all users, without baselines."""
    sql = f"""
    SELECT t.org_id, c.flow_id, count(*)
    FROM change_set s CROSS JOIN workflow_change c CROSS JOIN target t
    WHERE s.observed_at >= :since AND s.observed_at < :end AND s.kind = 'delta' AND c.change_set_id = s.id
      AND t.id = s.target_id{_only(scope.org)}
    GROUP BY t.org_id, c.flow_id ORDER BY 3 DESC, 1, 2 LIMIT :limit
    """
    return fetch(connection, MostChanged, sql, **_times(scope), limit=limit, **_given(scope.org))


# ---------------------------------------------------------------------------------------------------- pieces of SQL


def _by_day(connection: Connection, sql: str, scope: Scope) -> Iterator[Any]:
    """Rows whose first column is a day, of a statement with ``:since``, and ``:org`` where the scope has one."""
    parameters = {"since": _times(scope)["since"], **_given(scope.org)}
    return ((_as_date(day), *rest) for day, *rest in connection.execute(with_times(sql, parameters), parameters))


def _only(org: str, column: str = "t.org_id") -> str:
    return f" AND {column} = :org" if org else ""


def _given(org: str) -> dict[str, Any]:
    return {"org": org} if org else {}


def _times(scope: Scope) -> dict[str, dt.datetime]:
    return {"since": _midnight(scope.since), "end": _midnight(scope.until + dt.timedelta(days=1))}


def _sums() -> str:
    return ", ".join(f"sum({kind}) AS {kind}" for kind in DELTA_KINDS)


def _of_all_kinds(term: str) -> str:
    return " + ".join(term.format(kind) for kind in DELTA_KINDS)


def _cycle(column: str) -> str:
    return f"CASE WHEN {column} IN ({', '.join(map(repr, CYCLE_LABELS))}) THEN {column} ELSE '{OTHER}' END"


_STEP: Final = "sum(CASE c.kind WHEN 'removed' THEN -1 WHEN 'cycle_changed' THEN 0 ELSE 1 END)"
"""By how much a change set's changes make the list grow."""


def _step(cycle: str) -> str:
    """By how much one change increases the number of workflows with this cycle."""
    gains = f"CASE WHEN c.new_cycle = '{cycle}' AND c.kind <> 'removed' THEN 1 ELSE 0 END"
    loses = f"CASE WHEN c.old_cycle = '{cycle}' AND c.kind IN ('removed', 'cycle_changed') THEN 1 ELSE 0 END"
    return f"{gains} - {loses}"


_NOW: Final = f"""
SELECT {_cycle("w.cycle")}, count(*) FROM target t JOIN workflow w ON w.target_id = t.id
WHERE t.retired_at IS NULL{{only}} GROUP BY 1
"""


def _day(connection: Connection, column: str) -> str:
    if connection.dialect.name == "sqlite":
        return f"substr({column}, 1, 10)"
    return f"CAST({column} AT TIME ZONE 'UTC' AS date)"


def _as_date(value: str | dt.date | None) -> dt.date | None:
    return dt.date.fromisoformat(value) if isinstance(value, str) else value


def _midnight(day: dt.date) -> dt.datetime:
    return dt.datetime.combine(day, dt.time(), dt.UTC)


def _calendar(since: dt.date, until: dt.date) -> list[dt.date]:
    return [since + dt.timedelta(days=number) for number in range((until - since).days + 1)]
