"""Compares each target with the history of its memberships and holds, and their order with their times."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, Select, Table, case, exists, func, null, select

from etl.domain.chain import approved_scope
from etl.domain.holds import as_text
from etl.domain.model import USUAL_COVERAGE_GAP, Doubt, Target
from etl.schema import TARGET_KEY, UtcTime, change_set, hold_event, target, target_membership, workflow
from etl.verify.finding import Finding, shown
from etl.verify.rows import by_target, pages

_AT_ONCE: Final = 5_000
_latest: Final = (
    select(func.max(target_membership.c.id))
    .where(target_membership.c.target_id == target.c.id, target_membership.c.schedule.is_(None))
    .correlate(target)
    .scalar_subquery()
)
_joined, _later = target_membership.alias("joined"), target_membership.alias("later")
_is_mine: Final = (_joined.c.target_id == target.c.id) & (_joined.c.kind == "joined")
_longest_gap: Final = select(func.max(_joined.c.coverage_gap_seconds)).where(_is_mine)
_is_listed: Final = ~exists().where(
    _later.c.target_id == _joined.c.target_id, _later.c.schedule == _joined.c.schedule, _later.c.id > _joined.c.id
)
_has_one_of_them: Final = exists().where(_is_mine, _joined.c.coverage_gap_seconds == target.c.coverage_gap_seconds)
_expected_gap: Final = func.coalesce(
    _longest_gap.where(_is_listed).correlate(target).scalar_subquery(),
    case((_has_one_of_them.correlate(target), null()), else_=_longest_gap.correlate(target).scalar_subquery()),
    case((exists().where(_is_mine).correlate(target), null()), else_=USUAL_COVERAGE_GAP.total_seconds()),
)
"""That of the schedules that list the target. One that left keeps one of those that it had, for which this is null."""
_MEMBERS: Final = select(
    *(target.c.id, *TARGET_KEY, target.c.retired_at, target_membership.c.kind, target_membership.c.at),
    *(target.c.coverage_gap_seconds, _expected_gap.label("expected_gap")),
).outerjoin(target_membership, target_membership.c.id == _latest)
_HOLDS: Final = select(target.c.id, *TARGET_KEY, target.c.held_since).where(
    target.c.held_since.is_not(None) | exists().where(hold_event.c.target_id == target.c.id)
)
_EVENTS: Final = select(
    *(hold_event.c[name] for name in ("target_id", "kind", "at", "flow_ids", "doubted")),
).order_by(hold_event.c.target_id, hold_event.c.id)
_APPROVED: Final = (
    select(change_set.c.target_id, change_set.c.observed_at, change_set.c.approved_scope)
    .where(change_set.c.approved_scope.is_not(None))
    .order_by(change_set.c.target_id)
)
_WAITING: Final = (
    select(workflow.c.target_id, workflow.c.flow_id, workflow.c.missing_since, workflow.c.doubted)
    .where(workflow.c.missing_since.is_not(None) | workflow.c.doubted.is_not(None))
    .order_by(workflow.c.target_id)
)
_ORDERED: Final = (target_membership, hold_event)
"""The order of a target's rows decides what was so at a time; only the order within a run is in a digest."""


def _not_in_order(events: Table, first: int, last: int) -> Select[Any]:
    """Rows of the targets with an id from ``first`` to ``last`` that are earlier than one with a lower id."""
    earlier = func.max(events.c.at, type_=UtcTime()).over(
        partition_by=events.c.target_id, order_by=events.c.id, rows=(None, -1)
    )
    columns = (events.c.target_id, events.c.run_id, events.c.id, events.c.at, earlier.label("earlier"))
    mine = select(*columns).where(events.c.target_id.between(first, last)).subquery()
    return (
        select(*TARGET_KEY, mine.c.run_id, mine.c.at, mine.c.earlier)
        .join(target, target.c.id == mine.c.target_id)
        .where(mine.c.at < mine.c.earlier)
        .order_by(target.c.id, mine.c.id)
    )


def history(engine: Engine) -> Iterator[Finding]:
    """The first contradiction of each target to its memberships and holds. Raises DatabaseError."""
    for query, compare in ((_MEMBERS, _retirements), (_HOLDS, _holds)):
        yield from pages(engine, query, target.c.id, compare, at_once=_AT_ONCE, tolerant=True)


def _order(connection: Connection, rows: Sequence[Row[Any]]) -> Iterator[Finding]:
    for events in _ORDERED if rows else ():
        found = connection.execute(_not_in_order(events, rows[0].id, rows[-1].id))
        for owner, (row, *_) in groupby(found, key=lambda row: Target(row.org_id, row.user_id, row.expression)):
            told = f"{shown(row.earlier)} or later, the time of a row of the target with a lower id"
            what = f"{events.name}.at"
            yield Finding(target=owner, run_id=row.run_id, what=what, expected=told, found=shown(row.at))


def _retirements(connection: Connection, rows: Sequence[Row[Any]]) -> Iterator[Finding]:
    """Of all targets, so also whether their events are in order."""
    for row in rows:
        expected = row.at if row.kind == "retired" else None
        if row.retired_at != expected:
            told = f"{shown(expected)}, as target_membership has it"
            yield _finding(row, "target.retired_at", told, shown(row.retired_at))
        elif row.expected_gap not in (None, row.coverage_gap_seconds):
            told = f"{int(row.expected_gap)}, the longest of the schedules that list it"
            yield _finding(row, "target.coverage_gap_seconds", told, str(row.coverage_gap_seconds))
    yield from _order(connection, rows)


def _holds(connection: Connection, rows: Sequence[Row[Any]]) -> Iterator[Finding]:
    if not rows:
        return
    within = (rows[0].id, rows[-1].id)
    events = by_target(connection, _EVENTS.where(hold_event.c.target_id.between(*within)))
    waiting = by_target(connection, _WAITING.where(workflow.c.target_id.between(*within)))
    approved = by_target(connection, _APPROVED.where(change_set.c.target_id.between(*within)))
    for row in rows:
        found = {each.flow_id: (each.missing_since, each.doubted) for each in waiting.get(row.id, ())}
        scopes = {each.observed_at: each.approved_scope for each in approved.get(row.id, ())}
        yield from _compare(row, events.get(row.id, ()), found, scopes)


def _compare(
    row: Row[Any], events: Sequence[Row[Any]], waiting: dict[str, tuple[Any, Any]], scopes: dict[Any, str]
) -> Iterator[Finding]:
    """``waiting``: since when a workflow is missing, and its doubted changes; ``scopes``: approvals, by time."""
    held: dict[Doubt, Any] = {}
    since = at = None
    approvable = ""
    for event in events:
        before = bool(held)
        if event.at != at:
            at, approvable = event.at, _scope(row, since, held)
        if event.kind == "approved" and scopes.get(event.at) != approvable:
            told = f"{shown(approvable)}, as hold_event has it"
            yield _finding(row, "change_set.approved_scope", told, shown(scopes.get(event.at)))
            return
        for doubt in _doubts(event):
            if (event.kind == "held") == (doubt in held):
                what = f"{event.kind!r} of a workflow that was {'held already' if doubt in held else 'not held'}"
                yield _finding(row, "hold_event", f"no {what}", shown(doubt.flow_id))
                return
            held.update({doubt: event.at}) if event.kind == "held" else held.pop(doubt)
        since = (since if before else event.at) if held else None
    expected = _waiting(held)
    for flow_id in sorted(expected.keys() | waiting.keys()):
        both = zip(expected.get(flow_id, (None, None)), waiting.get(flow_id, (None, None)), strict=True)
        for name, (right, found) in zip(("missing_since", "doubted"), both, strict=True):
            if right != found:
                told = f"{shown(right)}, as hold_event has it"
                yield _finding(row, f"workflow.{name} of {shown(flow_id)}", told, shown(found))
                return
    if since != row.held_since:
        yield _finding(row, "target.held_since", f"{shown(since)}, as hold_event has it", shown(row.held_since))


def _doubts(event: Row[Any]) -> Iterator[Doubt]:
    """The changes that an event is about, removals among them."""
    yield from (Doubt(flow_id, "removed", None) for flow_id in json.loads(event.flow_ids))
    yield from (Doubt(*doubt) for doubt in json.loads(event.doubted))


def _scope(row: Row[Any], since: Any, held: Iterable[Doubt]) -> str:
    removed = [doubt.flow_id for doubt in held if doubt.kind == "removed"]
    return approved_scope(_owner(row), since, removed, (doubt for doubt in held if doubt.kind != "removed"))


def _waiting(held: Mapping[Doubt, Any]) -> dict[str, tuple[Any, Any]]:
    """By workflow, what its row should have."""
    removed = {doubt.flow_id: at for doubt, at in held.items() if doubt.kind == "removed"}
    others = [doubt for doubt in held if doubt.kind != "removed"]
    return {
        flow_id: (removed.get(flow_id), as_text(doubt for doubt in others if doubt.flow_id == flow_id))
        for flow_id in {doubt.flow_id for doubt in held}
    }


def _finding(row: Row[Any], what: str, expected: str, found: str) -> Finding:
    return Finding(target=_owner(row), what=what, expected=expected, found=found)


def _owner(row: Row[Any]) -> Target:
    return Target(row.org_id, row.user_id, row.expression)
