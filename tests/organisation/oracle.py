"""Compares the derived events with the true history of the simulated organisation."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from etl.domain.organisation.values import Event, Judgement
from tests.organisation.runs import Simulation
from tests.organisation.world import Moment, Reply


@dataclass
class Oracle:
    """Checks and counts each event as it is reported."""

    simulation: Simulation
    narrow: bool = False
    """Whether intervals must be the narrowest possible. They are where requests do not overlap, unless something
    happens to a workflow twice within a run."""
    counts: Counter[tuple[str, bool]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    there: dict[str, bool] = field(default_factory=dict)
    """By workflow, whether the events so far say that somebody sees it."""

    def check(self, judgements: Iterable[Judgement]) -> None:
        for judgement in judgements:
            baselines = list(judgement.baselines)
            kinds = Counter(event.kind for event in judgement.events)
            for event in judgement.events:
                while baselines and baselines[0].valid_from < event.observed_at:
                    del baselines[0]
                    self.there[judgement.flow_id] = True
                self._check(event, narrow=self.narrow and event.proven_for_all and kinds[event.kind] == 1)
            if baselines:
                self.there[judgement.flow_id] = True

    def _check(self, event: Event, *, narrow: bool) -> None:
        self.counts[event.kind, event.proven_for_all] += 1
        fault = self._order(event) or self._fault(event) or (self._width(event) if narrow else None)
        if fault:
            self.wrong.append(f"{fault}: {event}")

    def _order(self, event: Event) -> str | None:
        if event.last_unchanged_at >= event.observed_at or event.observed_at > self.simulation.now:
            return "an interval that ends before it begins, or in the future"
        there = self.there.get(event.flow_id, False)
        if event.kind == "disappeared":
            self.there[event.flow_id] = False
            return None if there else "disappeared twice"
        if event.kind in ("appeared", "reappeared"):
            self.there[event.flow_id] = True
            may_have_retired = any(self.simulation.stays.values())
            if there and (event.kind == "appeared" or not may_have_retired):
                return "appeared twice"
            return None
        return None if there else "a workflow that was not reported as present"

    def _fault(self, event: Event) -> str | None:
        match event.kind:
            case "access_granted" | "access_lost":
                return self._access_fault(event)
            case "renamed":
                return self._value_fault(event, "names", event.old.name, event.new.name)
            case "cycle_changed":
                return self._value_fault(event, "cycles", event.old.cycle, event.new.cycle)
            case "disappeared":
                return self._presence_fault(event, first=True) if event.proven_for_all else None
            case _:
                return self._presence_fault(event, first=False) if event.proven_for_all else None

    def _access_fault(self, event: Event) -> str | None:
        """The user's access changed that way in the interval; if certain, not everybody's at the same moment."""
        workflow = self.simulation.world.workflows[event.flow_id]
        gives = event.kind == "access_granted"
        changes = [
            at
            for at, has in workflow.access[event.user_id]
            if has is gives and event.last_unchanged_at <= at <= event.observed_at
        ]
        if not changes:
            return "no such change of access"
        if event.proven_for_all and workflow.turns.issuperset(changes):
            return "it came or went for everybody"
        return None

    def _value_fault(self, event: Event, attribute: str, old: str, new: str) -> str | None:
        values = self.simulation.world.values(event.flow_id, attribute, event.last_unchanged_at, event.observed_at)
        if old in values and new in values[values.index(old) :]:
            return None
        return f"it went through {values}"

    def _presence_fault(self, event: Event, *, first: bool) -> str | None:
        """``first``: some user who counts saw it, then nobody did; otherwise the reverse."""
        moments = sorted({event.last_unchanged_at, event.observed_at, *self._turns(event)})
        seen = [any(self._sees(user, event, at) for user in self.simulation.everybody) for at in moments]
        if first in seen and (not first) in seen[seen.index(first) :]:
            return None
        return f"seen by somebody: {seen}"

    def _turns(self, event: Event) -> list[Moment]:
        """When, in the interval, any user's access changed, or a user began or ceased to count."""
        workflow = self.simulation.world.workflows[event.flow_id]
        turns = [at for history in workflow.access.values() for at, _ in history]
        turns += [at for stays in self.simulation.stays.values() for stay in stays for at in stay]
        turns += self.simulation.counts_since.values()
        return [at for at in turns if event.last_unchanged_at < at < event.observed_at]

    def _sees(self, user: str, event: Event, at: Moment) -> bool:
        """Whether the user counted, was not silent, and could see it at that moment."""
        if not self.simulation.world.had(event.flow_id, user, at):
            return False
        stays = list(self.simulation.stays[user])
        if user in self.simulation.counts_since:
            stays.append((self.simulation.counts_since[user], self.simulation.now + 1))
        if not any(since <= at < until for since, until in stays):
            return False
        if user in self.simulation.state.context.active:
            return True
        latest = self.simulation.state.latest[user]
        return latest.arrived_at + self.simulation.state.gaps[user] >= event.last_unchanged_at

    # How narrow the intervals are, given all answers

    def _width(self, event: Event) -> str | None:
        narrowest = self._narrowest(event)
        if (event.last_unchanged_at, event.observed_at) == narrowest or self._went_back(event):
            return None
        return f"the narrowest interval is {narrowest}"

    def _went_back(self, event: Event) -> bool:
        """Whether the old name or cycle has returned since: of answers that are alike, the latest alone is kept."""
        if event.kind not in ("renamed", "cycle_changed"):
            return False
        attribute, old = ("names", event.old.name) if event.kind == "renamed" else ("cycles", event.old.cycle)
        values = self.simulation.world.values(event.flow_id, attribute, event.last_unchanged_at, self.simulation.now)
        return old in values[values.index(old) + 1 :]

    def _narrowest(self, event: Event) -> tuple[Moment, Moment]:
        shows = partial(_shows, event.flow_id)
        match event.kind:
            case "access_granted":
                return self._turn(event.user_id, event, lambda reply: not shows(reply))
            case "access_lost":
                return self._turn(event.user_id, event, shows)
            case "appeared" | "reappeared":
                latest = [self._latest_without(user, event) for user in self.simulation.replies]
                first = min(r.arrived_at for r in self._all() if shows(r) and r.arrived_at > min(latest))
                return min(latest), first
            case "disappeared":
                latest = max(r.asked_at for r in self._all() if shows(r) and r.asked_at < event.observed_at)
                lost = [self._first_without(user, event) for user in self.simulation.replies]
                return latest, max(at for at in lost if at is not None)
            case _:
                return self._value_turn(event, 0 if event.kind == "renamed" else 1)

    def _all(self) -> Iterator[Reply]:
        return itertools.chain(*self.simulation.replies.values())

    def _turn(self, user: str, event: Event, before: Callable[[Reply], bool]) -> tuple[Moment, Moment]:
        replies = [reply for reply in self.simulation.replies[user] if reply.arrived_at <= event.observed_at]
        return max(reply.asked_at for reply in replies if before(reply)), replies[-1].arrived_at

    def _latest_without(self, user: str, event: Event) -> Moment:
        """When a user's latest answer without it was requested."""
        return max(r.asked_at for r in self.simulation.replies[user] if not _shows(event.flow_id, r))

    def _first_without(self, user: str, event: Event) -> Moment | None:
        """When a user's first answer without it arrived, after the last one with it so far."""
        replies = [reply for reply in self.simulation.replies[user] if reply.asked_at < event.observed_at]
        last = max((number for number, reply in enumerate(replies) if _shows(event.flow_id, reply)), default=None)
        return None if last is None or last + 1 == len(replies) else replies[last + 1].arrived_at

    def _value_turn(self, event: Event, field: int) -> tuple[Moment, Moment]:
        """From the latest request that showed the old value, before the first answer with the new one was requested."""
        old, new = event.old[field], event.new[field]
        values = [
            (r.asked_at, r.arrived_at, r.flows[event.flow_id][field]) for r in self._all() if _shows(event.flow_id, r)
        ]
        first = max(arrived for _, arrived, value in values if value == new and arrived <= event.observed_at)
        asked = next(asked for asked, arrived, _ in values if arrived == first)
        return max(a for a, arrived, value in values if value == old and arrived <= asked), first


def _shows(flow_id: str, reply: Reply) -> bool:
    return flow_id in reply.flows


def settle(simulation: Simulation, oracle: Oracle) -> list[str]:
    """What is still wrong once all users have been asked often enough and nothing changes any more."""
    simulation.quieten()
    longest = max(schedule.every + schedule.takes + schedule.answer_takes for schedule in simulation.schedules)
    for judgements in simulation.run(simulation.now + 4 * longest):
        oracle.check(judgements)
    return [*_left_over(simulation), *_untrue(simulation, oracle)]


def _left_over(simulation: Simulation) -> list[str]:
    if not simulation.state.counts_since:
        return []  # no user is left to hear from
    return [f"{flow_id} still waits: {waiting}" for flow_id, waiting in simulation.state.waiting.items() if waiting] + [
        f"{flow_id} is still open" for flow_id in simulation.state.open
    ]


def _untrue(simulation: Simulation, oracle: Oracle) -> list[str]:
    faults = []
    for flow_id, workflow in simulation.world.workflows.items():
        seen_by = {user for user in simulation.state.counts_since if flow_id in simulation.world.lists[user]}
        known = simulation.state.known_workflows.get(flow_id)
        if seen_by and (known is None or known.gone_at is not None):
            faults.append(f"{flow_id} is seen by {seen_by} but reported as gone")
        if not seen_by and oracle.there.get(flow_id) and not any(simulation.stays.values()):
            faults.append(f"{flow_id} is seen by nobody but reported as present")
        if seen_by and known and (known.name.value, known.cycle.value) != (workflow.name, workflow.cycle):
            faults.append(f"{flow_id} is {workflow.name} {workflow.cycle}, but reported as {known.listed}")
    return faults
