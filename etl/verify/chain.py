"""Replays one target's history link by link, and compares its current rows with it. Pure; raises Broken if a link does
not hold."""

from __future__ import annotations

import datetime as dt
import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Final, NamedTuple

import msgspec

from etl.domain.chain import FORMAT, GENESIS, change_order, change_set_hash
from etl.domain.diff import baseline, diff
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import Change, ChangeSet, Flow, Span, Target
from etl.verify.finding import Broken, Verbatim, require, shown
from etl.verify.observations import NO_RUNS_KNOWN, RunTimes
from etl.verify.rows import ChangeSetRow, SpanRow, TargetRow, WorkflowRow

_encode: Final = msgspec.json.Encoder().encode
_SECOND: Final = dt.timedelta(seconds=1)
RESOLUTION: Final = dt.timedelta(microseconds=1)


class ReplayedState:
    """The workflows of a target in the order and encoding of their digest, which then costs only one hash."""

    def __init__(self) -> None:
        self.flows: dict[str, Flow] = {}
        self._ids: list[str] = []
        self._encoded: list[bytes] = []

    def put(self, flow: Flow) -> None:
        at = bisect_left(self._ids, flow.flow_id)
        known = flow.flow_id in self.flows
        self._ids[at : at + known] = [flow.flow_id]
        self._encoded[at : at + known] = [_encode(flow)]
        self.flows[flow.flow_id] = flow

    def drop(self, flow_id: str) -> None:
        at = bisect_left(self._ids, flow_id)
        del self._ids[at], self._encoded[at], self.flows[flow_id]

    def digest(self) -> str:
        """The ``state_digest`` of the workflows."""
        return hashlib.sha256(b"[%b]" % b",".join(self._encoded)).hexdigest()


class WorkflowTimes(msgspec.Struct, gc=False):
    """When a workflow was first seen, and when it last changed."""

    first_listed_at: dt.datetime
    changed_at: dt.datetime


class Chain:
    """The state of a target after the links so far; ``version`` 0: no link yet."""

    def __init__(self, target: Target, run_times: RunTimes = NO_RUNS_KNOWN) -> None:
        self.target = target
        self._run_times = run_times
        self.version = 0
        self.state_digest: str | None = None
        self.flow_count = 0
        self.changes = 0
        self.state = ReplayedState()
        self.times: dict[str, WorkflowTimes] = {}
        self.observed_at: dt.datetime | None = None
        """When the last version was observed."""
        self.latest: SpanRow | None = None
        """The latest span of all, whatever its version."""
        self._hash = GENESIS
        self._number = 0
        self._latest_at: dt.datetime | None = None
        self._spans: list[Span] = []

    def link(self, row: ChangeSetRow, changes: Sequence[Change]) -> None:
        """Add the next change set. Raises Broken if it does not follow from the state."""
        version = self.version + 1
        require("change_set.version", version, row.version, version)
        require("change_set.format", FORMAT, row.format, version)
        require("change_set.kind", "baseline" if version == 1 else "delta", row.kind, version)
        require("change_set.parent_hash", self._hash, row.parent_hash, version)
        if row.id <= self._number:
            raise Broken("change_set.id", Verbatim(f"above {self._number}, the one before"), row.id, version)
        self._require_interval(row)
        changes = sorted(changes, key=change_order)
        _require_counts(row, changes)
        self._replay(version, changes, row.observed_at)
        require("change_set.flow_count", len(self.state.flows), row.flow_count, version)
        require("change_set.state_digest", self.state.digest(), row.state_digest, version)
        self._require_hash(row, changes)
        self.version, self.state_digest, self.observed_at = version, row.state_digest, row.observed_at
        self.flow_count, self._hash, self._number = row.flow_count, row.hash, row.id
        self._latest_at = row.observed_at
        self.changes += len(changes)

    def add_spans(self, rows: Iterable[SpanRow]) -> None:
        """Add the spans of the version that was linked last, by id, which is also by time.

        Raises Broken if they are impossible.
        """
        self._spans = []
        for row in rows:
            _require_possible(row)
            self._require_place(row)
            self._spans.append(row.span)
            self.latest, self._latest_at = row, row.span.last_at
        if self.latest is None:
            raise Broken("observation", Verbatim("the span that the baseline opened"), Verbatim("missing"), 1)

    def _require_interval(self, row: ChangeSetRow) -> None:
        before = self._latest_at
        if before is not None and row.observed_at <= before:
            later = Verbatim(f"after {before}, the time recorded before")
            raise Broken("change_set.observed_at", later, row.observed_at, row.version)
        asked_at = self.latest.span.last_asked_at if self.latest else None
        require("change_set.last_unchanged_at", asked_at, row.last_unchanged_at, row.version)
        self._require_answers(row, before)

    def _require_answers(self, row: ChangeSetRow, before: dt.datetime | None) -> None:
        """What no hash covers: when the answer was asked for, and when the one before it had arrived."""
        ended = self.latest.span.last_at if self.latest else None
        require("change_set.last_arrived_at", ended, row.last_arrived_at, row.version)
        if row.asked_at > row.observed_at or (before is not None and row.asked_at <= before):
            between = Verbatim(f"after {before}, and not after {row.observed_at}")
            raise Broken("change_set.asked_at", between, row.asked_at, row.version)
        if row.held_at is None and row.held_asked_at is None:
            return
        asked, held = row.held_asked_at, row.held_at
        if asked is None or held is None or asked > held or (ended is not None and held <= ended):
            later = Verbatim(f"asked for at {asked}, and then arrived, after {ended}")
            raise Broken("change_set.held_at", later, held, row.version)

    def _replay(self, version: int, changes: Sequence[Change], at: dt.datetime) -> None:
        """Apply ``changes``, which must be just those that lead from the state before to what they say."""
        flows = self.state.flows
        touched = {change.flow_id for change in changes}
        before = {flow_id: flows[flow_id] for flow_id in touched if flow_id in flows}
        after = {c.flow_id: _after(c) for c in changes if c.kind != "removed"}
        expected = baseline(after) if version == 1 else diff(before, after)
        if expected != changes:
            _raise_first_difference(expected, changes, version)
        for flow_id in touched - after.keys():
            self.state.drop(flow_id)
            del self.times[flow_id]
        for flow_id, flow in after.items():
            self.state.put(flow)
            self.times.setdefault(flow_id, WorkflowTimes(at, at)).changed_at = at

    def _require_hash(self, row: ChangeSetRow, changes: Sequence[Change]) -> None:
        proven = ChangeSet(
            target=self.target,
            version=row.version,
            kind="baseline" if row.version == 1 else "delta",
            observed_at=row.observed_at,
            last_unchanged_at=row.last_unchanged_at,
            spans=tuple(self._spans),
            approved_by=row.approved_by,
            approved_scope=row.approved_scope,
            data_hash=row.data_hash,
            state_digest=row.state_digest,
            changes=changes,
        )
        computed = change_set_hash(self._hash, proven)
        if computed != row.hash:
            by = f"'{computed}' by its row, its changes and the spans of version {row.version - 1}"
            raise Broken("change_set.hash", Verbatim(by), row.hash, row.version)

    def _require_place(self, row: SpanRow) -> None:
        span, before = row.span, self.latest
        if before is not None and row.id <= before.id:
            raise Broken("observation.id", Verbatim(f"above {before.id}, the span before"), row.id, self.version)
        if before is not None and min(span.first_at, span.last_asked_at) <= before.span.last_at:
            found = Verbatim(f"begun at {span.first_at}, asked at {span.last_asked_at}")
            later = Verbatim(f"a span after {before.span.last_at}, the end of the one before")
            raise Broken("observation", later, found, self.version)
        if self.observed_at is not None and span.first_at < self.observed_at:
            late = Verbatim(f"at or after {self.observed_at}, when its version began")
            raise Broken("observation.first_at", late, span.first_at, self.version)
        for name in ("first_at", "last_at"):
            if getattr(span, name) not in self._run_times:
                within = Verbatim("in the time of a run, which alone observes")
                raise Broken(f"observation.{name}", within, getattr(span, name), self.version)
        with_version = not self._spans and span.first_at == self.observed_at
        if before is None:
            require("observation.first_at", self.observed_at, span.first_at, self.version)
            require("observation.interrupted", False, span.interrupted, self.version)
        elif not span.interrupted and not with_version:
            late = Verbatim(f"true, since it does not begin with its version at {self.observed_at}")
            raise Broken("observation.interrupted", late, False, self.version)


def _require_counts(row: ChangeSetRow, changes: Sequence[Change]) -> None:
    kinds = [change.kind for change in changes]
    counted = [kinds.count(kind) for kind in CHANGE_KINDS]
    if counted != row.counts:
        compared = zip(CHANGE_KINDS, counted, row.counts, strict=True)
        kind, expected, found = next(each for each in compared if each[1] != each[2])
        raise Broken(f"change_set.{kind}", expected, found, row.version)
    if not kinds and row.version > 1:
        raise Broken("workflow_change", Verbatim("at least one change"), Verbatim("none"), row.version)


def _raise_first_difference(expected: Sequence[Change], found: Sequence[Change], version: int) -> None:
    for right, there in zip_longest(expected, found):
        if right != there:
            raise Broken("workflow_change", _described(right), _described(there), version)


def _described(change: Change | None) -> Verbatim:
    return Verbatim("nothing" if change is None else _encode(change).decode())


def _require_possible(row: SpanRow) -> None:
    """Raise Broken unless the columns of a span agree with each other."""
    span, more = row.span, row.span.observations - 1
    lasted = span.last_at - span.first_at
    if more == 0:
        fits = not lasted and span.last_asked_at <= span.first_at and span.longest_gap_seconds == 0
    else:
        shortest = lasted // more // _SECOND
        fits = (
            span.first_at < span.last_asked_at <= span.last_at
            and lasted >= more * RESOLUTION
            and shortest <= span.longest_gap_seconds <= lasted // _SECOND
        )
    if not fits:
        what = Verbatim(f"times that {span.observations} observations can have")
        raise Broken("observation", what, Verbatim(", ".join(map(str, msgspec.structs.astuple(span)))), row.version)


def _after(change: Change) -> Flow:
    return Flow(change.flow_id, change.new_name, change.new_cycle, change.new_editable)


# ------------------------------------------------------------------------------------------ the current rows


class Missing(NamedTuple):
    """What is held of a target."""

    since: Sequence[dt.datetime]
    doubted: int
    """Of how many workflows a change is held."""
    at_last_hold: int | None
    """The number in the issue row of the latest hold; None if there is none."""


def require_workflows(chain: Chain, rows: Iterable[WorkflowRow]) -> tuple[list[dt.datetime], int]:
    """Raise Broken unless ``rows`` are the replayed workflows; return since when the held ones are missing, and of how
    many a change is held.

    This empties the chain's workflows.
    """
    missing, doubted = [], 0
    for row in rows:
        _require_workflow(chain, row)
        doubted += row.doubted is not None
        if row.missing_since is not None:
            missing.append(row.missing_since)
    for flow_id in chain.state.flows:
        raise Broken("workflow", Verbatim(f"a row with flow_id {shown(flow_id)}"), Verbatim("missing"))
    return missing, doubted


def require_target(chain: Chain, row: TargetRow, missing: Missing) -> None:
    """Raise Broken unless the row of a target agrees with its history."""
    require("target.version", chain.version, row.version)
    require("target.state_digest", chain.state_digest, row.state_digest)
    require("target.flow_count", chain.flow_count, row.flow_count)
    observed = Verbatim("a digest" if chain.version else "null, since nothing was observed")
    if (row.data_hash is None) is not (chain.version == 0):
        raise Broken("target.data_hash", observed, row.data_hash)
    if row.fence < chain.version:  # a retirement raises it, too
        raise Broken("target.fence", Verbatim(f"at least {chain.version}"), row.fence)
    _require_failures(row)
    _require_open_span(chain, row)
    if row.held_since is None:
        _require_no_hold(chain, row, missing)
    else:
        _require_hold(chain, row, row.held_since, missing)


def _require_workflow(chain: Chain, row: WorkflowRow) -> None:
    flow = chain.state.flows.pop(row.flow_id, None)
    if flow is None:
        raise Broken("workflow", Verbatim(f"without flow_id {shown(row.flow_id)}"), Verbatim("with a row of it"))
    times = chain.times[row.flow_id]
    expected = (flow.flow_name, flow.cycle, flow.editable, times.first_listed_at, times.changed_at)
    if row[1:6] != expected:
        for name, right, there in zip(WorkflowRow._fields[1:6], expected, row[1:6], strict=True):
            require(f"workflow.{name} of {shown(row.flow_id)}", right, there)
    # no span is open during a hold, so what is missing was there until the end of the latest one
    seen_until = max(times.changed_at, chain.latest.span.last_at) if chain.latest else times.changed_at
    if row.missing_since is not None and row.missing_since <= seen_until:
        late = Verbatim(f"after {seen_until}, when it was still there")
        raise Broken(f"workflow.missing_since of {shown(row.flow_id)}", late, row.missing_since)


def _require_failures(row: TargetRow) -> None:
    failed = row.consecutive_failures > 0
    for name, value in (("last_error_code", row.last_error_code), ("last_error", row.last_error)):
        if (value is not None) is not failed:
            expected = Verbatim(f"{'told' if failed else 'null'} after {row.consecutive_failures} failures")
            raise Broken(f"target.{name}", expected, value)


def _require_open_span(chain: Chain, row: TargetRow) -> None:
    """Raise Broken unless the latest span is open, or the latest attempt failed or was held."""
    latest = chain.latest
    is_open = latest is not None and not row.consecutive_failures and row.held_since is None
    expected = latest.id if latest is not None and is_open else None
    require("target.observation_id", expected, row.observation_id)
    if latest is not None and is_open and latest.version != chain.version:
        raise Broken("observation", Verbatim(f"a span of version {chain.version} to be open"), Verbatim("missing"))


def _require_no_hold(chain: Chain, row: TargetRow, missing: Missing) -> None:
    if missing.since:
        none = Verbatim("null, since nothing of its target is held")
        raise Broken("workflow.missing_since", none, missing.since[0])
    if missing.doubted:
        raise Broken("workflow.doubted", Verbatim("null, since nothing of its target is held"), missing.doubted)
    require("target.answer_digest", chain.state_digest, row.answer_digest)


def _require_hold(chain: Chain, row: TargetRow, held_since: dt.datetime, missing: Missing) -> None:
    if not missing.since and not missing.doubted:
        raise Broken("target.held_since", Verbatim("null, since nothing of it is held"), held_since)
    if missing.since and held_since > min(missing.since):
        earlier = Verbatim(f"not after {min(missing.since)}, since when a workflow is missing")
        raise Broken("target.held_since", earlier, held_since)
    if chain.latest is not None and held_since <= chain.latest.span.last_at:
        later = Verbatim(f"after {chain.latest.span.last_at}, the end of the latest span")
        raise Broken("target.held_since", later, held_since)
    if row.answer_digest in (None, chain.state_digest):
        differs = Verbatim("a digest other than that of the state, of which workflows are missing")
        raise Broken("target.answer_digest", differs, row.answer_digest)
    if missing.at_last_hold is not None:
        require("workflow.missing_since", missing.at_last_hold, len(missing.since))
