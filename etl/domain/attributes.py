"""Rule 6 of ``docs/organisation.md``: when the name or the cycle of a workflow changed. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from etl.domain.evidence import Evidence
from etl.domain.kinds import EventKind
from etl.domain.story import Answer, Event, KnownValue, KnownWorkflow, Listed


class ObservedValue(NamedTuple):
    """An answer, and the name (or cycle) that it has."""

    answer: Answer
    value: str | None


class ValueChange(NamedTuple):
    """The value changed to ``new`` after ``last_unchanged_at`` and before ``answer`` had arrived."""

    answer: Answer
    new: str | None
    last_unchanged_at: dt.datetime


def attribute_events(evidence: Evidence, workflow: KnownWorkflow) -> tuple[list[Event], KnownWorkflow]:
    """The changes of name and cycle that the answers prove. Two that one answer proves have the same interval."""
    observed = [(answer, listed) for _, answer, listed in evidence.answers_with_it()]
    renamed, name = value_changes(workflow.name, [ObservedValue(answer, listed.name) for answer, listed in observed])
    cycled, cycle = value_changes(workflow.cycle, [ObservedValue(answer, listed.cycle) for answer, listed in observed])
    left = [(c.previous, c.before) for c in evidence.changes if c.previous is not None and c.before is not None]
    known = msgspec.structs.replace(
        workflow,
        name=_remember(name, (ObservedValue(answer, listed.name) for answer, listed in left)),
        cycle=_remember(cycle, (ObservedValue(answer, listed.cycle) for answer, listed in left)),
    )
    return _events(evidence.flow_id, workflow.listed, renamed, cycled), known


def value_changes(known: KnownValue, observed: Sequence[ObservedValue]) -> tuple[list[ValueChange], KnownValue]:
    """The changes that ``observed`` prove, in the order of their arrival, and the value that is known afterwards.

    An answer with another value proves a change if it was requested after an answer with the known value had arrived.
    """
    changes: list[ValueChange] = []
    while newer := [each for each in observed if _is_newer(each, known)]:
        first = min(newer, key=lambda each: (each.answer.arrived_at, each.answer.asked_at, each.value or ""))
        changes.append(ValueChange(first.answer, first.value, _last_unchanged(known, observed, first.answer.asked_at)))
        known = KnownValue(first.value, first.answer, first.answer)
    return changes, known


def _is_newer(observed: ObservedValue, known: KnownValue) -> bool:
    return observed.value != known.value and observed.answer.asked_at >= known.first.arrived_at


def _last_unchanged(known: KnownValue, observed: Iterable[ObservedValue], asked_at: dt.datetime) -> dt.datetime:
    same = (known.first, known.last, *(each.answer for each in observed if each.value == known.value))
    return max(answer.asked_at for answer in same if answer.arrived_at <= asked_at)


def _remember(known: KnownValue, left: Iterable[ObservedValue]) -> KnownValue:
    """Keep the latest answer with the known value, among users who have another value by now."""
    last = max((known.last, *(each.answer for each in left if each.value == known.value)))
    return known._replace(last=last)


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
