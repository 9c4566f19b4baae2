"""Compares each target with the history of its memberships and holds, and their order with their times."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, Select, Table, exists, func, select

from etl.database import reading
from etl.domain.chain import approved_scope
from etl.domain.model import Target
from etl.schema import TARGET_KEY, UtcTime, change_set, hold_event, target, target_membership, workflow
from etl.verify.finding import Finding, shown
from etl.verify.rows import any_time

_AT_ONCE: Final = 5_000
_latest: Final = (
    select(func.max(target_membership.c.id))
    .where(target_membership.c.target_id == target.c.id, target_membership.c.schedule.is_(None))
    .correlate(target)
    .scalar_subquery()
)
_MEMBERS: Final = (
    select(target.c.id, *TARGET_KEY, target.c.retired_at, target_membership.c.kind, target_membership.c.at)
    .outerjoin(target_membership, target_membership.c.id == _latest)
    .order_by(target.c.id)
    .limit(_AT_ONCE)
)
_HOLDS: Final = (
    select(target.c.id, *TARGET_KEY, target.c.held_since)
    .where(target.c.held_since.is_not(None) | exists().where(hold_event.c.target_id == target.c.id))
    .order_by(target.c.id)
    .limit(_AT_ONCE)
)
_EVENTS: Final = select(
    *(hold_event.c[name] for name in ("target_id", "kind", "at", "flow_ids")),
).order_by(hold_event.c.target_id, hold_event.c.id)
_APPROVED: Final = (
    select(change_set.c.target_id, change_set.c.observed_at, change_set.c.approved_scope)
    .where(change_set.c.approved_scope.is_not(None))
    .order_by(change_set.c.target_id)
)
_MISSING: Final = select(workflow.c.target_id, workflow.c.flow_id, workflow.c.missing_since).where(
    workflow.c.missing_since.is_not(None)
)
_ORDERED: Final = (target_membership, hold_event)
"""The order of a target's rows decides what was so at a time; only the order within a run is in a digest."""


def _not_in_order(events: Table, after: int, last: int) -> Select[Any]:
    """Rows of the targets with an id above ``after`` up to ``last`` that are earlier than one with a lower id."""
    earlier = func.max(events.c.at, type_=UtcTime()).over(
        partition_by=events.c.target_id, order_by=events.c.id, rows=(None, -1)
    )
    columns = (events.c.target_id, events.c.run_id, events.c.id, events.c.at, earlier.label("earlier"))
    mine = select(*columns).where(events.c.target_id > after, events.c.target_id <= last).subquery()
    return (
        select(*TARGET_KEY, mine.c.run_id, mine.c.at, mine.c.earlier)
        .join(target, target.c.id == mine.c.target_id)
        .where(mine.c.at < mine.c.earlier)
        .order_by(target.c.id, mine.c.id)
    )


def history(engine: Engine) -> Iterator[Finding]:
    """The first contradiction of each target to its memberships and holds. Raises DatabaseError."""
    for query, compare in ((_MEMBERS, _retirements), (_HOLDS, _holds)):
        after, more = -(2**63), True
        while more:
            with reading(engine) as connection, any_time(connection):
                rows = connection.execute(query.where(target.c.id > after)).all()
                yield from compare(connection, rows)
                if rows and query is _MEMBERS:  # which goes through all targets
                    yield from _order(connection, after, rows[-1].id)
            more = len(rows) == _AT_ONCE
            after = rows[-1].id if rows else after


def _order(connection: Connection, after: int, last: int) -> Iterator[Finding]:
    for events in _ORDERED:
        found = connection.execute(_not_in_order(events, after, last))
        for owner, (row, *_) in groupby(found, key=lambda row: Target(row.org_id, row.user_id, row.expression)):
            told = f"{shown(row.earlier)} or later, the time of a row of the target with a lower id"
            what = f"{events.name}.at"
            yield Finding(target=owner, run_id=row.run_id, what=what, expected=told, found=shown(row.at))


def _retirements(_: Connection, rows: Sequence[Row[Any]]) -> Iterator[Finding]:
    for row in rows:
        expected = row.at if row.kind == "retired" else None
        if row.retired_at != expected:
            told = f"{shown(expected)}, as target_membership has it"
            yield _finding(row, "target.retired_at", told, shown(row.retired_at))


def _holds(connection: Connection, rows: Sequence[Row[Any]]) -> Iterator[Finding]:
    if not rows:
        return
    within = (rows[0].id, rows[-1].id)
    events = _by_target(connection, _EVENTS.where(hold_event.c.target_id.between(*within)))
    missing = _by_target(
        connection, _MISSING.where(workflow.c.target_id.between(*within)).order_by(workflow.c.target_id)
    )
    approved = _by_target(connection, _APPROVED.where(change_set.c.target_id.between(*within)))
    for row in rows:
        found = {each.flow_id: each.missing_since for each in missing.get(row.id, ())}
        scopes = {each.observed_at: each.approved_scope for each in approved.get(row.id, ())}
        yield from _compare(row, events.get(row.id, ()), found, scopes)


def _compare(
    row: Row[Any], events: Sequence[Row[Any]], missing: dict[str, Any], scopes: dict[Any, str]
) -> Iterator[Finding]:
    held: dict[str, Any] = {}
    since = at = None
    approvable = ""
    for event in events:
        before = bool(held)
        if event.at != at:
            at, approvable = event.at, approved_scope(_owner(row), since, held)
        if event.kind == "approved" and scopes.get(event.at) != approvable:
            told = f"{shown(approvable)}, as hold_event has it"
            yield _finding(row, "change_set.approved_scope", told, shown(scopes.get(event.at)))
            return
        for flow_id in json.loads(event.flow_ids):
            if (event.kind == "held") == (flow_id in held):
                what = f"{event.kind!r} of a workflow that was {'held already' if flow_id in held else 'not held'}"
                yield _finding(row, "hold_event", f"no {what}", shown(flow_id))
                return
            held.update({flow_id: event.at}) if event.kind == "held" else held.pop(flow_id)
        since = (since if before else event.at) if held else None
    for flow_id in sorted(held.keys() | missing.keys()):
        if held.get(flow_id) != missing.get(flow_id):
            told = f"{shown(held.get(flow_id))}, as hold_event has it"
            yield _finding(row, f"workflow.missing_since of {shown(flow_id)}", told, shown(missing.get(flow_id)))
            return
    if since != row.held_since:
        yield _finding(row, "target.held_since", f"{shown(since)}, as hold_event has it", shown(row.held_since))


def _by_target(connection: Connection, query: Any) -> dict[int, list[Row[Any]]]:
    rows = connection.execute(query).all()
    return {number: list(group) for number, group in groupby(rows, key=lambda row: row.target_id)}


def _finding(row: Row[Any], what: str, expected: str, found: str) -> Finding:
    return Finding(target=_owner(row), what=what, expected=expected, found=found)


def _owner(row: Row[Any]) -> Target:
    return Target(row.org_id, row.user_id, row.expression)
