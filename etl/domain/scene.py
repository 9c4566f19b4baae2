"""A workflow as the rules of ``docs/organisation.md`` see it: who listed it before, and who lists it now. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from etl.domain.story import Answer, Audience, Listed, Showing, Sighting, Workflow


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


class Scene:
    """One workflow in one round of a step, in which each user has at most one answer that changes it."""

    def __init__(
        self,
        audience: Audience,
        workflow: Workflow,
        sightings: Sequence[Sighting],
        later: Mapping[str, Answer | None],
    ) -> None:
        self.audience = audience
        self.flow_id = workflow.flow_id
        self.story = workflow.story
        self.waiting = workflow.waiting
        self.sightings = sightings
        self.is_last = not later
        self._later = later
        self._held = workflow.held
        self._answers = {sighting.user_id: sighting.answer for sighting in sightings}
        self._list(workflow.showing)
        self.told_gone = self.story is not None and self.story.gone_at is not None
        self.is_visible = not self.told_gone and bool(self.before or self.waiting)
        self.back = list(self._back_from_silence())
        self.entries = sorted([*self._first_listed(), *self.back])
        self.gains = [
            Gain(s.user_id, s.previous.asked_at, s.answer, s.after)
            for s in sightings
            if s.previous is not None and s.before is None and s.after is not None
        ]
        self.came_at = {s.user_id: s.answer.arrived_at for s in sightings if s.previous is None}
        """When users who join or come back in this round began to count."""
        self._asked_before = {gain.user_id: gain.asked_before for gain in self.gains}

    def _list(self, showing: Mapping[str, Showing]) -> None:
        """Who listed it before the round, who does now, and who did until retirement."""
        coming = {s.user_id for s in self.sightings if s.previous is None}
        coming |= {user_id for user_id, answer in self._later.items() if answer is None}
        kept = {user_id: shown for user_id, shown in showing.items() if user_id not in coming}
        self.listing = _showing_after(kept, self.sightings)
        self.retired = {u for u in self.listing if self.audience.users[u].retired_at is not None}
        self.before = {u: shown for u, shown in kept.items() if u not in self.retired or u in self._answers}
        self.after = {u: shown for u, shown in self.listing.items() if u not in self.retired}

    def latest(self, user_id: str) -> Answer | None:
        """The user's latest answer about the workflow; None: the user does not count yet in this round."""
        if user_id in self._later:
            return self._later[user_id] or self._answers.get(user_id)
        return self._held.get(user_id) or self.audience.users[user_id].latest

    def counting(self) -> Iterator[str]:
        """The active users who count in this round."""
        return (user_id for user_id in self.audience.active if self.latest(user_id) is not None)

    def active(self) -> Iterator[str]:
        """Those of them who were heard within ``coverage_gap``; not those whose removal of this workflow is held."""
        return filter(self._is_active, self.counting())

    def asked_without(self, user_id: str) -> dt.datetime | None:
        """The request of the user's latest known answer without it, before the user lists it in this round; None if the
        user has listed it all along or from the first answer, or does not count in this round."""
        if user_id in self._asked_before:
            return self._asked_before[user_id]
        if user_id in self.listing:
            return None
        latest = self.latest(user_id)
        return latest and latest.asked_at

    def looks(self) -> Iterator[tuple[str, Answer, Listed]]:
        """Every known answer that lists the workflow, with its user; not those of a user who has come back and does not
        count yet."""
        for sighting in self.sightings:
            if sighting.previous is not None and sighting.before is not None:
                yield sighting.user_id, sighting.previous, sighting.before
            if sighting.after is not None:
                yield sighting.user_id, sighting.answer, sighting.after
        for user_id, showing in self.listing.items():
            latest, retired_at = self.latest(user_id), self.audience.users[user_id].retired_at
            if latest is not None and (retired_at is None or latest.arrived_at <= retired_at):
                yield user_id, latest, showing.listed

    def showings(self) -> Iterator[tuple[str, dt.datetime, dt.datetime]]:
        """Each user who lists it, or did before: since when, and the user's last request that was answered with it."""
        for user_id, shown in self.listing.items():
            latest = self.latest(user_id)
            if latest is not None:
                yield user_id, shown.since, latest.asked_at
        for sighting in self.sightings:
            if sighting.previous is not None and sighting.after is None and sighting.user_id in self.before:
                yield sighting.user_id, self.before[sighting.user_id].since, sighting.previous.asked_at

    def _is_active(self, user_id: str) -> bool:
        held = self._held.get(user_id)
        return held is None or held.arrived_at + self.audience.users[user_id].coverage_gap >= self.audience.decided_at

    def _first_listed(self) -> Iterator[Entry]:
        for sighting in self.sightings:
            if sighting.after is not None and (sighting.before is None or sighting.previous is None):
                yield Entry(sighting.answer.arrived_at, sighting.user_id, sighting.answer, sighting.after)

    def _back_from_silence(self) -> Iterator[Entry]:
        """Users who were silent at its ``disappeared``, and still list it."""
        if self.story is None or self.story.gone_at is None:
            return
        for user_id in self.before.keys() & self.after.keys():
            latest = self.latest(user_id)
            if latest is not None and latest.asked_at >= self.story.gone_at:
                yield Entry(latest.arrived_at, user_id, latest, self.after[user_id].listed)


def _showing_after(before: Mapping[str, Showing], sightings: Iterable[Sighting]) -> dict[str, Showing]:
    after = dict(before)
    for sighting in sightings:
        goes_on = after.pop(sighting.user_id, None) if sighting.previous is not None else None
        if sighting.after is None:
            after.pop(sighting.user_id, None)
        else:
            since = goes_on.since if goes_on else sighting.answer.arrived_at
            after[sighting.user_id] = Showing(since, sighting.after)
    return after
