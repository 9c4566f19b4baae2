"""Sums and short lists for the page and the report, never all rows. Each function reads in the page's transaction."""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Subquery,
    and_,
    case,
    func,
    literal_column,
    or_,
    select,
    text,
)

from etl.domain.holds import code, shown_set
from etl.domain.model import CYCLE_LABELS, Target
from etl.report.listings import IS_HELD, latest_reason
from etl.report.names import with_ids
from etl.report.rows import Gap, OrgWorkflow, OrgWorkflowState, view
from etl.schema import TARGET_KEY, UtcTime, change_set, org_event, target, target_membership, workflow

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


def state(connection: Connection) -> tuple[int, ...]:
    """A value that changes whenever a sum of this module may: newest version, span and step, and a count of targets."""
    return tuple(int(number) for number in connection.execute(text(_STATE)).one())


_STATE: Final = """
SELECT coalesce((SELECT max(id) FROM change_set), 0), coalesce((SELECT max(id) FROM observation), 0),
       coalesce((SELECT max(id) FROM org_step), 0), (SELECT count(retired_at) + count(observation_id) FROM target)
"""


def entries(connection: Connection) -> int:
    """How many entries all lists have."""
    listed = select(func.coalesce(func.sum(target.c.flow_count), 0)).where(target.c.retired_at.is_(None))
    return int(connection.execute(listed).scalar_one())


def workflows(connection: Connection, org: str = "") -> int:
    """How many workflows exist now; each counts once in its organisation."""
    shown = view("org_workflow", OrgWorkflow)
    return int(connection.execute(select(func.count()).select_from(shown).where(*_only(org, shown))).scalar_one())


def days(connection: Connection, scope: Scope) -> list[Day]:
    """Every day of the scope, with the events of its organisations."""
    found = defaultdict[dt.date, Counter[str]](Counter)
    minute = _minute(connection, org_event.c.observed_at)
    for day, kind, number in _by_day(connection, scope, select(minute, org_event.c.kind).where(*_within(scope))):
        found[day][kind] += number
    return [Day(day, found[day]) for day in _calendar(scope.since, scope.until)]


def churn(connection: Connection, scope: Scope, limit: int) -> tuple[list[Churn], int]:
    """The organisations with most events, and how many have any."""
    found = defaultdict[str, Counter[str]](Counter)
    columns = (org_event.c.org_id, org_event.c.kind)
    for org_id, kind, number in connection.execute(_counted(select(*columns).where(*_within(scope)))):
        found[org_id][kind] += number
    most = sorted(found, key=lambda org_id: (-found[org_id].total(), org_id))[:limit]
    return [Churn(org_id, found[org_id], workflows(connection, org_id)) for org_id in most], len(found)


def most_changed(connection: Connection, scope: Scope, limit: int) -> list[tuple[str, str]]:
    """The workflows to which most happened: the organisation and the id of each."""
    columns = (org_event.c.org_id, org_event.c.flow_id)
    changed = _counted(select(*columns).where(*_within(scope))).order_by(func.count().desc(), *columns).limit(limit)
    return [(org_id, flow_id) for org_id, flow_id, _ in connection.execute(changed)]


def day_snapshots(connection: Connection, scope: Scope, today: dt.date) -> list[DaySnapshot]:
    """The end of every day of the scope (today: now): how many workflows ``org_workflow_history`` has then."""
    until_now = scope._replace(until=today)
    unobserved, targets = _unobserved(connection, until_now), _targets(connection, until_now)
    count, gained = _before(connection, scope), _gained(connection, scope)
    found = []
    for day in _calendar(scope.since, scope.until):
        count.update(gained[day])
        found.append(DaySnapshot(day, {cycle: count[cycle] for cycle in CYCLES}, unobserved[day], targets[day]))
    return found


_HISTORY: Final = view("org_workflow_history", OrgWorkflowState)
_CYCLE: Final = case((_HISTORY.c.cycle.in_(list(CYCLE_LABELS)), _HISTORY.c.cycle), else_=OTHER)


def _before(connection: Connection, scope: Scope) -> Counter[str]:
    """How many workflows of each cycle there were when the scope begins."""
    lasts = or_(_HISTORY.c.valid_to.is_(None), _HISTORY.c.valid_to >= scope.begins_at)
    there = select(_CYCLE).where(_HISTORY.c.valid_from < scope.begins_at, lasts, *_only(scope.org, _HISTORY))
    return Counter(dict(map(tuple, connection.execute(_counted(there)))))


def _gained(connection: Connection, scope: Scope) -> Mapping[dt.date, Counter[str]]:
    """How many more workflows of each cycle there were at the end of each day than at its beginning."""
    gained = defaultdict[dt.date, Counter[str]](Counter)
    for bound, sign in ((_HISTORY.c.valid_from, 1), (_HISTORY.c.valid_to, -1)):
        moved = select(_minute(connection, bound), _CYCLE).where(
            bound >= scope.begins_at, bound < scope.ends_at, *_only(scope.org, _HISTORY)
        )
        for day, cycle, number in _by_day(connection, scope, moved):
            gained[day][cycle] += sign * number
    return gained


def _unobserved(connection: Connection, scope: Scope) -> Counter[dt.date]:
    """How many gaps cover the end of each day, except those with the same list on both sides."""
    gap = view("coverage_gap", Gap)
    changed = and_(gap.c.changed_inside, gap.c.gap_to >= scope.begins_at)
    bounds = select(*(_minute(connection, bound) for bound in (gap.c.gap_from, gap.c.gap_to)))
    unknown = bounds.where(or_(gap.c.gap_to.is_(None), changed), *_only(scope.org, gap))
    steps = Counter[dt.date]()
    for begins, ends, number in _by_day(connection, scope, unknown, 2):
        steps[max(begins, scope.since)] += number
        steps[ends or scope.until + dt.timedelta(days=1)] -= number
    return _summed(steps, scope)


def first_day(connection: Connection, scope: Scope) -> dt.date | None:
    """The day of the first observation in the scope's organisations; None: there was none yet."""
    theirs = change_set.c.target_id.in_(select(target.c.id).where(target.c.org_id == scope.org))
    observed = select(func.min(change_set.c.observed_at)).where(*[theirs] if scope.org else ())
    first = connection.execute(observed).scalar()
    return None if first is None else first.astimezone(scope.zone).date()


def _targets(connection: Connection, scope: Scope) -> Counter[dt.date]:
    """How many targets had been observed by the end of each day, and were not retired."""
    steps = Counter[dt.date]()
    first = and_(change_set.c.target_id == target.c.id, change_set.c.version == 1, *_only(scope.org, target))
    bounds = (_minute(connection, bound) for bound in (change_set.c.observed_at, target.c.retired_at))
    for day, retired, number in _by_day(connection, scope, select(*bounds).join_from(target, change_set, first), 2):
        steps[max(day, scope.since)] += number
        if retired is not None:
            steps[max(retired, scope.since)] -= number
    away = _absences(scope)
    # After a clock went back, answers may be dated into an absence.
    gone = case((change_set.c.observed_at > away.c.left_at, change_set.c.observed_at), else_=away.c.left_at)
    bounds = (_minute(connection, bound) for bound in (gone, away.c.back_at))
    absences = select(*bounds).join_from(away, target, target.c.id == away.c.target_id)
    absences = absences.join(change_set, and_(first, change_set.c.observed_at <= away.c.back_at))
    for left, back, number in _by_day(connection, scope, absences, 2):
        steps[max(left, scope.since)] -= number
        steps[max(back, scope.since)] += number
    return _summed(steps, scope)


def _absences(scope: Scope) -> Subquery:
    """The absences of targets that were retired and came back."""
    moved = target_membership.c
    back_at = func.lead(moved.at, type_=UtcTime).over(partition_by=moved.target_id, order_by=(moved.at, moved.id))
    columns = (moved.target_id, moved.kind, moved.at.label("left_at"), back_at.label("back_at"))
    moves = select(*columns).where(moved.schedule.is_(None)).subquery("moves")
    ended = (moves.c.kind == "retired", moves.c.back_at >= scope.begins_at)
    return select(moves).where(*ended).subquery("away")


def _summed(steps: Counter[dt.date], scope: Scope) -> Counter[dt.date]:
    for before, day in pairwise(_calendar(scope.since, scope.until)):
        steps[day] += steps[before]
    return steps


def open_gap_count(connection: Connection) -> int:
    """How many gaps are open, without reading those that have ended."""
    is_open = (target.c.observation_id.is_(None), target.c.retired_at.is_(None), target.c.version > 0)
    return int(connection.execute(select(func.count()).select_from(target).where(*is_open)).scalar_one())


def holds(connection: Connection, *, org: str = "", user: str = "", limit: int) -> list[Hold]:
    """The targets of which something is held, the oldest hold first, each with the latest reason and its code."""
    columns = (target.c.id, *TARGET_KEY, target.c.held_since, target.c.flow_count, latest_reason())
    chosen = select(*columns).where(IS_HELD).order_by(target.c.held_since, *TARGET_KEY)
    rows = connection.execute(with_ids(connection.dialect.name, chosen, org, user).limit(limit)).all()
    held = defaultdict[int, list[tuple[str, str | None]]](list)
    is_held = or_(workflow.c.missing_since.is_not(None), workflow.c.doubted.is_not(None))
    doubts = select(workflow.c.target_id, workflow.c.flow_id, workflow.c.doubted)
    doubts = doubts.where(workflow.c.target_id.in_([row.id for row in rows]))
    for target_id, flow_id, doubted in connection.execute(doubts.where(is_held)):
        held[target_id].append((flow_id, doubted))
    found = []
    for row in rows:
        whose, mine = Target(row.org_id, row.user_id, row.expression), held[row.id]
        scope = shown_set(whose, row.held_since, mine).scope
        found.append(Hold(*whose, row.held_since, len(mine), row.flow_count, row.reason, code(scope)))
    return found


# --------------------------------------------------------------------------------------------- pieces of statements


def _counted(rows: Select[Any]) -> Select[Any]:
    """How many of these rows have the same values."""
    columns = list(rows.selected_columns)
    return rows.add_columns(func.count()).group_by(*(literal_column(str(n)) for n in range(1, len(columns) + 1)))


def _by_day(connection: Connection, scope: Scope, rows: Select[Any], days: int = 1) -> Iterator[Any]:
    """``_counted``, whose first ``days`` columns are ``_minute``, which become days of the scope's zone."""
    for row in connection.execute(_counted(rows)):
        yield (*(_day_of(minute, scope.zone) for minute in row[:days]), *row[days:])


def _day_of(minute: str | None, zone: dt.tzinfo) -> dt.date | None:
    return dt.datetime.fromisoformat(f"{minute}+00:00").astimezone(zone).date() if minute else None


def _minute(connection: Connection, time: ColumnElement[Any]) -> ColumnElement[Any]:
    """The minute of a time, as text: zones begin their days with one, and the databases know fewer zones than we."""
    if connection.dialect.name == "sqlite":
        return func.substr(time, 1, 16)
    return func.to_char(func.timezone("UTC", time), "YYYY-MM-DD HH24:MI")


def _only(org: str, rows: FromClause) -> list[ColumnElement[bool]]:
    return [rows.c.org_id == org] if org else []


def _within(scope: Scope) -> list[ColumnElement[bool]]:
    """Events of the scope."""
    at = org_event.c.observed_at
    return [at >= scope.begins_at, at < scope.ends_at, *_only(scope.org, org_event)]


def _calendar(since: dt.date, until: dt.date) -> list[dt.date]:
    return [since + dt.timedelta(days=number) for number in range((until - since).days + 1)]
