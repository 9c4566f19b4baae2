"""Rules 3 to 5 of ``docs/organisation.md``: whether a user lost a workflow alone, or everybody did. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from etl.domain.evidence import Entry, Evidence
from etl.domain.story import Event, Loss


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
    return Losses(alone, waiting=waiting, awaited=len(absence.awaited) if waiting else 0)


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
