"""Rules 3 to 6: whether a user lost a workflow alone or everybody did, and when its name or its cycle changed. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

import msgspec

from etl.domain.kinds import EventKind
from etl.domain.organisation.evidence import VALUE_FIELDS, Entry, Evidence, ValueField
from etl.domain.organisation.values import Answer, Event, KnownValue, KnownWorkflow, Listed, Loss


class Losses(NamedTuple):
    """What became of the users who lost a workflow."""

    alone: tuple[Event, ...] = ()
    end: Event | None = None
    """It disappeared."""
    gone_at: dt.datetime | None = None
    """All users were without it at some moment since then."""
    back: Sequence[Entry] = ()
    """Users whose answers in the same step list it again after that."""
    waiting: Mapping[str, Loss] = {}
    awaited: int = 0


def losses(evidence: Evidence) -> Losses:
    """What is known of each user who lost it, now or earlier; users of whom nothing is known yet wait."""
    lost = {**evidence.waiting, **_lost_now(evidence)}
    if not lost:
        return Losses()
    absence = _Absence(evidence, lost)
    if evidence.context.heard and not absence.awaited:
        proven = absence.is_proven()
        alone = tuple(_lost_alone(evidence, lost, until=absence.at))
        gone_at = absence.since if proven else absence.reported_at
        return Losses(alone, absence.event(proven=proven), gone_at, absence.back)
    if _is_back(evidence):
        return Losses((), absence.event(proven=False), absence.reported_at, absence.back)
    alone = tuple(_lost_alone(evidence, lost))
    waiting = {user_id: lost[user_id] for user_id in lost.keys() - {event.user_id for event in alone}}
    return Losses(alone, waiting=waiting, awaited=len(_Absence(evidence, waiting).awaited) if waiting else 0)


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


def _lost_alone(evidence: Evidence, lost: Mapping[str, Loss], until: dt.datetime | None = None) -> Iterator[Event]:
    """Rule 4: an answer with it was requested (before ``until``) when the user was already without it."""
    shown = [(user_id, asked_at) for user_id, asked_at in evidence.last_shown() if until is None or asked_at < until]
    latest = max((asked_at for _, asked_at in shown), default=None)
    for user_id, loss in sorted(lost.items(), key=lambda item: (item[1].without.arrived_at, item[0])):
        if latest is not None and latest >= loss.without.arrived_at:
            yield Event(
                kind="access_lost",
                flow_id=evidence.flow_id,
                last_unchanged_at=loss.shown_asked_at,
                observed_at=loss.without.arrived_at,
                proven_for_all=any(
                    other != user_id and asked_at >= loss.without.arrived_at for other, asked_at in shown
                ),
                user_id=user_id,
                old=loss.listed,
            )


class _Absence:
    """Rule 3: whether all users were without it at one moment.

    That moment is ``at``, the arrival of the first answer without it of the user who lost it last; or, if all others
    had lost it before that answer was requested, the moment when EnOS read that answer.
    """

    def __init__(self, evidence: Evidence, lost: Mapping[str, Loss]) -> None:
        self._evidence = evidence
        self._last = max(lost, key=lambda user_id: (lost[user_id].without.arrived_at, user_id))
        last = lost[self._last].without
        self.at = last.arrived_at
        others = (loss.without for user_id, loss in lost.items() if user_id != self._last)
        self._needs_last = any(without.arrived_at > last.asked_at for without in others)
        self.since = self.at if self._needs_last else last.asked_at
        """A moment not later than that one."""
        shown = [answer.asked_at for _, answer, _ in evidence.answers_with_it() if answer.asked_at < self.at]
        self._shown_asked_at = max([*(loss.shown_asked_at for loss in lost.values()), *shown])
        self.awaited = [user_id for user_id in evidence.active() if not self._was_without(user_id)]
        """The active users who may have had it still, or again."""
        self.back = [entry for entry in evidence.entries if entry.answer.asked_at >= self.at]

    @property
    def reported_at(self) -> dt.datetime:
        """When the last answer arrived that was known when this was reported, unless a later one has the workflow."""
        is_back = self.back or not self._evidence.is_last
        return self.at if is_back else max(self.at, self._evidence.context.last_arrival)

    def is_proven(self) -> bool:
        """Whether no user can still have had it, not even one who is silent or retired, or whose removal is held."""
        context = self._evidence.context
        others = {*self._evidence.counting(), *self._evidence.after, *context.left_since(self._shown_asked_at)}
        return all(map(self._was_without, others)) and not context.has_ended_stays(self._shown_asked_at)

    def event(self, *, proven: bool) -> Event:
        return Event(
            kind="disappeared",
            flow_id=self._evidence.flow_id,
            last_unchanged_at=self._shown_asked_at,
            observed_at=self.at if proven else self.reported_at,
            proven_for_all=proven,
        )

    def _was_without(self, user_id: str) -> bool:
        """Whether a user is known to have been without it at that moment."""
        if user_id == self._last and not self._needs_last:
            return True
        without = self._evidence.asked_without(user_id)
        return without is not None and without >= self.at


class ObservedValue(NamedTuple):
    """An answer, and the name (or cycle) that it has."""

    answer: Answer
    value: str | None
    is_new: bool = False
    """Whether the user's answer before it had another value, or did not list the workflow."""


class ValueChange(NamedTuple):
    """The value changed to ``new`` after ``last_unchanged_at`` and before ``answer`` had arrived."""

    answer: Answer
    new: str | None
    last_unchanged_at: dt.datetime


def attribute_events(evidence: Evidence, workflow: KnownWorkflow) -> tuple[list[Event], KnownWorkflow]:
    """The changes of name and cycle that the answers prove. Two that one answer proves have the same interval."""
    changed, known = zip(*(_value_changes(evidence, workflow, field) for field in VALUE_FIELDS), strict=True)
    return _events(evidence.flow_id, workflow.listed, *changed), msgspec.structs.replace(
        workflow, **dict(zip(VALUE_FIELDS, known, strict=True))
    )


def _value_changes(
    evidence: Evidence, workflow: KnownWorkflow, field: ValueField
) -> tuple[list[ValueChange], KnownValue]:
    value = attrgetter(field)
    before = {(c.user_id, c.answer): c.before for c in evidence.changes}
    observed = [
        ObservedValue(
            answer,
            value(listed),
            (user_id, answer) in before and ((was := before[user_id, answer]) is None or value(was) != value(listed)),
        )
        for user_id, answer, listed in evidence.answers_with_it()
    ]
    changes, known = value_changes(value(workflow), observed, lambda known: any(evidence.showing(field, known)))
    left = (c.previous for c in evidence.changes if c.previous and c.before and value(c.before) == known.value)
    return changes, known._replace(last=max((known.last, *left)))  # of users who have another value by now


def value_changes(
    known: KnownValue, observed: Sequence[ObservedValue], is_shown: Callable[[str | None], bool]
) -> tuple[list[ValueChange], KnownValue]:
    """The changes that ``observed`` prove, in the order of their arrival, and the value that is known afterwards.

    An answer with another value proves a change if it was requested after an answer with the known value had arrived.
    One that repeats its user's last value only counts if no active user shows the known value any more: otherwise users
    who are told different values for good would make events in every run.
    """
    changes: list[ValueChange] = []
    while newer := [e for e in observed if e.value != known.value and e.answer.asked_at >= known.first.arrived_at]:
        new = [each for each in newer if each.is_new]
        if not new and is_shown(known.value):
            break
        first = min(new or newer, key=lambda each: (each.answer.arrived_at, each.answer.asked_at, each.value or ""))
        changes.append(ValueChange(first.answer, first.value, _last_unchanged(known, observed, first.answer.asked_at)))
        known = KnownValue(first.value, first.answer, first.answer)
    return changes, known


def _last_unchanged(known: KnownValue, observed: Iterable[ObservedValue], asked_at: dt.datetime) -> dt.datetime:
    same = (known.first, known.last, *(each.answer for each in observed if each.value == known.value))
    return max(answer.asked_at for answer in same if answer.arrived_at <= asked_at)


def _events(flow_id: str, old: Listed, renamed: Iterable[ValueChange], cycled: Iterable[ValueChange]) -> list[Event]:
    events: list[Event] = []
    names = {change.answer: change for change in renamed}
    cycles = {change.answer: change for change in cycled}
    for answer in sorted({*names, *cycles}, key=lambda each: (each.arrived_at, each.asked_at)):
        name, cycle = names.get(answer), cycles.get(answer)
        new = Listed(name.new if name else old.name, cycle.new if cycle else old.cycle, None)
        kinds: tuple[tuple[EventKind, ValueChange | None], ...] = (("cycle_changed", cycle), ("renamed", name))
        events += (
            Event(kind, flow_id, change.last_unchanged_at, answer.arrived_at, proven_for_all=True, old=old, new=new)
            for kind, change in kinds
            if change
        )
        old = new
    return events
