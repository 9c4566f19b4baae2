"""A delivery log that also writes its answers into a database and has its steps judged there."""

from __future__ import annotations

import datetime as dt
from collections.abc import Set
from typing import Any

import msgspec
from sqlalchemy import Engine, update

from etl.database import reading, writing
from etl.domain import verdict
from etl.domain.guard import Decision
from etl.domain.model import Flow, Target
from etl.domain.organisation.values import Answer, Judgement, Listed
from etl.schema import target
from etl.store import NewRun, Store
from etl.store.story import Step, StoryStep, read_steps
from tests.organisation.runs import Simulation
from tests.organisation.state import KnownState
from tests.organisation.world import HOUR, START, Setting
from tests.support.builders import UNCHECKED, set_coverage_gap, snapshot

EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MICROSECOND = dt.timedelta(microseconds=1)
RUN = NewRun(origin="command", host="here", pid=1, targets=1)


def moment(at: int) -> dt.datetime:
    return EPOCH + at * MICROSECOND


class Mirror(KnownState):
    """Writes every answer into a database, too, and has each step judged there."""

    store: Store
    run_id: int

    def of(self, engine: Engine) -> None:
        self.engine = engine
        self.store = Store(engine)
        self.run_id = self.store.begin_run(RUN, EPOCH) or 0

    def answered(self, user: str, flows: Any, answer: Answer, held: Set[str] = frozenset()) -> None:
        super().answered(user, flows, answer, held)
        (fence,) = self.store.fences([Target("o1", user)])
        if not fence.version:
            set_coverage_gap(self.engine, self.gaps[user] * MICROSECOND, fence.target)
        listed = [Flow(flow_id, *seen) for flow_id, seen in flows.items() if flow_id not in held]
        given = snapshot(listed, moment(answer.arrived_at), target=fence.target)
        given = msgspec.structs.replace(given, asked_at=moment(answer.asked_at), sole_answer=True)
        state = self.store.states([fence.target_id])[fence.target_id] if fence.version else verdict.State({})
        decision = Decision(held=frozenset(held))
        is_same = fence.version and not fence.held and not held and {f.flow_id: f for f in listed} == dict(state.flows)
        gap = dt.timedelta(days=999)
        outcome = (
            verdict.unchanged(fence, given, gap) if is_same else verdict.decided(fence, state, given, decision, gap)
        )
        assert self.store.apply(self.run_id, [outcome], UNCHECKED) == set()

    def fail(self, user: str) -> None:
        """A request for the user fails."""
        with writing(self.engine) as connection:
            ended = update(target).where(target.c.user_id == user)
            connection.execute(ended.values(observation_id=None, consecutive_failures=1))

    def retire(self, user: str, at: Any) -> None:
        super().retire(user, at)
        retired = update(target).where(target.c.user_id == user, target.c.retired_at.is_(None))
        with writing(self.engine) as connection:
            connection.execute(retired.values(retired_at=moment(at)))

    def step(self, decided_at: Any, began: Any = None) -> list[Judgement]:
        judgements = super().step(decided_at, began)
        self.store.derive_events(self.run_id, moment(began), lambda: moment(decided_at))
        return judgements


class MirroredSimulation(Simulation):
    """A simulation in a database, too."""

    def __init__(self, setting: Setting, seed: int, engine: Engine) -> None:
        super().__init__(setting, seed)
        self.state = Mirror(self.state.gaps)
        self.state.of(engine)


class Small:
    """One organisation with two users."""

    def __init__(self, engine: Engine, coverage_gap: int = 1_000 * HOUR) -> None:
        self.engine = engine
        self.state = Mirror(dict.fromkeys(("ann", "bob"), coverage_gap))
        self.state.of(engine)
        self.at = START

    def hear(self, **lists: str | dict[str, str]) -> None:
        """A run's answers: ids, or names by id; ``-`` lists nothing."""
        self.at += HOUR
        for number, (user, flow_ids) in enumerate(lists.items()):
            asked_at = self.at + 2 * number
            names = flow_ids if isinstance(flow_ids, dict) else {i: f"name {i}" for i in flow_ids if i != "-"}
            flows = {flow_id: Listed(name, "D", True) for flow_id, name in names.items()}
            self.state.answered(user, flows, Answer(asked_at, asked_at + 1))

    def judged(self) -> list[StoryStep]:
        step = Step(self.state.run_id, moment(self.at), moment(self.at + 9))
        with reading(self.engine) as connection:
            return read_steps(connection, ["o1"], step)

    def end(self) -> None:
        self.state.step(self.at + 10, self.at)
