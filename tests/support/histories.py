"""Random histories, written as runs write them, and an oracle that knows each result without reading a table."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Engine

from etl.domain import guard, verdict
from etl.domain.approvals import Approval
from etl.domain.chain import state_digest
from etl.domain.diff import Difference, compare
from etl.domain.guard import Decision, Limits
from etl.domain.model import CYCLE_LABELS, Fence, Flow, Outcome, Snapshot, State, Target
from etl.errors import Refused
from etl.report.rows import ListWorkflow, ListWorkflowAsOf, TargetAsOf
from etl.store import NewRun, RunBegun, Store
from tests.support.builders import UNCHECKED

START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
TICK = dt.timedelta(microseconds=1)
COVERAGE_GAP = dt.timedelta(hours=2)
LIMITS = Limits(min_removed=3, max_removed_share=0.4, max_emptied_targets=99, max_emptied_share=1.0)


# ------------------------------------------------------------------------------------------------------ oracle


class Entry(NamedTuple):
    """An attempt: accepted ('seen'), held ('held') or without a valid answer ('failed')."""

    what: str
    at: dt.datetime
    version: int
    flows: dict[str, tuple[Flow, dt.datetime, dt.datetime]]


class Oracle:
    """The log of one target's attempts; all results are derived from it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.log: list[Entry] = []
        self.away: list[tuple[dt.datetime, dt.datetime | None]] = []
        """When it was retired, and when it came back (None: not yet)."""
        self.missing: dict[str, dt.datetime] = {}

    @property
    def is_away(self) -> bool:
        return bool(self.away) and self.away[-1][1] is None

    def retired(self, at: dt.datetime) -> None:
        self.away.append((at, None))

    def resumed(self, at: dt.datetime) -> None:
        if self.is_away:
            self.away[-1] = (self.away[-1][0], at)

    def failed(self) -> None:
        latest = self.log[-1] if self.log else Entry("failed", START, 0, {})
        self.log.append(latest._replace(what="failed"))

    def answered(self, at: dt.datetime, flows: dict[str, Flow], held: frozenset[str]) -> None:
        version, known = next(((e.version, e.flows) for e in reversed(self.log)), (0, {}))
        listed = {}
        for flow_id, flow in flows.items():
            before = known.get(flow_id)
            changed_at = before[2] if before and before[0] == flow else at
            listed[flow_id] = (flow, before[1] if before else at, changed_at)
        changed = version == 0 or {k: v[0] for k, v in known.items()} != flows
        self.missing = {flow_id: self.missing.get(flow_id, at) for flow_id in held}
        self.log.append(Entry("held" if held else "seen", at, version + changed, listed))

    def recorded(self) -> list[dt.datetime]:
        """The observations whose time is stored: those at the ends of a span, and those that made a version."""
        kept = []
        for number, entry in enumerate(self.log):
            if entry.what == "failed":
                continue
            brought = entry.version > (self.log[number - 1].version if number else 0)
            inside = self._goes_on(number - 1, number) and self._goes_on(number, number + 1)
            if brought or (entry.what == "seen" and not inside):
                kept.append(entry.at)
        return kept

    def _goes_on(self, first: int, second: int) -> bool:
        """Whether two consecutive attempts lie in one span."""
        if first < 0 or second >= len(self.log):
            return False
        one, other = self.log[first], self.log[second]
        both_seen = one.what == other.what == "seen"
        return both_seen and one.version == other.version and other.at - one.at <= COVERAGE_GAP

    def at(self, moment: dt.datetime) -> tuple[TargetAsOf, list[ListWorkflowAsOf]] | None:
        answers = [entry for entry in self.log if entry.what != "failed" and entry.at <= moment]
        if not self.log or any(left <= moment and (back is None or moment < back) for left, back in self.away):
            return None
        recorded = self.recorded()
        if not answers:
            return TargetAsOf(*self.target, "unobserved", None, min(recorded, default=None), None), []
        before = max(at for at in recorded if at <= moment)
        after = min((at for at in recorded if at > moment), default=None)
        coverage = self._coverage(moment)
        row = TargetAsOf(*self.target, coverage, before, after, len(answers[-1].flows))
        return row, [
            ListWorkflowAsOf._make(
                (*self._described(flow_id, flow), first_listed_at, changed_at, before, None, coverage, before, after)
            )
            for flow_id, (flow, first_listed_at, changed_at) in sorted(answers[-1].flows.items())
        ]

    def now(self) -> list[ListWorkflow]:
        if not self.log or self.is_away:
            return []
        latest = max((entry.at for entry in self.log if entry.what == "seen"), default=None)
        return [
            ListWorkflow._make(
                (*self._described(flow_id, flow), first_listed_at, changed_at, latest, self.missing.get(flow_id))
            )
            for flow_id, (flow, first_listed_at, changed_at) in sorted(self.log[-1].flows.items())
        ]

    def _described(self, flow_id: str, flow: Flow) -> tuple[Any, ...]:
        """The descriptive columns of a workflow, without its times."""
        label = CYCLE_LABELS.get(flow.cycle or "", flow.cycle)
        return (*self.target, flow_id, flow.flow_name, flow.cycle, label, flow.editable)

    def _coverage(self, moment: dt.datetime) -> str:
        seen = [number for number, entry in enumerate(self.log) if entry.what == "seen"]
        before = max(number for number in seen if self.log[number].at <= moment)
        after = min((number for number in seen if self.log[number].at > moment), default=None)
        if self.log[before].at == moment:
            return "observed"
        if after is None:
            return "unobserved"
        same = self.log[before].version == self.log[after].version
        whole = after == before + 1 and self.log[after].at - self.log[before].at <= COVERAGE_GAP
        if whole:
            return "observed" if same else "between"
        return "unchanged_across_gap" if same else "unobserved"


# --------------------------------------------------------------------------------------------------- histories


class World:
    """Targets with random answers, written as a run would write them and given to their oracles."""

    def __init__(self, engine: Engine, seed: int, targets: int = 10) -> None:
        self.random = random.Random(seed)
        self.engine = engine
        self.store = Store(engine)
        run = NewRun(origin="command", host="here", pid=1, targets=targets)
        self.run_id = self.store.begin_run(run, START) or 0
        names = [Target(f"o{n % 3}", f"u{n // 3}", "pump" if n % 4 == 3 else "") for n in range(targets)]
        self.oracles = {target: Oracle(target) for target in names}
        self.truth: dict[Target, dict[str, Flow]] = {target: {} for target in names}
        self.now = START

    def live(self, rounds: int) -> None:
        for number in range(rounds):
            silence = self.random.choice((5, 5, 5, 10, 90, 120, 121, 400))
            self.now += dt.timedelta(minutes=silence, microseconds=self.random.randrange(3))
            asked = [t for t in self.oracles if self.random.random() < (0.9 if number else 0.6)]
            self._run(asked)
            if self.random.random() < 0.08:
                self._retire()
        self._retire()

    def _run(self, targets: list[Target]) -> None:
        fences = self.store.fences(targets, run=RunBegun(self.run_id, self.now))
        states = self.store.states([fence.target_id for fence in fences])
        outcomes = []
        for fence in fences:
            self.oracles[fence.target].resumed(self.now)
            outcomes.append(self._attempt(fence, states.get(fence.target_id, State({}))))
        assert self.store.apply(self.run_id, outcomes, UNCHECKED) == set()

    def _attempt(self, fence: Fence, state: State) -> Outcome:
        oracle = self.oracles[fence.target]
        if self.random.random() < 0.12:
            oracle.failed()
            return verdict.failed(fence, Refused("no", code="62109"))
        snapshot = self._snapshot(fence.target)
        answer = {flow.flow_id: flow for flow in snapshot.flows or ()}
        if fence.version and not fence.held and snapshot.data_hash == fence.answer_digest:  # a run would not judge it
            outcome = verdict.unchanged(fence, snapshot, COVERAGE_GAP)
        else:
            decision, approval = self._decide(fence, state, compare(state.flows, answer))
            outcome = verdict.decided(fence, state, snapshot, decision, COVERAGE_GAP, approval)
            kept = {flow_id: state.flows[flow_id] for flow_id in decision.held}
            answer = dict(state.flows) if decision.whole else {**answer, **kept}
        assert outcome.observed_at is not None
        oracle.answered(outcome.observed_at, answer, frozenset(outcome.missing))
        return outcome

    def _decide(self, fence: Fence, state: State, difference: Difference) -> tuple[Decision, Approval | None]:
        if fence.version == 0:
            return Decision(), None
        if fence.held and self.random.random() < 0.3:
            return guard.approve(difference, state, LIMITS), Approval("auditor", None)
        return guard.weigh(difference, state.missing, LIMITS), None

    def _snapshot(self, target: Target) -> Snapshot:
        self._change(target)
        flows = tuple(sorted(self.truth[target].values(), key=lambda flow: flow.flow_id))
        asked_at = self.now + dt.timedelta(seconds=self.random.randrange(20))
        if self.random.random() < 0.03:
            asked_at -= dt.timedelta(hours=3)  # the clock went back
        observed_at = asked_at + dt.timedelta(microseconds=self.random.choice((0, 1, 250_000)))
        digest = state_digest(flows)
        return Snapshot(target, flows, digest, asked_at, observed_at, 1, msgspec.json.encode(flows), sole_answer=True)

    def _change(self, target: Target) -> None:
        flows, dice = self.truth[target], self.random.random()
        if dice < 0.5:
            return
        if dice < 0.6:
            self.truth[target] = dict(self.random.sample(sorted(flows.items()), k=len(flows) // 2))  # a partial list
            return
        if dice < 0.63:
            self.truth[target] = {}
            return
        if dice < 0.66:
            self.truth[target] = {f"x{n}": Flow(f"x{n}", "other", "M", None) for n in range(8)}
            return
        for _ in range(self.random.choice((1, 1, 2, 6))):
            flow_id = str(self.random.randrange(14))
            if flow_id in flows and self.random.random() < 0.3:
                del flows[flow_id]
            else:
                names = (None, "", "map", "reduce_entity", "描述", "=1+1")
                cycle = self.random.choice((*CYCLE_LABELS, None, "Q"))
                editable = self.random.choice((True, False, None))
                flows[flow_id] = Flow(flow_id, self.random.choice(names), cycle, editable)

    def _retire(self) -> None:
        keep = set(self.random.sample(sorted(self.oracles), k=len(self.oracles) - 2))
        self.now += dt.timedelta(minutes=1)
        for target in self.store.retire_others(keep, self.now, None).retired:
            self.oracles[target].retired(self.now)

    def moments(self, count: int) -> Iterator[dt.datetime]:
        """Random times, and times at, just before and just after an event."""
        oracles = self.oracles.values()
        events = [entry.at for oracle in oracles for entry in oracle.log]
        events += [at for oracle in oracles for both in oracle.away for at in both if at is not None]
        yield from (START - TICK, self.now + dt.timedelta(hours=1), self.now + dt.timedelta(days=3000))
        for _ in range(count):
            yield self.random.choice(events) + self.random.choice((-TICK, 0 * TICK, 0 * TICK, TICK))
            yield START + (self.now - START) * self.random.random()
