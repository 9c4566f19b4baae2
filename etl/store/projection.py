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
    EndedState,
    Event,
    Judgement,
    Listed,
    ListEntry,
    ListingChange,
    Loss,
    StepContext,
    Workflow,
    states_after,
)
from etl.domain.organisation.versions import Member, Version, listed_before, listing_changes, while_counting
from etl.store import story_rows
from etl.store.bulk import grouped
from etl.store.story_rows import ChangeRows, FlowKey, Members, OrgFlow

MEMBERS_AT_ONCE: Final = 2_000
"""How many users are judged together, unless one organisation has more."""
_LISTINGS_AT_ONCE: Final = 200_000
"""Workflows in memory at once, times the users of their organisation."""


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
    ended: list[EndedState]


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
    pending = [
        m for of in members.values() for m in of.by_id.values() if m.is_judged and m.version > m.projected_version
    ]
    not_new = {t for of in members.values() if of.last_step is not None for t in of.by_id}
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
    changed_by = _changed_by(changes)
    for flows in grouped(touched, lambda flow: weights[flow.org_id], _LISTINGS_AT_ONCE):
        _judge(connection, flows, steps, changed_by)
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


def _changed_by(changes: ChangeRows) -> Mapping[str, set[int]]:
    changed: dict[str, set[int]] = defaultdict(set)
    for (target_id, _), flows in changes.items():
        for flow_id in flows:
            changed[flow_id].add(target_id)
    return changed


def _judge(
    connection: Connection,
    flows: Sequence[FlowKey],
    steps: Mapping[str, StoryStep],
    changed_by: Mapping[str, set[int]],
) -> None:
    reader = _WorkflowReader(connection, flows, steps, changed_by)
    for flow in flows:
        step = steps[flow.org_id]
        judgement = judge(step.context, reader.workflow(flow))
        judged = _judged(step, flow, judgement, reader)
        if judged is not None:
            step.judged.append(judged)


def _judged(step: StoryStep, flow: FlowKey, judgement: Judgement, reader: _WorkflowReader) -> JudgedWorkflow | None:
    """None if the step changes nothing that is stored."""
    if judgement.known is None:
        return None
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
    if row == before and not judgement.events and judgement.waiting == waited:
        return None
    return JudgedWorkflow(flow, row, list(judgement.events), judgement.waiting, bool(waited), ended)


class _WorkflowReader:
    """Everything that is needed to judge some workflows."""

    def __init__(
        self,
        connection: Connection,
        flows: Sequence[FlowKey],
        steps: Mapping[str, StoryStep],
        changed_by: Mapping[str, set[int]],
    ) -> None:
        self._steps = steps
        self._changed_by = changed_by
        self.rows = story_rows.read_org_flows(connection, flows)
        self.waiting = story_rows.read_waiting(connection, flows)
        stateless = [flow for flow, row in self.rows.items() if row.state is None]
        self.ended_until = story_rows.read_ended_until(connection, stateless)
        self._entries = story_rows.read_entries(connection, flows)
        held = [flow for flow in flows if steps[flow.org_id].is_held]
        self._held = story_rows.read_held(connection, held)
        self._before: dict[FlowKey, list[tuple[Member, Listed, int | None]]] = {}
        for flow in flows:
            self._before[flow] = list(self._listed_before(flow))
        lost = [
            (member.target_id, flow.flow_id, removed)
            for flow, members in self._before.items()
            for member, _, removed in members
            if removed is not None
        ]
        self._since = story_rows.read_since(connection, lost)

    def workflow(self, flow: FlowKey) -> Workflow:
        step = self._steps[flow.org_id]
        row = self.rows.get(flow)
        return Workflow(
            flow.flow_id,
            row.known if row else None,
            dict(self._listings(flow)),
            self.waiting.get(flow, {}),
            list(self._changes(step, flow)),
            dict(self._held_of(step, flow)),
        )

    def _listed_before(self, flow: FlowKey) -> Iterator[tuple[Member, Listed, int | None]]:
        step = self._steps[flow.org_id]
        entries = self._entries[flow.flow_id]
        for target_id in sorted(entries.keys() | self._changed_by.get(flow.flow_id, set())):
            member = step.members.by_id.get(target_id)
            if member is None:
                continue
            now = entries.get(target_id)
            versions = step.versions.get(target_id, ())
            listed, removed = listed_before(versions, flow.flow_id, now and now.listed)
            if listed is not None:
                yield member, listed, removed

    def _listings(self, flow: FlowKey) -> Iterator[tuple[str, ListEntry]]:
        entries = self._entries[flow.flow_id]
        for member, listed, removed in self._before[flow]:
            since = entries[member.target_id].since if removed is None else self._since[member.target_id, flow.flow_id]
            yield member.user_id, while_counting(member, ListEntry(since, listed))

    def _changes(self, step: StoryStep, flow: FlowKey) -> Iterator[ListingChange]:
        before = {member.target_id: listed for member, listed, _ in self._before[flow]}
        for target_id in before.keys() | self._changed_by.get(flow.flow_id, set()):
            member = step.members.by_id.get(target_id)
            if member is not None and member.is_judged and (member.returns or target_id in step.versions):
                versions = step.versions.get(target_id, ())
                yield from listing_changes(member, versions, flow.flow_id, before.get(target_id))

    def _held_of(self, step: StoryStep, flow: FlowKey) -> Iterator[tuple[str, Answer]]:
        """The last known answers that listed what is held now."""
        for target_id in self._entries[flow.flow_id]:
            member = step.members.by_id.get(target_id)
            if member is None or (target_id, flow.flow_id) not in self._held:
                continue
            known = (member.whole, self._held[target_id, flow.flow_id])
            latest = max((answer for answer in known if answer is not None), key=lambda each: each.arrived_at)
            yield member.user_id, latest
