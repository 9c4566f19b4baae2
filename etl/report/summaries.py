"""Sums and short lists for the page and the report, never all rows. Each function reads in the page's transaction."""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, literal_column, or_, select, text

from etl.domain.approvals import code, shown_set
from etl.domain.model import CYCLE_LABELS, Target
from etl.report.listings import IS_HELD, WORKFLOWS, latest_reason
from etl.report.names import WHOLE, with_ids
from etl.report.reading import sql
from etl.schema import TARGET_KEY, UtcTime, change_set, org_event, target, workflow

OTHER: Final = "other"
"""Stands for every cycle that EnOS does not document, and for no cycle."""
CYCLES: Final = (*reversed(CYCLE_LABELS), OTHER)
_MINUTE: Final = {"sqlite": "substr({}, 1, 16)", "postgresql": "to_char(timezone('UTC', {}), 'YYYY-MM-DD HH24:MI')"}
"""The minute of a time, as text: zones begin their days with one, and the databases know fewer zones than we."""


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

    @property
    def days(self) -> list[dt.date]:
        return [self.since + dt.timedelta(days=number) for number in range((self.until - self.since).days + 1)]


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


def days(connection: Connection, scope: Scope) -> dict[dt.date, Counter[str]]:
    """How many events of each of ``EVENT_KINDS`` every day of the scope has."""
    found = {day: Counter[str]() for day in scope.days}
    minute: ColumnElement[str] = literal_column(_MINUTE[connection.dialect.name].format("observed_at"))
    for at, kind, number in connection.execute(_events(scope, minute, org_event.c.kind)):
        found[_day_of(at, scope.zone)][kind] += number
    return found


def churn(connection: Connection, scope: Scope, limit: int) -> tuple[list[Churn], int]:
    """The organisations with most events, and how many have any."""
    found = defaultdict[str, Counter[str]](Counter)
    for org_id, kind, number in connection.execute(_events(scope, org_event.c.org_id, org_event.c.kind)):
        found[org_id][kind] = number
    most = sorted(found, key=lambda org_id: (-found[org_id].total(), org_id))[:limit]
    return [Churn(org_id, found[org_id], workflows(connection, org_id)) for org_id in most], len(found)


def workflows(connection: Connection, org: str = "") -> int:
    """How many workflows exist now; each counts once in its organisation."""
    return WORKFLOWS.count(connection, columns=("flow_id",), org=org and WHOLE + org)


def most_changed(connection: Connection, scope: Scope, limit: int) -> list[tuple[str, str]]:
    """The workflows to which most happened: the organisation and the id of each."""
    columns = (org_event.c.org_id, org_event.c.flow_id)
    changed = _events(scope, *columns).order_by(func.count().desc(), *columns).limit(limit)
    return [(org_id, flow_id) for org_id, flow_id, _ in connection.execute(changed)]


def _events(scope: Scope, *by: ColumnElement[Any]) -> Select[Any]:
    """How many events of the scope have the same values of these columns."""
    at, org = org_event.c.observed_at, [org_event.c.org_id == scope.org] if scope.org else []
    return select(*by, func.count()).where(at >= scope.begins_at, at < scope.ends_at, *org).group_by(*by)


def first_day(connection: Connection, scope: Scope) -> dt.date | None:
    """The day of the first observation in the scope's organisations; None: there was none yet."""
    theirs = change_set.c.target_id.in_(select(target.c.id).where(target.c.org_id == scope.org))
    observed = select(func.min(change_set.c.observed_at)).where(*[theirs] if scope.org else ())
    first = connection.execute(observed).scalar()
    return None if first is None else first.astimezone(scope.zone).date()


def day_snapshots(connection: Connection, scope: Scope) -> list[DaySnapshot]:
    """The end of every day of the scope (today: now): how many workflows ``org_workflow_history`` has then."""
    minute, org = _MINUTE[connection.dialect.name].format("at"), " AND org_id = :org" if scope.org else ""
    statement = text(sql("day_steps").format(minute=minute, org=org)).bindparams(
        bindparam("cycles", list(CYCLE_LABELS), expanding=True),
        bindparam("since", scope.begins_at, UtcTime),
        bindparam("until", scope.ends_at, UtcTime),
    )
    steps = {day: Counter[str]() for day in scope.days}
    for at, what, number in connection.execute(statement, {"org": scope.org}):
        steps[_day_of(at, scope.zone)][what] += number
    there, found = Counter[str](), []
    for day, more in steps.items():
        there.update(more)
        by_cycle = {cycle: there[cycle] for cycle in CYCLES}
        found.append(DaySnapshot(day, by_cycle, there["unobserved"], there["targets"]))
    return found


def _day_of(minute: str, zone: dt.tzinfo) -> dt.date:
    return dt.datetime.fromisoformat(f"{minute}+00:00").astimezone(zone).date()


def open_gap_count(connection: Connection) -> int:
    """How many gaps are open, without reading those that have ended."""
    is_open = (target.c.observation_id.is_(None), target.c.retired_at.is_(None), target.c.version > 0)
    return int(connection.execute(select(func.count()).select_from(target).where(*is_open)).scalar_one())


def holds(connection: Connection, *, org: str = "", user: str = "", limit: int) -> list[dict[str, Any]]:
    """The targets of which something is held, the oldest hold first, each with the latest reason, and the code that
    ``guard approve`` takes to approve exactly this."""
    columns = (target.c.id, *TARGET_KEY, target.c.held_since, target.c.flow_count, latest_reason())
    chosen = select(*columns).where(IS_HELD).order_by(target.c.held_since, *TARGET_KEY)
    rows = connection.execute(with_ids(connection.dialect.name, chosen, org, user).limit(limit)).all()
    held = defaultdict[int, list[tuple[str, str | None]]](list)
    is_held = or_(workflow.c.missing_since.is_not(None), workflow.c.doubted.is_not(None))
    doubts = select(workflow.c.target_id, workflow.c.flow_id, workflow.c.doubted)
    doubts = doubts.where(workflow.c.target_id.in_([row.id for row in rows]))
    for target_id, flow_id, doubted in connection.execute(doubts.where(is_held)):
        held[target_id].append((flow_id, doubted))
    return [
        {
            **row._mapping,
            "held_workflows": len(held[row.id]),
            "code": code(shown_set(Target(*row[1:4]), row.held_since, held[row.id]).scope),
        }
        for row in rows
    ]
