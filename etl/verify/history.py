"""Compares each target with the history of its memberships and holds, and their order with their times."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row

from etl.domain.approvals import as_text
from etl.domain.chain import approved_scope
from etl.domain.model import USUAL_COVERAGE_GAP, Doubt, Target
from etl.schema import UtcTime
from etl.verify.finding import Finding, shown
from etl.verify.rows import by_target, pages, statements

_AT_ONCE: Final = 5_000
_SQL: Final = statements("history")
_MEMBERS: Final = (
    _SQL["members"]
    .bindparams(usual_gap=int(USUAL_COVERAGE_GAP.total_seconds()))
    .columns(retired_at=UtcTime(), at=UtcTime())
)
_HELD: Final = _SQL["held"].columns(held_since=UtcTime())
_EVENTS: Final = _SQL["events"].columns(at=UtcTime())
_WAITING: Final = _SQL["waiting"].columns(missing_since=UtcTime())
_APPROVED: Final = _SQL["approved"].columns(observed_at=UtcTime())
_DISORDER: Final = {
    table: _SQL[table].columns(at=UtcTime(), earlier=UtcTime()) for table in ("target_membership", "hold_event")
}
"""The order of a target's rows decides what was so at a time; only the order within a run is in a digest."""


def history(engine: Engine) -> Iterator[Finding]:
    """The first contradiction of each target to its memberships and holds. Raises DatabaseError."""
    for query, compare in ((_MEMBERS, _retirements), (_HELD, _holds)):
        yield from pages(engine, query, "id", compare, at_once=_AT_ONCE, tolerant=True)


def _order(connection: Connection, rows: Sequence[Row[Any]]) -> Iterator[Finding]:
    for table, disorder in _DISORDER.items() if rows else ():
        found = connection.execute(disorder, {"first": rows[0].id, "last": rows[-1].id})
        for owner, (row, *_) in groupby(found, key=_owner):
            wanted = f"{shown(row.earlier)} or later, the time of a row of the target with a lower id"
            yield Finding(target=owner, run_id=row.run_id, what=f"{table}.at", expected=wanted, found=shown(row.at))


def _retirements(connection: Connection, rows: Sequence[Row[Any]]) -> Iterator[Finding]:
    """Of all targets, so also whether their events are in order."""
    for row in rows:
        expected = row.at if row.kind == "retired" else None
        if row.retired_at != expected:
            wanted = f"{shown(expected)}, as target_membership has it"
            yield _finding(row, "target.retired_at", wanted, shown(row.retired_at))
        elif row.expected_gap not in (None, row.coverage_gap_seconds):
            wanted = f"{int(row.expected_gap)}, the longest of the schedules that list it"
            yield _finding(row, "target.coverage_gap_seconds", wanted, str(row.coverage_gap_seconds))
    yield from _order(connection, rows)


def _holds(connection: Connection, rows: Sequence[Row[Any]]) -> Iterator[Finding]:
    if not rows:
        return
    within = {"first": rows[0].id, "last": rows[-1].id}
    events, waiting, approved = (by_target(connection, query, **within) for query in (_EVENTS, _WAITING, _APPROVED))
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
            wanted = f"{shown(approvable)}, as hold_event has it"
            yield _finding(row, "change_set.approved_scope", wanted, shown(scopes.get(event.at)))
            return
        for doubt in doubts_of(event):
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
                wanted = f"{shown(right)}, as hold_event has it"
                yield _finding(row, f"workflow.{name} of {shown(flow_id)}", wanted, shown(found))
                return
    if since != row.held_since:
        yield _finding(row, "target.held_since", f"{shown(since)}, as hold_event has it", shown(row.held_since))


def doubts_of(event: Row[Any]) -> Iterator[Doubt]:
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
