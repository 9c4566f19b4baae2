"""Between which two answers an event lies: what answers say about one workflow, and the interval of each rule. Pure.

An interval begins when an answer was requested that still shows the old state, and ends when one had arrived that shows
the new one. The rules are those at the top of the package.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import Final, Literal, NamedTuple, get_args

from etl.domain.model import latest_of
from etl.domain.organisation.values import (
    Answer,
    KnownValue,
    KnownWorkflow,
    Listed,
    ListEntry,
    ListingChange,
    Loss,
    StepContext,
    Workflow,
)

ValueField = Literal["name", "cycle"]
"""What a workflow has one of, whoever looks at it."""
VALUE_FIELDS: Final[tuple[ValueField, ...]] = get_args(ValueField)


class Interval(NamedTuple):
    """When something happened: after the first moment and not after the second."""

    last_unchanged_at: dt.datetime
    observed_at: dt.datetime
    proven_for_all: bool = True


class Entry(NamedTuple):
    """The first answer in which a user lists the workflow, after not listing it or not being known to."""

    at: dt.datetime
    """Its arrival."""
    user_id: str
    answer: Answer
    listed: Listed


class Gain(NamedTuple):
    """A user lists it whose previous answer, requested at ``asked_before``, did not."""

    user_id: str
    asked_before: dt.datetime
    answer: Answer
    listed: Listed

    @property
    def interval(self) -> Interval:
        """Rule 2."""
        return Interval(self.asked_before, self.answer.arrived_at)


class Evidence:
    """One workflow in one round of a step, in which each user has at most one answer that changes it."""

    def __init__(
        self,
        context: StepContext,
        workflow: Workflow,
        changes: Sequence[ListingChange],
        later: Mapping[str, Answer | None],
    ) -> None:
        self.context = context
        self.flow_id = workflow.flow_id
        self.known = workflow.known
        self.waiting = workflow.waiting
        self.changes = changes
        self.is_last = not later
        self._later = later
        self.held = workflow.held
        self._answers = {change.user_id: change.answer for change in changes}
        self._list(workflow.listings)
        self.concerned = {*self.listings, *self._answers, *self.held, *later} & context.active
        """The active users of whom more is to be said than that their latest answer lacks it."""
        is_gone = self.known is not None and self.known.gone_at is not None
        self.is_visible = not is_gone and bool(self.before or self.waiting)
        self.back = list(self._back_from_silence())
        self.entries = sorted([*self._first_listed(), *self.back])
        self.gains = [
            Gain(c.user_id, c.previous.asked_at, c.answer, c.after)
            for c in changes
            if c.previous is not None and c.before is None and c.after is not None
        ]
        self._asked_before = {gain.user_id: gain.asked_before for gain in self.gains}

    def _list(self, listings: Mapping[str, ListEntry]) -> None:
        """Who listed it before the round, who does now, and who did until retirement."""
        self.coming = {c.user_id for c in self.changes if c.previous is None}
        """The users who join or come back in this round, and count from then on."""
        coming = self.coming | {user_id for user_id, answer in self._later.items() if answer is None}
        kept = {user_id: listing for user_id, listing in listings.items() if user_id not in coming}
        self.listings = _listings_after(kept, self.changes)
        self.retired = {u for u in self.listings if self.context.users[u].retired_at is not None}
        self.before = {u: listing for u, listing in kept.items() if u not in self.retired or u in self._answers}
        self.after = {u: listing for u, listing in self.listings.items() if u not in self.retired}

    def latest(self, user_id: str) -> Answer | None:
        """The user's latest answer about the workflow; None: the user does not count yet in this round."""
        if user_id in self._later:
            return self._later[user_id] or self._answers.get(user_id)
        return self.held.get(user_id) or self.context.users[user_id].latest

    def counting(self, asked_before: dt.datetime) -> set[str]:
        """The active users who count in this round, but for those whose only known answer lacks it and was requested at
        ``asked_before`` or later: in a large organisation nearly everybody."""
        earlier = takewhile(lambda each: each[0] < asked_before, self.context.by_request)
        return {u for u in self.concerned.union(u for _, u in earlier) if self.latest(u) is not None}

    def showing(self, field: ValueField, value: str | None) -> Iterator[str]:
        """The active users who list it with this name (or cycle)."""
        return (u for u, entry in self.after.items() if getattr(entry.listed, field) == value and self.is_active(u))

    def is_active(self, user_id: str) -> bool:
        """Whether the user was heard within ``coverage_gap``, and no removal of this workflow is held for longer."""
        return user_id in self.context.active and self.left_at(user_id) >= self.context.decided_at

    def left_at(self, user_id: str) -> dt.datetime:
        """When nothing is known of the user any more, as far as this workflow goes."""
        user, held = self.context.users[user_id], self.held.get(user_id)
        return user.left_at if held is None else min(user.left_at, held.arrived_at + user.coverage_gap)

    def asked_without(self, user_id: str) -> dt.datetime | None:
        """The request of the user's latest known answer without it, before the user lists it in this round; None if the
        user has listed it all along or from the first answer, or does not count in this round."""
        if user_id in self._asked_before:
            return self._asked_before[user_id]
        if user_id in self.listings:
            return None
        latest = self.latest(user_id)
        return latest and latest.asked_at

    def answers_with_it(self) -> Iterator[tuple[str, Answer, Listed]]:
        """Every known answer that lists the workflow, with its user; not those of a user who has come back and does not
        count yet."""
        for change in self.changes:
            if change.previous is not None and change.before is not None:
                yield change.user_id, change.previous, change.before
            if change.after is not None:
                yield change.user_id, change.answer, change.after
        for user_id, listing in self.listings.items():
            latest, retired_at = self.latest(user_id), self.context.users[user_id].retired_at
            if latest is not None and (retired_at is None or latest.arrived_at <= retired_at):
                yield user_id, latest, listing.listed

    def last_shown(self) -> Iterator[tuple[str, dt.datetime]]:
        """Each user who lists it, or did before, with the user's last request that was answered with it."""
        for user_id in self.listings:
            latest = self.latest(user_id)
            if latest is not None:
                yield user_id, latest.asked_at
        for change in self.changes:
            if change.previous is not None and change.after is None and change.user_id in self.before:
                yield change.user_id, change.previous.asked_at

    def _first_listed(self) -> Iterator[Entry]:
        for change in self.changes:
            if change.after is not None and (change.before is None or change.previous is None):
                yield Entry(change.answer.arrived_at, change.user_id, change.answer, change.after)

    def _back_from_silence(self) -> Iterator[Entry]:
        """Users who were silent at its ``disappeared``, and still list it."""
        if self.known is None or self.known.gone_at is None:
            return
        for user_id in self.before.keys() & self.after.keys():
            latest = self.latest(user_id)
            if latest is not None and latest.asked_at >= self.known.gone_at:
                yield Entry(latest.arrived_at, user_id, latest, self.after[user_id].listed)


def _listings_after(before: Mapping[str, ListEntry], changes: Iterable[ListingChange]) -> dict[str, ListEntry]:
    after = dict(before)
    for change in changes:
        continued = after.pop(change.user_id, None) if change.previous is not None else None
        if change.after is None:
            after.pop(change.user_id, None)
        else:
            since = continued.since if continued else change.answer.arrived_at
            after[change.user_id] = ListEntry(since, change.after)
    return after


# ------------------------------------------------------------------------------------------------- 1: it (re)appeared


def of_appearance(
    evidence: Evidence, first: Entry, gone: KnownWorkflow | None, *, is_proven_gone: bool
) -> Interval | None:
    """Rules 1 and 1b; None if only first answers of users show it (1a)."""
    asked_before = [gain.asked_before for gain in evidence.gains if gain.asked_before < first.at]
    if not asked_before and not evidence.back:
        return None
    absent_at = _absent_at(evidence, gone) if is_proven_gone else None
    after = absent_at or max(asked_before, default=gone.gone_at if gone else None)
    assert after is not None  # noqa: S101 - users come back only after its disappearance was reported
    return Interval(after, first.at, absent_at is not None)


def _absent_at(evidence: Evidence, gone: KnownWorkflow | None) -> dt.datetime | None:
    """The latest moment at which everybody is proven to have been without it; None where there is none."""
    if not evidence.gains or not evidence.coming.isdisjoint(evidence.after):
        return None
    absent_at = _earliest_without(evidence)
    if evidence.context.has_ended_stays(absent_at):
        return None
    if gone is None:
        return absent_at
    retired = (evidence.context.users[user_id].retired_at for user_id in evidence.retired)
    returned = (c.answer.arrived_at for c in evidence.changes if c.previous is None)
    gone_at = latest_of(gone.gone_at, *retired, *returned)
    return absent_at if gone_at is not None and gone_at <= absent_at else None


def _earliest_without(evidence: Evidence) -> dt.datetime:
    """The earliest of everybody's latest requests that were answered without it; not of those who had left by then."""
    given = [evidence.asked_without(user_id) for user_id in evidence.concerned]
    given += islice((at for at, user_id in evidence.context.by_request if user_id not in evidence.concerned), 1)
    earliest = min([*(gain.asked_before for gain in evidence.gains), *(at for at in given if at is not None)])
    for left_at, user_id in evidence.context.left:
        if left_at < earliest:
            break
        earliest = min(earliest, evidence.asked_without(user_id) or earliest)
    return earliest


# ---------------------------------------------------------------------------------------------- 3: everybody lost it


class Absence:
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
        self.awaited = [u for u in filter(evidence.is_active, evidence.counting(self.at)) if not self._was_without(u)]
        """The active users who may have had it still, or again."""
        self.back = [entry for entry in evidence.entries if entry.answer.asked_at >= self.at]

    def interval(self, *, proven: bool) -> Interval:
        """If it is not proven, until the last answer arrived that was known when this was reported, unless a later one
        has the workflow."""
        if proven or self.back or not self._evidence.is_last:
            return Interval(self._shown_asked_at, self.at, proven)
        return Interval(self._shown_asked_at, max(self.at, self._evidence.context.last_arrival), proven_for_all=False)

    def is_proven(self) -> bool:
        """Whether no user can still have had it, not even one who is silent or retired, or whose removal is held."""
        context = self._evidence.context
        others = {*self._evidence.counting(self.at), *self._evidence.after, *context.left_since(self._shown_asked_at)}
        return all(map(self._was_without, others)) and not context.has_ended_stays(self._shown_asked_at)

    def _was_without(self, user_id: str) -> bool:
        """Whether a user is known to have been without it at that moment."""
        if user_id == self._last and not self._needs_last:
            return True
        without = self._evidence.asked_without(user_id)
        return without is not None and without >= self.at


# ------------------------------------------------------------------------------- 4: a user lost it; 6: another value


def of_losses(
    evidence: Evidence, lost: Mapping[str, Loss], until: dt.datetime | None = None
) -> Iterator[tuple[str, Interval]]:
    """Rule 4, by user: an answer with it was requested (before ``until``) when the user was already without it."""
    shown = [(user_id, asked_at) for user_id, asked_at in evidence.last_shown() if until is None or asked_at < until]
    latest = max((asked_at for _, asked_at in shown), default=None)
    for user_id, loss in sorted(lost.items(), key=lambda item: (item[1].without.arrived_at, item[0])):
        without_at = loss.without.arrived_at
        if latest is not None and latest >= without_at:
            proven = any(other != user_id and asked_at >= without_at for other, asked_at in shown)
            yield user_id, Interval(loss.shown_asked_at, without_at, proven)


def of_change(known: KnownValue, same: Iterable[Answer], answer: Answer) -> Interval:
    """Rule 6: ``answer`` has another value than the ``known`` one, which the ``same`` answers have."""
    shown = (known.first, known.last, *same)
    return Interval(max(each.asked_at for each in shown if each.arrived_at <= answer.asked_at), answer.arrived_at)
