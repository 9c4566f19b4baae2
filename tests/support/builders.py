"""Short ways to build workflows, answers and times, and strategies of hypothesis for them."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from sqlalchemy import Engine, true, tuple_, update

from etl.database import reading, writing
from etl.domain import guard, verdict
from etl.domain.approvals import Approval
from etl.domain.chain import state_digest
from etl.domain.diff import Flows, compare
from etl.domain.guard import Decision, Limits, Sum
from etl.domain.model import Change, Fence, Flow, Origin, Outcome, Snapshot, Span, Target
from etl.errors import Refused
from etl.schema import TARGET_KEY, target
from etl.store import NewRun, Removals, RunBegun, Store
from etl.sync import RunContext
from etl.verify import verify
from tests.support import checker

LIMITS = Limits()
STEADY = settings(derandomize=True, database=None, max_examples=150)
"""The same examples on every machine."""

ALICE = Target("o1", "alice")
START = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
GAP = dt.timedelta(hours=36)

flow_ids = st.sampled_from(["1", "01", "10", "2", "a", "A", "a ", "é", "e\u0301", "流", "\U0001d7d9", "\uffff"])
"""Few, so that they repeat, and easily confused by careless comparison or sorting."""
texts = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)
cycles = st.sampled_from([None, "M", "W", "D", "H", "mi", "m", ""])
flows = st.builds(Flow, flow_ids, texts, cycles, st.sampled_from([None, True, False]))
states = st.lists(flows, unique_by=lambda flow: flow.flow_id, max_size=8).map(lambda listed: by_id(listed))


class _Unlimited(dict[str, Sum]):
    """Every organisation may lose any number of workflows."""

    def __contains__(self, org_id: object) -> bool:
        return True

    def __missing__(self, org_id: str) -> Sum:
        return Sum(10**9, 0)


UNCHECKED = Removals(dt.timedelta(hours=24), _Unlimited())
"""For outcomes that are written without checking the organisation's removals."""


def by_id(listed: Iterable[Flow]) -> dict[str, Flow]:
    return {flow.flow_id: flow for flow in listed}


def flow(flow_id: object, name: str | None = "map", cycle: str | None = "D", editable: bool | None = True) -> Flow:
    return Flow(str(flow_id), name, cycle, editable)


def numbered(first: int, last: int) -> list[Flow]:
    """Workflows ``first`` to ``last``, both included."""
    return [flow(number, f"name {number}") for number in range(first, last + 1)]


def after(**passed: float) -> dt.datetime:
    """The time so long after ``START``: ``after(hours=2)``."""
    return START + dt.timedelta(**passed)


def snapshot(
    listed: Iterable[Flow] | None,
    at: dt.datetime = START,
    *,
    target: Target = ALICE,
    took: dt.timedelta = dt.timedelta(seconds=2),
) -> Snapshot:
    """An answer observed ``at`` and requested ``took`` before. ``listed`` is None: the known answer."""
    ordered = None if listed is None else tuple(sorted(listed, key=lambda each: each.flow_id))
    return Snapshot(
        target=target,
        flows=ordered,
        data_hash="d" * 64 if ordered is None else state_digest(ordered)[::-1],
        asked_at=at - took,
        observed_at=at,
        attempts=1,
        body=b"",
        sole_answer=True,
    )


def span(first: dt.datetime, last: dt.datetime, observations: int = 2, *, interrupted: bool = False) -> Span:
    asked = last - dt.timedelta(seconds=2)
    longest = (last - first) // dt.timedelta(seconds=1)
    return Span(first, asked, last, observations, longest if observations > 1 else 0, interrupted)


def fence(listed: Iterable[Flow], seen: Span | None, *, is_open: bool = True, held: bool = False) -> Fence:
    """The fence of a target at version 3, whose latest span is ``seen``."""
    known = list(listed)
    digest = state_digest(known)
    return Fence(
        target=ALICE,
        target_id=7,
        version=3,
        number=5,
        observation_id=11 if seen and is_open and not held else None,
        answer_digest=digest,
        data_hash=digest[::-1],
        flow_count=len(known),
        held_since=START if held else None,
        span_id=11 if seen else None,
        span=seen,
        head_hash="a" * 64,
        head_observed_at=START - dt.timedelta(days=1),
    )


def run_row(at: dt.datetime, **own: object) -> dict[str, object]:
    """A row of ``sync_run``: a command that began ``at`` and succeeded; ``own`` overrides its values."""
    times = {"started_at": at, "heartbeat_at": at}
    return {"origin": "command", "status": "succeeded", **times, "host": "h", "pid": 1, **own}


def set_coverage_gap(engine: Engine, gap: dt.timedelta, *targets: Target) -> None:
    """As if a schedule with this gap listed the targets; none: all that the database knows."""
    mine = tuple_(*TARGET_KEY).in_(targets) if targets else true()
    with writing(engine) as connection:
        connection.execute(update(target).where(mine).values(coverage_gap_seconds=math.ceil(gap.total_seconds())))


def judged(
    store: Store,
    before: Fence,
    answer: Snapshot,
    *,
    gap: dt.timedelta = GAP,
    limits: Limits = LIMITS,
    by: str | None = None,
) -> Outcome:
    """The verdict on an answer, given the fence that was read before it."""
    assert answer.flows is not None
    if before.version and not before.held and state_digest(answer.flows) == before.answer_digest:
        return verdict.unchanged(before, answer, gap)
    state = store.states([before.target_id])[before.target_id]
    difference = compare(state.flows, by_id(answer.flows))
    weighed = guard.weigh(difference, state.missing, limits)
    if by is not None:
        weighed = guard.approve(difference, state, limits)
    approval = Approval(by, None) if by is not None else None
    return verdict.decided(before, state, answer, weighed if before.version else Decision(), gap, approval)


class Diary:
    """Answers written through a real store, as a run would write them, and a log of them for the checker."""

    def __init__(self, engine: Engine, url: str) -> None:
        self.engine = engine
        self.url = url
        self.store = Store(engine)
        self.deliveries: list[checker.Delivered] = []
        self.run_id = self.begin()

    def begin(self, origin: Origin = "command") -> int:
        new = NewRun(origin=origin, host="here", pid=1, targets=0)
        run_id = self.store.begin_run(new, START)
        assert run_id is not None
        return run_id

    def fence(self, target: Target = ALICE) -> Fence:
        return self.store.fences([target], run=RunBegun(self.run_id, START))[0]

    def judge(
        self, before: Fence, listed: Iterable[Flow], at: dt.datetime, *, limits: Limits = LIMITS, by: str | None = None
    ) -> Outcome:
        """The verdict of ``judged`` on a list, which is logged."""
        answer = snapshot(listed, at, target=before.target)
        assert answer.flows is not None
        self.deliveries.append(checker.Delivered(*before.target, answer.flows, at))
        return judged(self.store, before, answer, limits=limits, by=by)

    def apply(self, *outcomes: Outcome, origin: Origin = "command") -> set[int]:
        """Write outcomes in a new run."""
        return self.store.apply(self.begin(origin), outcomes, UNCHECKED)

    def answer(self, listed: Iterable[Flow], at: dt.datetime, target: Target = ALICE) -> Outcome:
        """One target from the fence to the commit."""
        outcome = self.judge(self.fence(target), listed, at)
        assert self.apply(outcome) == set()
        return outcome

    def fail(self, target: Target = ALICE, code: str = "62109") -> None:
        assert self.apply(verdict.failed(self.fence(target), Refused("it failed", code=code))) == set()

    def derive_events(self, at: dt.datetime) -> None:
        """Derive the organisations' events, as the end of a run does."""
        self.store.derive_events(self.begin(), at, lambda: at)

    def findings(self, *, settled: bool = True, every_answer: bool = False) -> list[str]:
        """What the independent checker and ``verify`` find."""
        found = checker.check(self.url, self.deliveries, settled=settled, every_answer=every_answer)
        return found + [str(finding) for finding in verify(self.engine)]

    def check(self, **how: bool) -> None:
        """Assert that there are no ``findings``."""
        findings = self.findings(**how)
        assert not findings, "\n".join(findings)


def dump(engine: Engine) -> dict[str, list[str]]:
    """The contents of every table except those that the end of each run writes, as text in a fixed order."""
    tables = [table for table in checker.TABLES if table not in ("sync_run", "run_seal", "trail")]
    with reading(engine) as connection:
        return {
            table: sorted(map(repr, connection.exec_driver_sql(f"SELECT * FROM {table}").all())) for table in tables
        }


def written(before: dict[str, list[str]], now: dict[str, list[str]]) -> set[str]:
    """The tables whose contents differ."""
    return {table for table in now if before[table] != now[table]}


@contextlib.contextmanager
def run_context(
    store: Store, gateway: Any, in_flight: int = 2, **given: Any
) -> Iterator[tuple[RunContext, ThreadPoolExecutor]]:
    """A context, and the threads for its batches; ``given`` overrides its fields."""
    with (
        ThreadPoolExecutor(in_flight) as fetchers,
        ThreadPoolExecutor(2) as writers,
        ThreadPoolExecutor(2) as batches,
    ):
        fields = {"limits": LIMITS, "down_after": 9, "stop": threading.Event(), **given}
        pools: dict[str, Any] = {"fetchers": fetchers, "writers": writers, "in_flight": in_flight}
        yield RunContext(store=store, gateway=gateway, **pools, **fields), batches


def replay(old: Flows, changes: Iterable[Change]) -> dict[str, Flow]:
    """The state after ``changes``. Raises ValueError if they do not fit ``old``."""
    state = dict(old)
    afters: dict[str, Flow | None] = {}
    for change in changes:
        if _before(change) != old.get(change.flow_id):
            raise ValueError(f"{change.kind} of workflow {change.flow_id!r} does not fit the state before")
        after = _after(change)
        if afters.setdefault(change.flow_id, after) != after or (after is None and change.flow_id not in state):
            raise ValueError(f"the changes of workflow {change.flow_id!r} disagree about the state after")
        if after is None:
            del state[change.flow_id]
        else:
            state[change.flow_id] = after
    return state


def _before(change: Change) -> Flow | None:
    if change.kind in ("added", "baseline"):
        return None
    return Flow(change.flow_id, change.old_name, change.old_cycle, change.old_editable)


def _after(change: Change) -> Flow | None:
    if change.kind == "removed":
        return None
    return Flow(change.flow_id, change.new_name, change.new_cycle, change.new_editable)
