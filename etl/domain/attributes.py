"""Rule 6 of ``docs/organisation.md``: when the name or the cycle of a workflow changed. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from etl.domain.kinds import EventKind
from etl.domain.scene import Scene
from etl.domain.story import Answer, Event, Known, Listed, Story


class Look(NamedTuple):
    """An answer, and the name (or cycle) that it has."""

    answer: Answer
    value: str | None


class ValueChange(NamedTuple):
    """The value changed to ``new`` after ``last_unchanged_at`` and before ``answer`` had arrived."""

    answer: Answer
    new: str | None
    last_unchanged_at: dt.datetime


def attribute_events(scene: Scene, story: Story) -> tuple[list[Event], Story]:
    """The changes of name and cycle that the answers prove. Two that one answer proves have the same interval."""
    looks = [(answer, listed) for _, answer, listed in scene.looks()]
    renamed, name = value_changes(story.name, [Look(answer, listed.name) for answer, listed in looks])
    cycled, cycle = value_changes(story.cycle, [Look(answer, listed.cycle) for answer, listed in looks])
    left = [(s.previous, s.before) for s in scene.sightings if s.previous is not None and s.before is not None]
    known = msgspec.structs.replace(
        story,
        name=_remember(name, (Look(answer, listed.name) for answer, listed in left)),
        cycle=_remember(cycle, (Look(answer, listed.cycle) for answer, listed in left)),
    )
    return _events(scene.flow_id, story.listed, renamed, cycled), known


def value_changes(known: Known, looks: Sequence[Look]) -> tuple[list[ValueChange], Known]:
    """The changes that ``looks`` prove, in the order of their arrival, and the value that is known afterwards.

    An answer with another value proves a change if it was requested after an answer with the known value had arrived.
    """
    changes: list[ValueChange] = []
    while newer := [look for look in looks if _is_newer(look, known)]:
        first = min(newer, key=lambda look: (look.answer.arrived_at, look.answer.asked_at, look.value or ""))
        changes.append(ValueChange(first.answer, first.value, _last_unchanged(known, looks, first.answer.asked_at)))
        known = Known(first.value, first.answer, first.answer)
    return changes, known


def _is_newer(look: Look, known: Known) -> bool:
    return look.value != known.value and look.answer.asked_at >= known.first.arrived_at


def _last_unchanged(known: Known, looks: Iterable[Look], asked_at: dt.datetime) -> dt.datetime:
    same = (known.first, known.last, *(look.answer for look in looks if look.value == known.value))
    return max(answer.asked_at for answer in same if answer.arrived_at <= asked_at)


def _remember(known: Known, left: Iterable[Look]) -> Known:
    """Keep the latest answer with the known value, among users who have another value by now."""
    last = max((known.last, *(look.answer for look in left if look.value == known.value)))
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
            Event(kind, flow_id, change.last_unchanged_at, answer.arrived_at, certain=True, old=old, new=new)
            for kind, change in kinds
            if change
        )
        old = new
    return events
