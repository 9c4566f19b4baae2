"""A world with a known history. Workflows, rights and names change at any moment, even while answers are in flight;
runs see them only through the users' lists. It shares no code with the judgement."""

from __future__ import annotations

import bisect
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

Moment = int
"""Microseconds; the judgement only compares and adds them."""
SECOND = 1_000_000
HOUR = 3600 * SECOND
START = 1_000 * HOUR


class Seen(NamedTuple):
    """How a list shows a workflow."""

    name: str
    cycle: str
    editable: bool


@dataclass(slots=True)
class Workflow:
    """A workflow and its whole history; ``access``: when it entered and left each user's list."""

    name: str
    cycle: str
    users: dict[str, bool] = field(default_factory=dict)
    """The users who may see it, and whether they may edit it."""
    is_alive: bool = True
    turns: set[Moment] = field(default_factory=set)
    """When it came or went for everybody at once."""
    names: list[tuple[Moment, str]] = field(default_factory=list)
    cycles: list[tuple[Moment, str]] = field(default_factory=list)
    access: dict[str, list[tuple[Moment, bool]]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True)
class Schedule:
    """Which users are asked and how often, and how long a run and an answer take."""

    users: tuple[str, ...]
    every: Moment
    takes: Moment
    answer_takes: Moment
    coverage_gap: Moment
    in_order: bool = False


@dataclass(frozen=True)
class Setting:
    """The parameters of a world. Shares are of requests, rates per hour."""

    users: int = 12
    workflows: int = 30
    schedules: Callable[[list[str]], list[Schedule]] = lambda users: one_schedule(users)
    failing: float = 0.04
    held: float = 0.0
    skipped: float = 0.0
    """The share of runs that end without a step; the next step makes up for it."""
    changes_an_hour: float = 3.0
    moves_an_hour: float = 0.0
    """Users who join, retire, or come back."""
    most_changed: float = 0.0
    """The share of grants and revocations that are reversed as soon as the assumption allows it."""
    outages_an_hour: float = 0.0
    """How often a user is unreachable for some hours."""
    audience: float = 0.5
    """The largest share of users who see a new workflow; a few workflows are seen by all."""


def one_schedule(users: list[str]) -> list[Schedule]:
    return [Schedule(tuple(users), HOUR, 60 * SECOND, 5 * SECOND, 36 * HOUR)]


class Reply(NamedTuple):
    """A user's answer: when it was requested, read and received, and the list."""

    user: str
    asked_at: Moment
    read_at: Moment
    arrived_at: Moment
    flows: dict[str, Seen]


class World:
    """The true state, and how it changes.

    It keeps the one assumption: between two answers of a user, a workflow enters or leaves their list at most once.
    """

    def __init__(self, setting: Setting, seed: int) -> None:
        self.chance = random.Random(seed)
        self.setting = setting
        self.workflows: dict[str, Workflow] = {}
        self.alive: list[str] = []
        self.lists: dict[str, dict[str, Seen]] = defaultdict(dict)
        self.changed_at: dict[tuple[str, str], Moment] = {}
        self.read_at: dict[str, Moment] = {}
        """By user, when their latest accepted answer was read."""
        self.blocked: set[tuple[str, str]] = set()
        """(user, workflow) whose removal is held."""
        self.watched: set[str] = set()
        self.reversible: tuple[str, str] | None = None
        """The (workflow, user) whose access changed last."""
        self._number = 0

    def change(self, now: Moment, users: list[str]) -> None:
        """Make one change, if the assumption allows it."""
        few = len(self.alive) < self.setting.workflows * 0.7
        weights = (5 if few else 2, 2, 4, 4, 3, 3)
        actions = (self.create, self.delete, self.grant, self.revoke, self.rename, self.recycle)
        self.chance.choices(actions, weights)[0](now, users)

    def create(self, now: Moment, users: list[str]) -> None:
        self._number += 1
        flow_id = str(self._number)
        workflow = Workflow(f"name {self._number}", self.chance.choice("MWDH"), turns={now})
        workflow.names.append((now, workflow.name))
        workflow.cycles.append((now, workflow.cycle))
        self.workflows[flow_id] = workflow
        self.alive.append(flow_id)
        share = 1.0 if self.chance.random() < 0.15 else self.chance.random() * self.setting.audience
        for user in self.chance.sample(users, max(1, round(share * len(users)))):
            self._give(now, flow_id, user)

    def delete(self, now: Moment, users: list[str]) -> None:
        flow_id = self._any(now, users)
        workflow = self.workflows[flow_id]
        if all(self._may(flow_id, user) for user in workflow.users):
            for user in list(workflow.users):
                self._take(now, flow_id, user)
            workflow.turns.add(now)
            workflow.is_alive = False
            self.alive.remove(flow_id)

    def grant(self, now: Moment, users: list[str]) -> None:
        flow_id = self._any(now, users)
        without = [user for user in users if user not in self.workflows[flow_id].users]
        if without and self._may(flow_id, user := self.chance.choice(without)):
            self._give(now, flow_id, user)
            self.reversible = flow_id, user

    def revoke(self, now: Moment, users: list[str]) -> None:
        flow_id = self._any(now, users)
        having = sorted(self.workflows[flow_id].users)
        if having and self._may(flow_id, user := self.chance.choice(having)):
            self._take(now, flow_id, user)
            self.reversible = flow_id, user

    def rename(self, now: Moment, users: list[str]) -> None:
        workflow = self.workflows[flow_id := self._any(now, users)]
        name = self.chance.choice([f"name {flow_id}", f"{flow_id} b", f"{flow_id} c"])
        workflow.name = name
        workflow.names.append((now, name))
        self._show(flow_id)
        if self.chance.random() < 0.3:
            self.recycle(now, users, flow_id)

    def recycle(self, now: Moment, users: list[str], flow_id: str | None = None) -> None:
        flow_id = flow_id or self._any(now, users)
        workflow = self.workflows[flow_id]
        workflow.cycle = self.chance.choice("MWDH")
        workflow.cycles.append((now, workflow.cycle))
        self._show(flow_id)

    def reverse(self, now: Moment, flow_id: str, user: str) -> bool:
        """Undo the last grant or revocation; False if it is too early."""
        workflow = self.workflows[flow_id]
        if workflow.is_alive and self._may(flow_id, user):
            (self._take if user in workflow.users else self._give)(now, flow_id, user)
            return True
        return not workflow.is_alive

    def answered(self, reply: Reply) -> None:
        """An answer was accepted: what changed before it was read may change again."""
        self.read_at[reply.user] = reply.read_at

    def had(self, flow_id: str, user: str, at: Moment) -> bool:
        """Whether the user could see it at that moment."""
        history = self.workflows[flow_id].access.get(user, [])
        index = bisect.bisect_right(history, at, key=lambda entry: entry[0]) - 1
        return index >= 0 and history[index][1]

    def values(self, flow_id: str, attribute: str, after: Moment, until: Moment) -> list[str]:
        """The names (or cycles) that it had between two moments, in order."""
        history = getattr(self.workflows[flow_id], attribute)
        index = bisect.bisect_right(history, after, key=lambda entry: entry[0]) - 1
        return [value for at, value in history[max(index, 0) :] if at <= until]

    def _any(self, now: Moment, users: list[str]) -> str:
        if not self.alive:
            self.create(now, users)
        return self.chance.choice(self.alive)

    def _may(self, flow_id: str, user: str) -> bool:
        if user not in self.watched:
            return True
        if (user, flow_id) in self.blocked:
            return False
        changed_at = self.changed_at.get((user, flow_id), 0)
        return changed_at <= self.read_at.get(user, 0)

    def _give(self, now: Moment, flow_id: str, user: str) -> None:
        workflow = self.workflows[flow_id]
        workflow.users[user] = self.chance.random() < 0.5
        self._list(now, flow_id, user)
        self.lists[user][flow_id] = Seen(workflow.name, workflow.cycle, workflow.users[user])

    def _take(self, now: Moment, flow_id: str, user: str) -> None:
        workflow = self.workflows[flow_id]
        del workflow.users[user]
        self._list(now, flow_id, user)
        del self.lists[user][flow_id]

    def _list(self, now: Moment, flow_id: str, user: str) -> None:
        """Record that it enters or leaves the user's list."""
        history = self.workflows[flow_id].access[user]
        history.append((now, not history or not history[-1][1]))
        self.changed_at[user, flow_id] = now

    def _show(self, flow_id: str) -> None:
        workflow = self.workflows[flow_id]
        for user, editable in workflow.users.items():
            self.lists[user][flow_id] = Seen(workflow.name, workflow.cycle, editable)
