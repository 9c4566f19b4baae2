"""Rules 1 and 2, and the order in which all of them are applied to one workflow. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator

import msgspec

from etl.domain.model import latest_of
from etl.domain.organisation.changes import Losses, attribute_events, losses
from etl.domain.organisation.evidence import VALUE_FIELDS, Entry, Evidence
from etl.domain.organisation.values import (
    AT_ONCE,
    Answer,
    Event,
    Judgement,
    KnownValue,
    KnownWorkflow,
    ListingChange,
    StepContext,
    Workflow,
    WorkflowState,
)


def judge(context: StepContext, workflow: Workflow) -> Judgement:
    """The events of one workflow in one step, and what is to be kept of it.

    A user's answers are judged one after the other: changes of several versions make several rounds.
    """
    events: list[Event] = []
    baselines: list[WorkflowState] = []
    for changes, later in _rounds(workflow.changes):
        evidence = Evidence(context, workflow, changes, later)
        judgement = _judge_round(evidence)
        events += judgement.events
        baselines += judgement.baselines
        workflow = Workflow(
            workflow.flow_id, judgement.known, judgement.listings, judgement.waiting, held=workflow.held
        )
    return msgspec.structs.replace(judgement, events=events, baselines=baselines)


def _rounds(changes: Iterable[ListingChange]) -> Iterator[tuple[list[ListingChange], dict[str, Answer | None]]]:
    """The changes by arrival, each user at most once per round. With each round: for users who occur again, the answer
    before their next change."""
    rounds: list[list[ListingChange]] = [[]]
    seen: set[str] = set()
    for change in sorted(changes, key=lambda each: (each.answer.arrived_at, each.answer.asked_at, each.user_id)):
        if change.user_id in seen:
            rounds.append([])
            seen.clear()
        rounds[-1].append(change)
        seen.add(change.user_id)
    laters: list[dict[str, Answer | None]] = [{}]
    for each in reversed(rounds[1:]):
        laters.append({**laters[-1], **{change.user_id: change.previous for change in each}})
    return zip(rounds, reversed(laters), strict=True)


def _judge_round(evidence: Evidence) -> Judgement:
    result = _while_visible(evidence) if evidence.is_visible else _while_gone(evidence)
    users_before = len(evidence.before) + len(evidence.waiting)
    users_after = len(evidence.after) + len(result.waiting)
    counts = {"users_before": users_before, "users_after": users_after, "unheard": evidence.context.unheard}
    return msgspec.structs.replace(
        result,
        events=[msgspec.structs.replace(event, **counts) for event in result.events],
        listings=evidence.listings,
        due_at=_due_at(evidence, result),
    )


def _while_visible(evidence: Evidence) -> Judgement:
    """Rules 2 to 6: somebody lists it, or waits."""
    assert evidence.known is not None  # noqa: S101 - what somebody lists is known
    lost = losses(evidence)
    if lost.end is not None:
        return _gone(evidence, evidence.known, lost, lost.end)
    since = min([evidence.known.since, *(entry.at for entry in evidence.entries)])
    changed, known = attribute_events(evidence, msgspec.structs.replace(evidence.known, since=since))
    events = [*_grants(evidence, since), *changed, *lost.alone]
    return Judgement(evidence.flow_id, events, known, lost.waiting, lost.awaited)


def _gone(evidence: Evidence, known: KnownWorkflow, lost: Losses, end: Event) -> Judgement:
    """Rule 3, and rule 1 where the same answers list it again."""
    ended = msgspec.structs.replace(known, gone_at=lost.gone_at)
    events = [*lost.alone, msgspec.structs.replace(end, old=known.listed)]
    if not lost.back:
        return Judgement(evidence.flow_id, events, ended)
    back = _coming_into_sight(evidence, lost.back[0], ended, is_proven_gone=end.proven_for_all)
    return msgspec.structs.replace(back, events=[*events, *back.events])


def _while_gone(evidence: Evidence) -> Judgement:
    """Nobody lists it, except users who have been silent since before its ``disappeared``."""
    if not evidence.entries:
        known = evidence.known
        if known is not None:  # users who were silent or away may have been heard without it only now
            without = (change.answer.arrived_at for change in evidence.changes if change.after is None)
            known = msgspec.structs.replace(known, gone_at=latest_of(known.gone_at, *without))
        return Judgement(evidence.flow_id, [], known)
    return _coming_into_sight(evidence, evidence.entries[0], evidence.known, is_proven_gone=not evidence.before)


def _coming_into_sight(
    evidence: Evidence, first: Entry, gone: KnownWorkflow | None, *, is_proven_gone: bool
) -> Judgement:
    """Rule 1, and what else the same answers show. A user's first answer makes no event on its own."""
    name, cycle = (KnownValue(value, first.answer, first.answer) for value in first.listed[:2])
    changed, known = attribute_events(evidence, KnownWorkflow(first.at, name, cycle))
    rest = [*_grants(evidence, first.at), *changed]
    asked_before = [gain.asked_before for gain in evidence.gains if gain.asked_before < first.at]
    new = first.listed._replace(editable=None)
    if not asked_before and not evidence.back:
        return Judgement(
            evidence.flow_id, rest, known, baselines=(WorkflowState(first.at, None, new, "baseline", True),)
        )
    absent_at = _absent_at(evidence, gone) if is_proven_gone else None
    after = absent_at or max(asked_before, default=gone.gone_at if gone else None)
    assert after is not None  # noqa: S101 - users come back only after its disappearance was reported
    appeared = Event(
        kind="reappeared" if gone else "appeared",
        flow_id=evidence.flow_id,
        last_unchanged_at=after,
        observed_at=first.at,
        proven_for_all=absent_at is not None,
        old=gone.listed if gone else None,
        new=new,
    )
    return Judgement(evidence.flow_id, [appeared, *rest], known)


def _absent_at(evidence: Evidence, gone: KnownWorkflow | None) -> dt.datetime | None:
    """The latest moment at which everybody is proven to have been without it; None where there is none."""
    if not evidence.gains or not evidence.coming.isdisjoint(evidence.after):
        return None
    absent_at = evidence.context.earliest(min(gain.asked_before for gain in evidence.gains), evidence.asked_without)
    if evidence.context.has_ended_stays(absent_at):
        return None
    if gone is None:
        return absent_at
    retired = (evidence.context.users[user_id].retired_at for user_id in evidence.retired)
    returned = (c.answer.arrived_at for c in evidence.changes if c.previous is None)
    gone_at = latest_of(gone.gone_at, *retired, *returned)
    return absent_at if gone_at is not None and gone_at <= absent_at else None


def _grants(evidence: Evidence, since: dt.datetime) -> Iterator[Event]:
    """Rule 2. A gain whose previous answer was requested before ``since`` is a late first sight (2a), and no event."""
    for gain in evidence.gains:
        if gain.asked_before >= since:
            yield Event(
                kind="access_granted",
                flow_id=evidence.flow_id,
                last_unchanged_at=gain.asked_before,
                observed_at=gain.answer.arrived_at,
                proven_for_all=True,
                user_id=gain.user_id,
                new=gain.listed,
            )


def _due_at(evidence: Evidence, result: Judgement) -> dt.datetime | None:
    """Whoever waits, or contradicts what is known, may be judged otherwise once somebody is heard; users who are told
    different values (6a) once nobody active shows the known one any more."""
    known = result.known
    if result.waiting:
        return AT_ONCE
    if known is None:
        return None
    if known.gone_at is not None:
        return AT_ONCE if evidence.after else None
    moments: list[dt.datetime] = []
    for field in VALUE_FIELDS:
        value = getattr(known, field).value
        if any(getattr(entry.listed, field) != value for entry in evidence.after.values()):
            shown_until = [evidence.left_at(user_id) for user_id in evidence.showing(field, value)]
            if not shown_until:
                return AT_ONCE
            moments.append(max(shown_until))
    return min(moments, default=None)
