"""Long histories of generated targets, written straight into the tables."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator
from typing import Any

from msgspec.structs import astuple
from sqlalchemy import Connection

from etl.domain.chain import GENESIS, change_set_hash
from etl.domain.diff import baseline, diff
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import Change, ChangeSet, Flow, Span, Target
from etl.schema import change_set, observation, sync_run, target, target_membership, workflow, workflow_change
from etl.store.bulk import insert_rows
from etl.verify.chain import ReplayedState

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
STEP = dt.timedelta(minutes=15)
FLOWS, VERSIONS, CHANGES = 50, 1000, 2
"""Of each target, and the changes of each version."""
CYCLES = ("M", "W", "D", "H", "mi")


def begin_run(connection: Connection) -> None:
    """The runs that made it all and are still open: one for each observation of a span."""
    scope = '{"schedules":["all"],"org_id":null,"user_id":null,"membership_id":1000000000}'
    row = {"origin": "command", "status": "running", "started_at": START, "heartbeat_at": START, "scope": scope}
    runs = [{**row, "id": number, "host": "h", "pid": 1} for number in range(1, _span(START).observations + 1)]
    connection.execute(sync_run.insert(), runs)


class Made:
    """One target's generated history: a version every quarter of an hour, each with one span."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._number = number
        self._random = random.Random(number)
        self._listing = ReplayedState()
        self._first_id = (number - 1) * VERSIONS + 1
        self._since: dict[str, tuple[Any, Any]] = {}

    def write(self) -> None:
        name = Target(f"o{self._number % 20}", f"u{self._number}")
        made = list(self._history(name))
        last = made[-1]
        ids = range(self._first_id, self._first_id + len(made))
        head = (self._number, *name, len(made), len(made), ids[-1], *[last[0].state_digest] * 3)
        columns = "id org_id user_id expression version fence observation_id answer_digest data_hash state_digest"
        self._insert(target, f"{columns} flow_count", [(*head, len(self._listing.flows))])
        member = (self._number, self._number, 1, "all", "joined", START, 129600)
        self._insert(target_membership, "id target_id run_id schedule kind at coverage_gap_seconds", [member])
        self._insert(change_set, _CHANGE_SET, [self._row(*each) for each in zip(ids, made, strict=True)])
        spans = [
            (number, self._number, c.version, *self._span(c.observed_at))
            for number, (c, _, _, _) in zip(ids, made, strict=True)
        ]
        self._insert(observation, _SPAN, spans)
        changes = (
            (number, *astuple(c))
            for number, (made_set, _, _, _) in zip(ids, made, strict=True)
            for c in made_set.changes
        )
        self._insert(workflow_change, " ".join(column.name for column in workflow_change.columns), changes)
        rows = [
            (self._number, f.flow_id, f.flow_name, f.cycle, f.editable, *self._since[f.flow_id])
            for f in self._listing.flows.values()
        ]
        self._insert(workflow, "target_id flow_id flow_name cycle editable first_listed_at changed_at", rows)

    def _history(self, name: Target) -> Iterator[tuple[ChangeSet, str, str, int]]:
        parent = GENESIS
        before: tuple[Span, ...] = ()
        for version in range(1, VERSIONS + 1):
            at = START + version * STEP
            changes = self._changes(version, at)
            made = ChangeSet(
                target=name,
                version=version,
                kind="baseline" if version == 1 else "delta",
                observed_at=at,
                last_unchanged_at=before[0].last_asked_at if before else None,
                spans=before,
                approved_by=None,
                data_hash=self._listing.digest(),
                state_digest=self._listing.digest(),
                changes=changes,
            )
            own = change_set_hash(parent, made)
            yield made, parent, own, len(self._listing.flows)
            parent, before = own, (_span(at),)

    def _changes(self, version: int, at: Any) -> list[Change]:
        flows = self._listing.flows
        if version == 1:
            new = {flow_id: self._flow(flow_id) for flow_id in map(str, range(10_000, 10_000 + FLOWS))}
            changes = baseline(new)
        else:
            chosen = {str(self._random.randrange(10_000, 10_000 + FLOWS)) for _ in range(CHANGES)}
            old = {flow_id: flows[flow_id] for flow_id in chosen if flow_id in flows}
            new = {
                flow_id: self._next(flow_id)
                for flow_id in chosen
                if flow_id not in flows or self._random.random() > 0.1
            }
            changes = diff(old, new)
        for gone in {c.flow_id for c in changes if c.kind == "removed"}:
            self._listing.drop(gone)
            del self._since[gone]
        for flow in new.values():
            self._listing.put(flow)
            self._since[flow.flow_id] = (self._since.get(flow.flow_id, (at,))[0], at)
        return changes

    def _flow(self, flow_id: str) -> Flow:
        return Flow(flow_id, f"reduce entity {flow_id}", "D", True)

    def _next(self, flow_id: str) -> Flow:
        """The workflow with another cycle."""
        known = self._listing.flows.get(flow_id, self._flow(flow_id))
        cycle = self._random.choice([each for each in CYCLES if each != known.cycle])
        return Flow(flow_id, known.flow_name, cycle, known.editable)

    def _row(self, number: int, made: tuple[ChangeSet, str, str, int]) -> tuple[Any, ...]:
        content, parent, own, flow_count = made
        kinds = [change.kind for change in content.changes]
        return (
            number, self._number, content.version, 1, content.kind, content.observed_at,
            content.last_unchanged_at, content.observed_at, content.spans[0].last_at if content.spans else None,
            flow_count, content.state_digest,
            *[kinds.count(kind) for kind in CHANGE_KINDS], None, content.data_hash, 1, parent, own,
        )  # fmt: skip

    def _span(self, at: dt.datetime) -> tuple[Any, ...]:
        span = _span(at)
        times = (span.first_at, span.last_asked_at, span.last_at)
        return (*times, span.observations, span.longest_gap_seconds, False)

    def _insert(self, table: Any, columns: str, rows: Any) -> None:
        insert_rows(self._connection, table, columns.split(), rows)


def _span(at: dt.datetime) -> Span:
    last = at + STEP / 2
    return Span(at, last - dt.timedelta(seconds=1), last, 3, 300, False)


_CHANGE_SET = (
    "id target_id version run_id kind observed_at last_unchanged_at asked_at last_arrived_at flow_count state_digest "
    f"{' '.join(CHANGE_KINDS)} approved_by data_hash format parent_hash hash"
)
_SPAN = "id target_id version first_at last_asked_at last_at observations longest_gap_seconds interrupted"
