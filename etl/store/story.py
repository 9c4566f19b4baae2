"""The organisation's story, judged at a run's end: read, judged, and written if no other step came between.

1. One transaction reads the users of some organisations, the versions that no step has judged, and what is stored.
2. Each workflow that these versions change, or that is due, is judged (``etl.domain.organisation.rules``).
3. One transaction locks the targets whose versions were judged, by id, then the organisations, by id. If another step
   of one of them has been written since (1), it gives up, and everything begins again. Otherwise it writes the
   result. Versions that were committed since (1) are left to the next step.

So a version is judged once, whichever run made it, and a crash leaves it to the next step. Organisations are taken a
few at a time, so that many small ones cost few statements; the first lists of a whole organisation are judged by one
statement. A list with a search expression belongs to no story.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection

from etl.domain.organisation.rules import judge
from etl.domain.organisation.values import (
    Answer,
    Event,
    Judgement,
    ListEntry,
    ListingChange,
    Loss,
    StepContext,
    Workflow,
    WorkflowState,
    states_after,
)
from etl.domain.organisation.versions import Member, Version, last_of, listed_before, listing_changes, while_counting
from etl.store import story_rows
from etl.store.bulk import grouped
from etl.store.story_rows import ChangeRows, FlowKey, Members, OrgFlow

MEMBERS_AT_ONCE: Final = 2_000
"""How many users are judged together, unless one organisation has more."""
_LISTINGS_AT_ONCE: Final = 200_000
"""Workflows in memory at once, times the users of their organisation."""
Changed = Mapping[str, Mapping[int, int | None]]
"""By workflow: the targets whose versions change it, and the first version that removed it, if any."""


class Step(msgspec.Struct, frozen=True):
    """A run's end."""

    run_id: int
    began: dt.datetime
    decided_at: dt.datetime


class JudgedWorkflow(NamedTuple):
    """What must be written for a workflow."""

    flow: FlowKey
    row: OrgFlow
    events: list[Event]
    waiting: Mapping[str, Loss]
    waited: bool
    ended: list[tuple[WorkflowState, dt.datetime]]
    """The states that ended, and when."""


class StoryStep(msgspec.Struct):
    """What is known of an organisation at a step, and what must be written for it."""

    org_id: str
    members: Members
    versions: Mapping[int, list[Version]]
    context: StepContext
    affected: list[Member]
    """The users whose versions are judged, or who begin or stop counting."""
    is_held: bool
    """Whether a removal is held for one of its users."""
    judged: list[JudgedWorkflow] = msgspec.field(default_factory=list)

    @property
    def is_new(self) -> bool:
        """Whether no step of it has been written yet."""
        return self.members.last_step is None

    @property
    def changes_something(self) -> bool:
        return bool(self.judged or self.affected)

    @property
    def first_lists(self) -> list[tuple[Member, Version]]:
        """The first lists of a new organisation, by arrival: one statement judges what occurs only in them."""
        if not self.is_new:
            return []
        joining = (m for m in self.members.by_id.values() if m.is_judged and m.joins)
        firsts = [(member, self.versions[member.target_id][0]) for member in joining]
        return sorted(firsts, key=lambda each: (each[1].answer.arrived_at, each[0].user_id))


def read_steps(
    connection: Connection, orgs: Sequence[str], step: Step, differing: Collection[FlowKey] = ()
) -> list[StoryStep]:
    """Read and judge the organisations, in one transaction that reads.

    ``differing`` are workflows about which the first lists of a new organisation do not agree.
    """
    members = story_rows.read_members(connection, orgs)
    everybody = (member for org in members.values() for member in org.by_id.values())
    pending = [member for member in everybody if member.is_judged and member.version > member.projected_version]
    not_new = {target_id for org in members.values() if org.last_step is not None for target_id in org.by_id}
    ids = [member.target_id for member in pending]
    changes = story_rows.read_changes(connection, ids, [t for t in ids if t in not_new])
    versions = story_rows.read_versions(connection, ids, changes)
    steps = {
        org_id: StoryStep(
            org_id,
            of,
            versions,
            _context(of, step),
            [member for member in of.by_id.values() if _is_affected(member)],
            any(member.is_held for member in of.by_id.values()),
        )
        for org_id, of in members.items()
    }
    touched = sorted({*_touched(connection, steps, changes, step.decided_at), *differing})
    story_rows.read_baselines(connection, [flow for flow in touched if steps[flow.org_id].is_new], changes)
    weights = {org_id: len(of.by_id) for org_id, of in members.items()}
    changed = _changed(changes)
    for flows in grouped(touched, lambda flow: weights[flow.org_id], _LISTINGS_AT_ONCE):
        reader = _WorkflowReader(connection, flows, steps, changed)
        for flow in flows:
            story = steps[flow.org_id]
            story.judged += _judged(story, flow, judge(story.context, reader.workflow(flow)), reader)
    return list(steps.values())


def _is_affected(member: Member) -> bool:
    judged = member.is_judged and (member.projected_version != member.version or member.returns)
    return judged or (member.is_known and member.leaves)


def _context(members: Members, step: Step) -> StepContext:
    known = [member for member in members.by_id.values() if member.is_known]
    users = {m.user_id: m.user(step.began) for m in known}
    came_back = (m for m in known if m.retired_at is None and (m.counts or m.returns))
    ended_stays = [m.away_since for m in came_back if m.away_since is not None]
    return StepContext(users, step.decided_at, ended_stays)


def _touched(
    connection: Connection, steps: Mapping[str, StoryStep], changes: ChangeRows, at: dt.datetime
) -> Iterator[FlowKey]:
    """The workflows that a step must judge: changed, due, or listed by users who come or go."""
    org_of = {target_id: org_id for org_id, step in steps.items() for target_id in step.members.by_id}
    for (target_id, _), flows in changes.items():
        for flow_id in flows:
            yield FlowKey(org_of[target_id], flow_id)
    yield from story_rows.read_due(connection, list(steps), at)
    moving = [m.target_id for s in steps.values() for m in s.members.by_id.values() if m.leaves or m.returns]
    for target_id, flow_id in story_rows.read_flow_ids(connection, moving):
        yield FlowKey(org_of[target_id], flow_id)


def _changed(changes: ChangeRows) -> Changed:
    changed: dict[str, dict[int, int | None]] = defaultdict(dict)
    for (target_id, version), flows in sorted(changes.items()):
        for flow_id, (_, after) in flows.items():
            removed = changed[flow_id].get(target_id)
            changed[flow_id][target_id] = version if removed is None and after is None else removed
    return changed


def _judged(step: StoryStep, flow: FlowKey, judgement: Judgement, reader: _WorkflowReader) -> Iterator[JudgedWorkflow]:
    """Nothing if the step changes nothing that is stored."""
    if judgement.known is None:
        return
    before, waited = reader.rows.get(flow), reader.waiting.get(flow, {})
    users = step.context.users
    shows = [(users[u].retired_at, listing.listed.editable) for u, listing in judgement.listings.items()]
    staying = [editable for retired_at, editable in shows if retired_at is None]
    retired_at = max((at for at, _ in shows if at is not None), default=None) if not staying else None
    states, ended = states_after(
        before.state if before else None,
        judgement,
        None if judgement.waiting else retired_at,
        reader.ended_until.get(flow),
    )
    row = OrgFlow(judgement.known, judgement.due_at, judgement.awaited, len(staying), sum(map(bool, staying)), states)
    if row != before or judgement.events or judgement.waiting != waited:
        yield JudgedWorkflow(flow, row, list(judgement.events), judgement.waiting, bool(waited), ended)


class _WorkflowReader:
    """Everything that is needed to judge some workflows."""

    def __init__(
        self, connection: Connection, flows: Sequence[FlowKey], steps: Mapping[str, StoryStep], changed: Changed
    ) -> None:
        self._steps = steps
        self._changed = {flow.flow_id: changed.get(flow.flow_id, {}) for flow in flows}
        self.rows = story_rows.read_org_flows(connection, flows)
        self.waiting = story_rows.read_waiting(connection, flows)
        stateless = [flow for flow, row in self.rows.items() if row.state is None]
        self.ended_until = story_rows.read_ended_until(connection, stateless)
        self._entries = story_rows.read_entries(connection, flows)
        self._held = story_rows.read_held(connection, [flow for flow in flows if steps[flow.org_id].is_held])
        lost = [
            (target_id, flow_id, removed)
            for flow_id, changed_by in self._changed.items()
            for target_id, removed in changed_by.items()
            if removed is not None
        ]
        self._since = story_rows.read_since(connection, lost)

    def workflow(self, flow: FlowKey) -> Workflow:
        row = self.rows.get(flow)
        listings: dict[str, ListEntry] = {}
        changes: list[ListingChange] = []
        held: dict[str, Answer] = {}
        for member in self._members(flow):
            key = member.target_id, flow.flow_id
            versions = self._steps[flow.org_id].versions.get(member.target_id, ())
            entry = self._entries[flow.flow_id].get(member.target_id)
            before = listed_before(versions, flow.flow_id, entry and entry.listed)
            if before is not None:
                removed = self._changed[flow.flow_id].get(member.target_id)
                since = entry.since if entry and removed is None else self._since[key]
                listings[member.user_id] = while_counting(member, ListEntry(since, before))
            if member.is_judged and (member.returns or versions):
                changes += listing_changes(member, versions, flow.flow_id, before)
            if key in self._held:
                held[member.user_id] = last_of(member.believed, self._held[key])
        known = row.known if row else None
        return Workflow(flow.flow_id, known, listings, self.waiting.get(flow, {}), changes, held)

    def _members(self, flow: FlowKey) -> Iterator[Member]:
        """The users who list it, or whose versions change it."""
        by_id = self._steps[flow.org_id].members.by_id
        for target_id in sorted(self._entries[flow.flow_id].keys() | self._changed[flow.flow_id].keys()):
            if target_id in by_id:
                yield by_id[target_id]
