"""What is known of one story, as the database would have it: answers come in, and a step judges what they changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Set
from typing import Any

from etl.domain.organisation import judge
from etl.domain.story import Answer, Audience, Judgement, Listed, Loss, Showing, Sighting, Story, User, Workflow

Flows = Mapping[str, Listed]
Judge = Callable[[Audience, Workflow], Judgement]


class DeliveryLog:
    """Times may be any numbers that can be compared and added."""

    def __init__(self, gaps: Mapping[str, Any], judge: Judge = judge, *, is_search: bool = False) -> None:
        self.gaps = gaps
        self._judge = judge
        self._is_search = is_search
        self.audience = Audience({}, 0)
        self.known: dict[str, Flows] = {}
        """By user, the list that his target has: what is held is in it."""
        self.latest: dict[str, Answer] = {}
        self.counts_since: dict[str, Any] = {}
        self.retired: dict[str, Any] = {}
        self.ended_stays: list[Any] = []
        """When users retired who have come back."""
        self.held: dict[tuple[str, str], Answer] = {}
        """By user and workflow whose removal is held, his last answer that listed it."""
        self.stories: dict[str, Story] = {}
        self.showing: dict[str, Mapping[str, Showing]] = defaultdict(dict)
        self.waiting: dict[str, Mapping[str, Loss]] = defaultdict(dict)
        self.open: set[str] = set()
        self._heard: set[str] = set()
        self._last_listed: dict[tuple[str, str], Answer] = {}
        self._pending: dict[str, list[Sighting]] = defaultdict(list)

    def answered(self, user: str, flows: Flows, answer: Answer, held: Set[str] = frozenset()) -> None:
        """An answer was believed, but for the removal of the workflows ``held``, which stay."""
        known = self.known.get(user, {})
        if user in self.counts_since:
            self._hold(user, held)
            flows = {**flows, **{flow_id: known[flow_id] for flow_id in held}}
            self._note(user, flows, answer, self.latest[user])
        else:
            self._come(user, answer)
            self._note(user, flows, answer, None)
        self.latest[user] = answer
        self.known[user] = flows
        self._heard.add(user)

    def retire(self, user: str, at: Any) -> None:
        if self.counts_since.pop(user, None) is not None:
            self.retired[user] = at

    def step(self, decided_at: Any) -> list[Judgement]:
        """The end of a run."""
        self.audience = self._audience(decided_at)
        flow_ids = sorted(self._pending.keys() | self.open)
        judgements = [self._judge(self.audience, self._workflow(flow_id)) for flow_id in flow_ids]
        for judgement in judgements:
            self._keep(judgement)
        self._pending.clear()
        self._heard.clear()
        return judgements

    def _come(self, user: str, answer: Answer) -> None:
        if user in self.retired:
            self.ended_stays.append(self.retired.pop(user))
        self._hold(user, set())
        self.counts_since[user] = answer.arrived_at

    def _hold(self, user: str, held: Set[str]) -> None:
        for flow_id in self.known.get(user, {}):
            if flow_id not in held:
                self.held.pop((user, flow_id), None)
            else:
                self.held.setdefault((user, flow_id), self.latest[user])

    def _note(self, user: str, flows: Flows, answer: Answer, previous: Answer | None) -> None:
        known = self.known.get(user, {})
        for flow_id in known.keys() | flows.keys():
            before, after = known.get(flow_id), flows.get(flow_id)
            last = self._last_listed.pop((user, flow_id), previous)
            if previous is None:
                self._pending[flow_id].append(Sighting(user, before, after, None, answer))
            elif before != after:
                self._pending[flow_id].append(Sighting(user, before, after, last if before else previous, answer))
            if after is not None:
                self._last_listed[user, flow_id] = last if (user, flow_id) in self.held else answer

    def _audience(self, decided_at: Any) -> Audience:
        users = {
            user: User(self.latest[user], self.gaps[user], user in self._heard, self.retired.get(user))
            for user in [*self.counts_since, *self.retired]
        }
        return Audience(users, decided_at, self.ended_stays, is_search=self._is_search)

    def _workflow(self, flow_id: str) -> Workflow:
        return Workflow(
            flow_id,
            self.stories.get(flow_id),
            self.showing[flow_id],
            self.waiting[flow_id],
            self._pending.get(flow_id, ()),
            {user: answer for (user, held), answer in self.held.items() if held == flow_id},
        )

    def _keep(self, judgement: Judgement) -> None:
        flow_id = judgement.flow_id
        self.showing[flow_id] = judgement.showing
        self.waiting[flow_id] = judgement.waiting
        if judgement.story is not None:
            self.stories[flow_id] = judgement.story
        (self.open.add if judgement.is_open else self.open.discard)(flow_id)
