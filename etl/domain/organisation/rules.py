"""The rules, and the order in which they are applied to one workflow; when an event lies is in ``intervals``. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import NamedTuple

import msgspec

from etl.domain.kinds import EventKind
from etl.domain.model import latest_of
from etl.domain.organisation import intervals
from etl.domain.organisation.intervals import VALUE_FIELDS, Absence, Entry, Evidence, Interval, ValueField
from etl.domain.organisation.values import (
    AT_ONCE,
    Answer,
    Event,
    Judgement,
    KnownValue,
    KnownWorkflow,
    Listed,
    ListingChange,
    Loss,
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
    """Rules 2 to 6: somebody lists it, or waits. Users of whose loss nothing is known yet wait (5)."""
    assert evidence.known is not None  # noqa: S101 - what somebody lists is known
    lost = {**evidence.waiting, **_lost_now(evidence)}
    absence = Absence(evidence, lost) if lost else None
    if absence and evidence.context.heard and not absence.awaited:
        alone = _lost_alone(evidence, lost, absence.at)
        return _gone(evidence, evidence.known, absence, alone, proven=absence.is_proven())
    if absence and _is_back(evidence):
        return _gone(evidence, evidence.known, absence, (), proven=False)
    alone = _lost_alone(evidence, lost) if lost else ()
    waiting = {user_id: lost[user_id] for user_id in lost.keys() - {event.user_id for event in alone}}
    since = min([evidence.known.since, *(entry.at for entry in evidence.entries)])
    changed, known = _attribute_events(evidence, msgspec.structs.replace(evidence.known, since=since))
    events = [*_grants(evidence, since), *changed, *alone]
    awaited = len(Absence(evidence, waiting).awaited) if waiting else 0
    return Judgement(evidence.flow_id, events, known, waiting, awaited)


def _gone(
    evidence: Evidence, known: KnownWorkflow, absence: Absence, alone: Iterable[Event], *, proven: bool
) -> Judgement:
    """Rule 3, and rule 1 where the same answers list it again."""
    interval = absence.interval(proven=proven)
    ended = msgspec.structs.replace(known, gone_at=absence.since if proven else interval.observed_at)
    events = [*alone, Event("disappeared", evidence.flow_id, *interval, old=known.listed)]
    if not absence.back:
        return Judgement(evidence.flow_id, events, ended)
    back = _coming_into_sight(evidence, absence.back[0], ended, is_proven_gone=proven)
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
    changed, known = _attribute_events(evidence, KnownWorkflow(first.at, name, cycle))
    rest = [*_grants(evidence, first.at), *changed]
    new = first.listed._replace(editable=None)
    interval = intervals.of_appearance(evidence, first, gone, is_proven_gone=is_proven_gone)
    if interval is None:
        baseline = WorkflowState(first.at, None, new, "baseline", True)
        return Judgement(evidence.flow_id, rest, known, baselines=(baseline,))
    kind: EventKind = "reappeared" if gone else "appeared"
    appeared = Event(kind, evidence.flow_id, *interval, old=gone.listed if gone else None, new=new)
    return Judgement(evidence.flow_id, [appeared, *rest], known)


def _grants(evidence: Evidence, since: dt.datetime) -> Iterator[Event]:
    """Rule 2. A gain whose previous answer was requested before ``since`` is a late first sight (2a), and no event."""
    for gain in evidence.gains:
        if gain.asked_before >= since:
            yield Event("access_granted", evidence.flow_id, *gain.interval, user_id=gain.user_id, new=gain.listed)


def _lost_now(evidence: Evidence) -> dict[str, Loss]:
    return {
        c.user_id: Loss(c.before, c.previous.asked_at, c.answer)
        for c in evidence.changes
        if c.previous is not None and c.before is not None and c.after is None
    }


def _is_back(evidence: Evidence) -> bool:
    """Rule 3a: no user listed it any more, and now only users who were waiting list it again."""
    entries = evidence.entries
    return not evidence.before and bool(entries) and all(entry.user_id in evidence.waiting for entry in entries)


def _lost_alone(evidence: Evidence, lost: Mapping[str, Loss], until: dt.datetime | None = None) -> tuple[Event, ...]:
    """Rule 4."""
    return tuple(
        Event("access_lost", evidence.flow_id, *interval, user_id=user_id, old=lost[user_id].listed)
        for user_id, interval in intervals.of_losses(evidence, lost, until)
    )


def _attribute_events(evidence: Evidence, workflow: KnownWorkflow) -> tuple[list[Event], KnownWorkflow]:
    """The changes of name and cycle that the answers prove. Two that one answer proves have the same interval."""
    changed, known = zip(*(_value_changes(evidence, workflow, field) for field in VALUE_FIELDS), strict=True)
    return _events(evidence.flow_id, workflow.listed, *changed), msgspec.structs.replace(
        workflow, **dict(zip(VALUE_FIELDS, known, strict=True))
    )


def _value_changes(
    evidence: Evidence, workflow: KnownWorkflow, field: ValueField
) -> tuple[list[_ValueChange], KnownValue]:
    """Rule 6: the changes that the answers prove, in the order of their arrival, and the value known afterwards.

    An answer with another value proves a change if it was requested after an answer with the known value had arrived.
    One that repeats its user's last value only counts if no active user shows the known value any more: otherwise users
    who are told different values for good would make events in every run.
    """
    value, known = attrgetter(field), getattr(workflow, field)
    before = {(c.user_id, c.answer): c.before for c in evidence.changes}
    observed: list[tuple[str | None, Answer, bool]] = [  # whether it is another value than the user's answer before had
        (
            value(listed),
            answer,
            (user_id, answer) in before and ((was := before[user_id, answer]) is None or value(was) != value(listed)),
        )
        for user_id, answer, listed in evidence.answers_with_it()
    ]
    changes: list[_ValueChange] = []
    while newer := [e for e in observed if e[0] != known.value and e[1].asked_at >= known.first.arrived_at]:
        new = [each for each in newer if each[2]]
        if not new and any(evidence.showing(field, known.value)):
            break
        following, answer, _ = min(new or newer, key=lambda each: (each[1].arrived_at, each[1].asked_at, each[0] or ""))
        interval = intervals.of_change(known, (each for shown, each, _ in observed if shown == known.value), answer)
        known = KnownValue(following, answer, answer)
        changes.append(_ValueChange(known, interval))
    left = (c.previous for c in evidence.changes if c.previous and c.before and value(c.before) == known.value)
    return changes, known._replace(last=max((known.last, *left)))  # of users who have another value by now


class _ValueChange(NamedTuple):
    known: KnownValue
    """From then on."""
    interval: Interval


def _events(flow_id: str, old: Listed, renamed: Iterable[_ValueChange], cycled: Iterable[_ValueChange]) -> list[Event]:
    events: list[Event] = []
    names, cycles = ({change.known.first: change for change in changes} for changes in (renamed, cycled))
    for answer in sorted({*names, *cycles}, key=lambda each: (each.arrived_at, each.asked_at)):
        name, cycle = names.get(answer), cycles.get(answer)
        new = Listed(name.known.value if name else old.name, cycle.known.value if cycle else old.cycle, None)
        kinds: tuple[tuple[EventKind, _ValueChange | None], ...] = (("cycle_changed", cycle), ("renamed", name))
        events += (Event(kind, flow_id, *change.interval, old=old, new=new) for kind, change in kinds if change)
        old = new
    return events


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
