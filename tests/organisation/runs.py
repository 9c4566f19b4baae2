"""Runs over the simulated organisation. They ask, fail, hold and commit as real ones do, and each ends with a step of
the judgement."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from etl.domain.organisation.rules import judge
from etl.domain.organisation.values import Answer, Judgement
from tests.organisation.state import Judge, KnownState, Twin
from tests.organisation.world import HOUR, START, Moment, Reply, Schedule, Setting, World


class Simulation:
    """One organisation, its schedules, and the events that are derived for it."""

    def __init__(self, setting: Setting, seed: int, judge: Judge = judge) -> None:
        self.world = World(setting, seed)
        self.chance = self.world.chance
        self.setting = setting
        self.everybody = [f"u{number}" for number in range(setting.users)]
        self.schedules = setting.schedules(self.everybody)
        self.state: KnownState = Twin(
            {user: max(s.coverage_gap for s in self.schedules if user in s.users) for user in self.everybody}, judge
        )
        self.world.watched = set(self.everybody)
        self.counts_since: dict[str, Moment] = {}
        """By user who counts, when their first answer was read."""
        self.stays: dict[str, list[tuple[Moment, Moment]]] = defaultdict(list)
        """By user, the past periods in which they counted."""
        self.away_until: dict[str, Moment] = {}
        self.replies: dict[str, list[Reply]] = defaultdict(list)
        """The answers that were accepted, including what was held."""
        self._calendar: list[tuple[Moment, int, str, Any]] = []
        """A heap of what will happen, by its time."""
        self._numbers = itertools.count()
        self.now = START
        self.is_quiet = False
        """Whether nothing changes or fails any more."""
        for _ in range(setting.workflows):
            self.world.create(START, self.everybody)
        for schedule in self.schedules:
            self._at(START + self.chance.randrange(schedule.every), "run", schedule)
        self._plan(setting.changes_an_hour, "change")
        self._plan(setting.moves_an_hour, "move")
        self._plan(setting.outages_an_hour, "outage")

    def run(self, end: Moment) -> Iterator[list[Judgement]]:
        """Let time pass until ``end``; yield the judgements of each step."""
        while self._calendar and self._calendar[0][0] <= end:
            self.now, _, what, of = heapq.heappop(self._calendar)
            if what != "end":
                getattr(self, f"_{what}")(of)
            elif self.is_quiet or self.chance.random() >= self.setting.skipped:
                judgements = self.state.step(self.now, of)
                self._know_who_counts()
                yield judgements

    def quieten(self) -> None:
        self.is_quiet = True
        self.away_until.clear()

    def _at(self, moment: Moment, what: str, of: Any = None) -> None:
        heapq.heappush(self._calendar, (moment, next(self._numbers), what, of))

    # What happens in the world

    def _plan(self, an_hour: float, what: str) -> None:
        if an_hour:
            self._at(self.now + 1 + round(self.chance.expovariate(an_hour) * HOUR), what)

    def _change(self, _: object) -> None:
        if not self.is_quiet:
            self.world.reversible = None
            self.world.change(self.now, self.everybody)
            if self.world.reversible and self.chance.random() < self.setting.most_changed:
                self._reverse((*self.world.reversible, 100))
            self._plan(self.setting.changes_an_hour, "change")

    def _reverse(self, of: tuple[str, str, int]) -> None:
        flow_id, user, tries = of
        if tries and not self.is_quiet and not self.world.reverse(self.now, flow_id, user):
            soon = self.now + self.chance.randrange(1, self.schedules[0].takes // 20)
            self._at(soon, "reverse", (flow_id, user, tries - 1))

    def _outage(self, _: object) -> None:
        if not self.is_quiet:
            user = self.chance.choice(self.everybody)
            self.away_until[user] = self.now + round(self.chance.uniform(1, 60) * HOUR)
            self._plan(self.setting.outages_an_hour, "outage")

    def _move(self, _: object) -> None:
        """A user retires, joins or comes back."""
        if self.is_quiet:
            return
        user = self.chance.choice(self.everybody)
        if user in self.world.watched:
            self._retire(user)
        else:
            self.world.watched.add(user)
        self._plan(self.setting.moves_an_hour, "move")

    def _retire(self, user: str) -> None:
        self.world.watched.discard(user)
        self.world.blocked = {key for key in self.world.blocked if key[0] != user}
        if user in self.counts_since:
            self.stays[user].append((self.counts_since.pop(user), self.now))
        self.state.retire(user, self.now)

    # What runs do

    def _run(self, schedule: Schedule) -> None:
        ends_at = self.now + schedule.takes + schedule.answer_takes + 1
        users = list(schedule.users)
        if not schedule.in_order:
            self.chance.shuffle(users)
        for number, user in enumerate(users):
            asked_at = self.now + schedule.takes * number // len(users)
            arrived_at = asked_at + self.chance.randrange(2, schedule.answer_takes)
            self._at(self.chance.randrange(asked_at, arrived_at), "read", (ends_at, user, asked_at, arrived_at))
        self._at(ends_at, "end", self.now)
        self._at(self.now + schedule.every, "run", schedule)

    def _read(self, of: tuple[Moment, str, Moment, Moment]) -> None:
        ends_at, user, asked_at, arrived_at = of
        if user not in self.world.watched or self._fails(user):
            return
        reply = Reply(user, asked_at, self.now, arrived_at, dict(self.world.lists[user]))
        commit_at = self.chance.choice([arrived_at, (arrived_at + ends_at) // 2, ends_at - 1])
        self._at(max(commit_at, arrived_at), "commit", reply)

    def _fails(self, user: str) -> bool:
        if self.is_quiet:
            return False
        return self.now < self.away_until.get(user, 0) or self.chance.random() < self.setting.failing

    def _commit(self, reply: Reply) -> None:
        user, answer = reply.user, Answer(reply.asked_at, reply.arrived_at)
        latest = self.state.latest.get(user)
        is_stale = latest is not None and latest.arrived_at > reply.asked_at
        if is_stale or user not in self.world.watched or self.state.retired.get(user, 0) > reply.asked_at:
            return
        held = self._held(user, reply)
        self.state.answered(user, reply.flows, answer, held)
        self.world.blocked = {key for key in self.world.blocked if key[0] != user} | {(user, each) for each in held}
        self.world.answered(reply)
        self.replies[user].append(reply._replace(flows=self.state.known[user]))
        self._know_who_counts()

    def _know_who_counts(self) -> None:
        """Note since when each user counts: the moment when that answer was read."""
        for user, arrived_at in self.state.counts_since.items():
            if user not in self.counts_since:
                self.counts_since[user] = next(r.read_at for r in self.replies[user] if r.arrived_at == arrived_at)

    def _held(self, user: str, reply: Reply) -> set[str]:
        """The removals to hold; what is held already stays held, unless it is approved."""
        if user not in self.state.counts_since or self.is_quiet:
            return set()
        absent = self.state.known[user].keys() - reply.flows.keys()
        already = {flow_id for flow_id in absent if (user, flow_id) in self.state.held}
        if absent - already and self.chance.random() < self.setting.held:
            return absent
        return already if self.chance.random() < 0.7 else set()
