"""One target, or a page of them: the list now or at a moment, its versions, and its verdict in each run."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import BindParameter, Connection, Select, and_, bindparam, func, or_, select, text

from etl.domain.diff import by_id, diff
from etl.domain.kinds import DELTA_KINDS
from etl.domain.model import Flow, Target
from etl.report.asof import cheaper_way, flows_statement, targets_statement
from etl.report.listings import FLOWS
from etl.report.names import WHOLE, any_contains, with_ids
from etl.report.rows import (
    ListDifference,
    TargetAsOf,
    TargetHealth,
    TargetVersion,
    view,
)
from etl.schema import UtcTime, change_set, observation, sync_issue, sync_run


class Tick(NamedTuple):
    """The verdict of a run for a target."""

    run_id: int
    started_at: dt.datetime
    schedule: str | None
    missed: int
    """How many slots of the schedule were missed before this run."""
    silent: bool
    """Whether there was no observation for longer than the coverage gap before this run."""
    verdict: str
    """A verdict, or ``unseen``: the run says nothing about this target."""
    changes: int
    error_code: str | None


def health_of(connection: Connection, known: Target) -> TargetHealth:
    """The current health of a target."""
    health = view("target_health", TargetHealth)
    mine = (health.c[name] == value for name, value in known._asdict().items())
    return TargetHealth(*connection.execute(select(health).where(*mine)).one())


# ------------------------------------------------------------------------------------------------------- the list


def list_now(dialect: str, known: Target, **asked: Any) -> Select[Any]:
    """``ListWorkflow``, by flow_id."""
    chosen = FLOWS.select(dialect, org=WHOLE + known.org_id, user=WHOLE + known.user_id, **asked)
    return chosen.where(chosen.selected_columns.expression == known.expression)


def list_then(
    connection: Connection, known: Target, at: dt.datetime, *, find: str = "", cycle: str = ""
) -> Select[Any]:
    """``ListWorkflowAsOf``, by flow_id: the list at ``at``."""
    then = flows_statement(cheaper_way(connection, at), at, _mine(known)).subquery("then_listed")
    found = any_contains(connection.dialect.name, find or None, then.c.flow_id, then.c.flow_name)
    found += [then.c.cycle == cycle] if cycle else []
    return select(then).where(then.c.expression == known.expression, *found).order_by(then.c.flow_id)


def _mine(known: Target) -> dict[str, str]:
    return {"org_id": known.org_id, "user_id": known.user_id}


def as_of(connection: Connection, known: Target, at: dt.datetime) -> TargetAsOf | None:
    """How well the list at ``at`` is known; None: the target had not been observed yet, or was retired."""
    rows = (TargetAsOf(*each) for each in connection.execute(targets_statement(at, _mine(known))))
    return next((row for row in rows if row.expression == known.expression and row.observed_before), None)


def difference(
    connection: Connection, known: Target, old: dt.datetime, new: dt.datetime | None
) -> list[ListDifference]:
    """The changes from the list at one moment to that at another, or now (None), whatever happened in between."""
    before, after = (by_id(_flows(connection, known, at)) for at in (old, new))
    return [ListDifference(*msgspec.structs.astuple(change)) for change in diff(before, after)]


def _flows(connection: Connection, known: Target, at: dt.datetime | None) -> Iterator[Flow]:
    listed = list_then(connection, known, at) if at else list_now(connection.dialect.name, known)
    return (Flow(row.flow_id, row.flow_name, row.cycle, row.editable) for row in connection.execute(listed))


# ------------------------------------------------------------------------------------------------------ its past


def versions(target_id: int, until: dt.datetime | None) -> Select[Any]:
    """``TargetVersion``, the latest first."""
    own = change_set.c.target_id == target_id
    chosen = own if until is None else and_(own, change_set.c.observed_at <= until)
    columns = [change_set.c[name] for name in TargetVersion._fields]
    return select(*columns).where(chosen).order_by(change_set.c.version.desc())


_SCHEDULES: Final = text("""
    SELECT DISTINCT r.schedule FROM sync_run r
     WHERE r.schedule IS NOT NULL AND r.id IN (
           SELECT run_id FROM (SELECT run_id FROM change_set WHERE target_id = :id ORDER BY version DESC LIMIT 50) made
           UNION SELECT run_id FROM (SELECT run_id FROM sync_issue WHERE target_id = :id ORDER BY id DESC LIMIT 50) said
           UNION SELECT id FROM (SELECT id FROM sync_run WHERE started_at <= :last_at
                                 AND coalesce(finished_at, heartbeat_at) >= :last_at ORDER BY id DESC LIMIT 10) ran)
    """).bindparams(bindparam("last_at", type_=UtcTime))


def ticks(
    connection: Connection, target_id: int, until: dt.datetime, most: int, coverage_gap: dt.timedelta
) -> list[Tick]:
    """The latest runs that concern a target, the oldest first.

    A run only records a target if it found something; for a quiet target, spans tell. So these are the runs of
    schedules that observed the target, and the runs that recorded something for it.
    """
    runs = _runs_about(connection, target_id, until, most)
    if not runs:
        return []
    ids = [run.id for run in runs]
    changes = {row.run_id: int(row.changes) for row in connection.execute(_CHANGES, {"id": target_id, "ids": ids})}
    issues = {row.run_id: row for row in connection.execute(_ISSUES, {"id": target_id, "ids": ids})}
    spans = connection.execute(_SPANS, {"id": target_id, "since": runs[-1].started_at}).all()
    silent = {run.id for before, run in pairwise(reversed(runs)) if run.started_at - _ended(before) > coverage_gap}
    return [_tick(run, changes.get(run.id), issues.get(run.id), spans, run.id in silent) for run in reversed(runs)]


def _runs_about(connection: Connection, target_id: int, until: dt.datetime, most: int) -> Sequence[Any]:
    span = observation.c.target_id == target_id
    last_at = connection.execute(
        select(observation.c.last_at).where(span).order_by(observation.c.id.desc()).limit(1)
    ).scalar()
    schedules = connection.execute(_SCHEDULES, {"id": target_id, "last_at": last_at or until}).scalars().all()
    own = select(change_set.c.run_id).where(change_set.c.target_id == target_id)
    with_issue = select(sync_issue.c.run_id).where(sync_issue.c.target_id == target_id)
    about = or_(sync_run.c.schedule.in_(schedules), sync_run.c.id.in_(own), sync_run.c.id.in_(with_issue))
    columns = [sync_run.c[name] for name in ("id", "schedule", "started_at", "heartbeat_at", "finished_at", "missed")]
    chosen = select(*columns).where(about, sync_run.c.started_at <= until, sync_run.c.origin != "approval")
    return connection.execute(chosen.order_by(sync_run.c.id.desc()).limit(most)).all()


_OF_RUNS: Final[Any] = bindparam("ids", expanding=True)
_CHANGES: Final = (
    select(change_set.c.run_id, func.sum(sum(change_set.c[kind] for kind in DELTA_KINDS)).label("changes"))
    .where(change_set.c.target_id == bindparam("id"), change_set.c.run_id.in_(_OF_RUNS))
    .group_by(change_set.c.run_id)
)
_ISSUES: Final = text("""
    SELECT run_id, verdict, error_code FROM sync_issue WHERE target_id = :id AND run_id IN :ids ORDER BY id
    """).bindparams(_OF_RUNS)
_SPANS: Final = (
    text("SELECT first_at, last_at FROM observation WHERE target_id = :id AND last_at >= :since")
    .bindparams(bindparam("since", type_=UtcTime))
    .columns(first_at=UtcTime, last_at=UtcTime)
)


def _ended(run: Any) -> dt.datetime:
    ended: dt.datetime = run.finished_at or run.heartbeat_at
    return ended


def _tick(run: Any, changes: int | None, issue: Any, spans: Sequence[Any], silent: bool) -> Tick:
    seen = any(span.first_at <= _ended(run) and span.last_at >= run.started_at for span in spans)
    usual = "changed" if changes is not None else "unchanged" if seen else "unseen"
    verdict, error_code = (issue.verdict, issue.error_code) if issue else (usual, None)
    return Tick(run.id, run.started_at, run.schedule, run.missed, silent, verdict, changes or 0, error_code)


# -------------------------------------------------------------------------------------------------- all of them


def coverage_then(dialect: str, at: dt.datetime, *, org: str = "", user: str = "") -> Select[Any]:
    """``TargetAsOf`` of the targets whose ids contain these parts."""
    then = targets_statement(at, {}).subquery("targets_then")
    order = (then.c.org_id, then.c.user_id, then.c.expression)
    return with_ids(dialect, select(then), org, user).order_by(*order)


def coverage_of(connection: Connection, targets: Sequence[Target], at: dt.datetime) -> dict[Target, TargetAsOf]:
    """How well the lists of these targets at ``at`` are known; those not observed by then are left out."""
    if not targets:
        return {}
    keys: BindParameter[Any] = bindparam("chosen", [tuple(each) for each in targets], expanding=True)
    rows = connection.execute(targets_statement(at, {}, "(t.org_id, t.user_id, t.expression) IN :chosen", keys))
    return {Target(*row[:3]): TargetAsOf(*row) for row in rows if row.observed_before}
