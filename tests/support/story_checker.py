"""Whether an organisation's events agree with each other and with the trails of its users.

It shares no code with ``etl/``. It does not re-derive whether an event is certain (``tests/organisation`` does); it
finds events that happen twice, have no cause, or contradict the users' lists.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

SEEN = ("appeared", "reappeared")


class _Change(NamedTuple):
    user_id: str
    at: int
    kind: str
    name: str | None
    cycle: str | None


class _Story:
    """All rows about an organisation; searches have no part in it."""

    def __init__(self, tables: Any, org_id: str) -> None:
        self.org_id = org_id
        self.targets = [t for t in tables.target if t.org_id == org_id and not t.expression]
        self.active = [t for t in self.targets if t.retired_at is None and t.version]
        returned = {row.target_id for row in tables.target_membership if row.kind == "resumed"}
        self.running = {run.id for run in tables.sync_run if run.status == "running"}
        self.unjudged = [
            made
            for target in self.targets
            for made in tables.by_target["change_set"][target.id]
            if made.version > target.projected_version
        ]
        self.stayed = {t.user_id for t in self.active if t.id not in returned}
        self.kept = {row.flow_id: row for row in tables.org_flow if row.org_id == org_id}
        self.waiting = {(row.flow_id, row.user_id) for row in tables.org_loss if row.org_id == org_id}
        self.events = defaultdict(list)
        for event in sorted(tables.org_event, key=lambda event: event.event_id):
            if event.org_id == org_id:
                self.events[event.flow_id].append(event)
        self.listed: dict[str, dict[str, tuple[str | None, str | None]]] = defaultdict(dict)
        for target in self.active:
            for flow in tables.by_target["workflow"][target.id]:
                self.listed[flow.flow_id][target.user_id] = (flow.flow_name, flow.cycle)
        self.changes: dict[str, list[_Change]] = defaultdict(list)
        for target in self.targets:
            for made in sorted(tables.by_target["change_set"][target.id], key=lambda made: made.version):
                for c in tables.changes[made.id]:
                    self.changes[c.flow_id].append(
                        _Change(target.user_id, made.observed_at, c.kind, c.new_name, c.new_cycle)
                    )

    def check(self, *, settled: bool) -> Iterator[str]:
        for flow_id in sorted(self.changes.keys() | self.events.keys() | self.kept.keys()):
            at = f"{self.org_id}, workflow {flow_id!r}"
            yield from (f"{at}: {finding}" for finding in self._events(flow_id))
            if settled and self.is_judged():
                yield from (f"{at}: {finding}" for finding in self._state(flow_id))

    def is_judged(self) -> bool:
        """Whether all versions must have been judged: not if no user answered, and not while a run is still open."""
        heard = any(not target.consecutive_failures for target in self.active)
        return heard and not any(made.run_id in self.running for made in self.unjudged)

    def _events(self, flow_id: str) -> Iterator[str]:
        recorded = Counter((e.kind, e.user_id, e.last_unchanged_at, e.observed_at) for e in self.events[flow_id])
        yield from (f"{kind} is recorded {count} times" for (kind, *_), count in recorded.items() if count > 1)
        latest = None
        for event in self.events[flow_id]:
            if event.last_unchanged_at >= event.observed_at:
                yield f"{event.kind} ends before it begins"
            if event.kind in (*SEEN, "disappeared"):
                expected = {"appeared": (None,), "reappeared": ("disappeared",), "disappeared": (None, *SEEN)}
                if latest not in expected[event.kind]:
                    yield f"{event.kind} after it {latest}"
                latest = event.kind
            if not self._has_ground(event):
                yield f"{event.kind} at {event.observed_at}, but no answer of that time shows it"

    def _has_ground(self, event: Any) -> bool:
        """Whether a user's list changed that way."""
        for change in self.changes[event.flow_id]:
            if event.kind == "access_lost" and change[:3] == (event.user_id, event.observed_at, "removed"):
                return True
            if event.kind == "access_granted" and change[:3] == (event.user_id, event.observed_at, "added"):
                return True
            if event.kind == "disappeared" and change.kind == "removed" and change.at <= event.observed_at:
                return True
            if event.kind in SEEN and change.kind != "removed" and (change.name, change.cycle) == _new(event):
                return True
            if event.kind == "renamed" and change.name == event.new_name:
                return True
            if event.kind == "cycle_changed" and change.cycle == event.new_cycle:
                return True
        return False

    def _state(self, flow_id: str) -> Iterator[str]:
        listed, kept = self.listed[flow_id], self.kept.get(flow_id)
        if kept is None:
            if listed:
                yield "is listed, and no step has judged it"
            return
        if kept.users != len(listed):
            yield f"has {kept.users} users, and {len(listed)} list it"
        visible = [event.kind for event in self.events[flow_id] if event.kind in (*SEEN, "disappeared")]
        if listed and visible[-1:] == ["disappeared"] and kept.due_at is None:
            yield "is listed, but recorded as gone"
        if kept.from_kind not in (None, "baseline", *(event.kind for event in self.events[flow_id])):
            yield f"its state began with {kept.from_kind}, but there is no such event"
        values = set(listed.values())
        if len(values) == 1 and kept.due_at is None and values != {(kept.flow_name, kept.cycle)}:
            yield f"is {sorted(values)[0]} to everybody, and ({kept.flow_name!r}, {kept.cycle!r}) in the story"
        for user_id, change in {change.user_id: change for change in self.changes[flow_id]}.items():
            if change.kind == "removed" and user_id in self.stayed and not self._is_recorded(flow_id, change):
                yield f"was lost by {user_id}, but there is no event and nothing waits"

    def _is_recorded(self, flow_id: str, change: _Change) -> bool:
        if (flow_id, change.user_id) in self.waiting:
            return True
        return any(
            (event.kind == "disappeared" and event.observed_at >= change.at)
            or (event.kind == "access_lost" and event.user_id == change.user_id and event.observed_at == change.at)
            for event in self.events[flow_id]
        )


def check(tables: Any, *, settled: bool) -> list[str]:
    """What is wrong with the organisations' events in ``tables``, in sentences.

    ``settled``: a run has ended after every version, so each must have been judged, unless its own run is still open.
    """
    findings: list[str] = []
    for org_id in sorted({t.org_id for t in tables.target if not t.expression}):
        story = _Story(tables, org_id)
        findings += story.check(settled=settled)
        if settled and story.is_judged():
            behind = [t.user_id for t in story.active if t.projected_version != t.version]
            findings += [f"{org_id}/{user_id} has versions that no step has judged" for user_id in behind]
    return findings


def _new(event: Any) -> tuple[str | None, str | None]:
    return event.new_name, event.new_cycle
