"""What is known about a workflow, for the rules of ``docs/organisation.md``: who listed it, and who does now. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, get_args

from etl.domain.organisation.values import Answer, Listed, ListEntry, ListingChange, StepContext, Workflow

ValueField = Literal["name", "cycle"]
"""What a workflow has one of, whoever looks at it."""
VALUE_FIELDS: Final[tuple[ValueField, ...]] = get_args(ValueField)


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

    def counting(self) -> Iterator[str]:
        """The active users who count in this round."""
        return (user_id for user_id in self.context.active if self.latest(user_id) is not None)

    def active(self) -> Iterator[str]:
        """Those of them who were heard within ``coverage_gap``; not those whose removal of this workflow is held."""
        return filter(self.is_active, self.counting())

    def showing(self, field: ValueField, value: str | None) -> Iterator[str]:
        """The active users who list it with this name (or cycle)."""
        return (u for u, entry in self.after.items() if getattr(entry.listed, field) == value and self.is_active(u))

    def is_active(self, user_id: str) -> bool:
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
