"""Random lives of a database against a model of the truth: edits, faults, crashes, a second process, moved clocks."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import random
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import Engine, event

from etl import sync
from etl.database import connect, upgrade
from etl.domain.approvals import Approval
from etl.domain.guard import Limits
from etl.domain.model import Flow, Snapshot, Target
from etl.errors import GatewayError, GatewayUnreachable, Interrupted, Malformed, Refused
from etl.report.listings import held_sets
from etl.store import NewRun, Store
from etl.sync import RunContext, RunReport
from etl.verify import verify
from tests.support import checker, model
from tests.support.builders import by_id
from tests.support.model import Answer, Flows, Run, Truth

TARGETS = (Target("o1", "ann"), Target("o1", "bob"), Target("o1", "bob", "x"), Target("o2", "ann"))
LIMITS = Limits(
    model.MIN_REMOVED,
    model.MAX_REMOVED_SHARE,
    model.MAX_EMPTIED_TARGETS,
    model.MAX_EMPTIED_SHARE,
    model.MAX_ORG_REMOVED_SHARE,
    min_changed=model.MIN_CHANGED,
    max_changed_share=model.MAX_CHANGED_SHARE,
)
GUARD = checker.Guard(model.MIN_REMOVED, model.MAX_ORG_REMOVED_SHARE, model.MIN_CHANGED, model.MAX_CHANGED_SHARE)
MAX_RETIRED_SHARE = 0.5
MILLISECOND = dt.timedelta(milliseconds=1)
STOP = "stop"
Planned = Flows | GatewayError | str

targets = st.sampled_from(TARGETS)
some_targets = st.lists(targets, unique=True, min_size=1)
flows = st.builds(
    Flow,
    st.sampled_from("123456"),
    st.sampled_from([None, "map", "reduce"]),
    st.sampled_from(["D", "H", None]),
    st.sampled_from([True, False, None]),
)
lists = st.lists(flows, unique_by=lambda flow: flow.flow_id, max_size=6).map(by_id)
faults = st.sampled_from(
    [
        Refused("no such user", code="62101"),
        Malformed("not a list", code="malformed"),
        GatewayUnreachable("nobody there", code="timeout"),
        STOP,
    ]
)


class Died(BaseException):
    """The process died; no code catches this."""


class Impatient(threading.Event):
    """The store's pauses between two tries take no time."""

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


class Clock:
    """A clock that advances by a millisecond per reading."""

    def __init__(self) -> None:
        self.now = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)

    def __call__(self) -> dt.datetime:
        self.now += MILLISECOND
        return self.now


class Upstream:
    """EnOS: the true lists, and the answers to give instead, request by request."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.lists: dict[Target, Flows] = {target: {} for target in TARGETS}
        self.planned: dict[Target, list[Planned]] = {target: [] for target in TARGETS}
        self.deliveries: list[checker.Delivered] = []
        self.dealt = random.Random(0)


class Session:
    """The gateway client of one run, with a log of its answers. ``meanwhile`` happens at its first request."""

    slowed_seconds = 0.0

    def __init__(
        self,
        upstream: Upstream,
        meanwhile: Callable[[], None] | None = None,
        *,
        late: bool = False,
    ) -> None:
        self.answers: list[Answer] = []
        self.stop = threading.Event()
        self._upstream = upstream
        self._meanwhile = meanwhile
        self._late = late

    def fetch(
        self,
        target: Target,
        known_data_hash: str | None = None,
        *,
        own_connection: bool = False,
        before: object = None,
        asked_as: str | None = None,
    ) -> Snapshot:
        if not self._late:
            self._interlude()
        asked_at = self._upstream.clock()
        planned = self._upstream.planned[target]
        said = planned.pop(0) if planned else self._upstream.lists[target]
        observed_at = self._upstream.clock()
        if self._late:
            self._interlude()
        got = None if isinstance(said, str) else said
        self.answers.append(Answer(target, got, asked_at, observed_at, kept=not own_connection))
        if isinstance(said, GatewayError):
            raise said
        if isinstance(said, str):
            self.stop.set()
            raise Interrupted
        return self._snapshot(target, said, known_data_hash, asked_at, observed_at, own_connection)

    def _interlude(self) -> None:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()

    def _snapshot(
        self, target: Target, said: Flows, known: str | None, asked: dt.datetime, at: dt.datetime, own: bool
    ) -> Snapshot:
        listed = sorted(said.values(), key=lambda flow: flow.flow_id)
        self._upstream.deliveries.append(checker.Delivered(*target, listed, at, kept_open=not own))
        dealt = [
            {"flowId": f.flow_id, "flowName": f.flow_name, "cycle": f.cycle, "editable": f.editable}
            for f in self._upstream.dealt.sample(listed, len(listed))
        ]
        data = json.dumps(dealt)
        data_hash = hashlib.sha256(data.encode()).hexdigest()
        return Snapshot(
            target=target,
            flows=None if data_hash == known else tuple(listed),
            data_hash=data_hash,
            asked_at=asked,
            observed_at=at,
            attempts=1,
            body=f'{{"code":0,"data":{data}}}'.encode(),
            sole_answer=own,
        )


class Strikes:
    """Lets a process die at its n-th statement or COMMIT, or loses the answer to its n-th COMMIT."""

    def __init__(self, engine: Engine) -> None:
        self.die_at = self.lose_at = 0
        self._passed = self._commits = 0
        self._commit = engine.dialect.do_commit
        engine.dialect.do_commit = self._committing  # type: ignore[method-assign]
        event.listen(engine, "before_cursor_execute", lambda *_: self._point())

    def _point(self) -> None:
        self._passed += 1
        if self._passed == self.die_at:
            raise Died

    def _committing(self, connection: Any) -> None:
        self._point()
        self._commit(connection)
        self._point()
        self._commits += 1
        if self._commits == self.lose_at:
            lost = sqlite3.OperationalError("the answer to this COMMIT was lost")
            lost.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise lost


class Lives(RuleBasedStateMachine):
    """A database, and processes that come and go."""

    template: Path
    threads: tuple[ThreadPoolExecutor, ...]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="flowtrail-model-", dir=_memory()))
        self.url = f"sqlite:///{shutil.copy(self.template, self.folder / 'flowtrail.db')}"
        self.clock = Clock()
        self.clock_went_back = False
        self.upstream = Upstream(self.clock)
        self.truth = Truth()
        self.configured: list[Target] = list(TARGETS[:2])
        self.engine = connect(self.url)

    # The world, and whoever configures

    @rule(of=targets, now=lists)
    def edit(self, of: Target, now: Flows) -> None:
        self.upstream.lists[of] = now

    @rule(of=targets, flow=flows)
    def put(self, of: Target, flow: Flow) -> None:
        self.upstream.lists[of] = {**self.upstream.lists[of], flow.flow_id: flow}

    @rule(of=targets, flow_id=st.sampled_from("123456"))
    def take_away(self, of: Target, flow_id: str) -> None:
        self.upstream.lists[of] = {k: v for k, v in self.upstream.lists[of].items() if k != flow_id}

    @rule(flow=flows)
    def hand_out_one(self, flow: Flow) -> None:
        """Every list has one workflow only: so few that the guard alone does not hold them."""
        self.upstream.lists = {target: {flow.flow_id: flow} for target in TARGETS}

    @rule(of=targets)
    def mistake_for_another(self, of: Target) -> None:
        """EnOS answers with the list of another user."""
        self.upstream.lists[of] = by_id(
            Flow(f"{i}0", f.flow_name, f.cycle, None) for i, f in self.upstream.lists[of].items()
        )

    @rule(chosen=some_targets)
    def vanish(self, chosen: list[Target]) -> None:
        self.upstream.lists.update({target: {} for target in chosen})

    @rule(of=targets, fault=faults)
    def plan_fault(self, of: Target, fault: GatewayError | str) -> None:
        self.upstream.planned[of].append(fault)

    @rule(of=targets, lie=st.just({}) | lists)
    def plan_lie(self, of: Target, lie: Flows) -> None:
        self.upstream.planned[of].append(lie)

    @rule(chosen=some_targets)
    def configure(self, chosen: list[Target]) -> None:
        self.configured = chosen

    @rule(passed=st.sampled_from([dt.timedelta(minutes=15), dt.timedelta(hours=35), dt.timedelta(hours=37)]))
    def time_passes(self, passed: dt.timedelta) -> None:
        self.clock.now += passed

    @rule(jump=st.sampled_from([dt.timedelta(seconds=-1), dt.timedelta(days=-1), dt.timedelta(days=3653)]))
    def clock_is_set(self, jump: dt.timedelta) -> None:
        self.clock.now += jump
        self.clock_went_back |= jump < dt.timedelta(0)

    @rule()
    def window_passes(self) -> None:
        """The guard's window uses the clock of the database, which no test can wait for."""
        with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"))) as connection, connection:
            connection.execute("UPDATE org_turnover SET counted_at = '2026-01-01 00:00:00.000000'")
        self.truth.turnover.clear()

    # Processes

    @rule()
    def sync(self) -> None:
        self._sync_all()

    @rule(chosen=some_targets)
    def sync_some(self, chosen: list[Target]) -> None:
        session = Session(self.upstream)
        report = self._settle(session, chosen, Store(self.engine))
        self._expect(Run(self.truth, chosen, session.answers), report)

    @precondition(lambda self: model.held(self.truth))
    @rule()
    def approve(self) -> None:
        session, waiting = Session(self.upstream), model.held(self.truth)
        assert [each.target for each in held_sets(self.engine)] == waiting
        report = self._settle(session, waiting, Store(self.engine), approved=True)
        self._expect(Run(self.truth, waiting, session.answers, approved=True), report)

    @rule(at=st.integers(1, 45), chosen=some_targets, approved=st.booleans())
    def die(self, at: int, chosen: list[Target], approved: bool) -> None:
        """A process dies at some statement, in a run over some targets (or in an approval)."""
        if approved:
            chosen = model.held(self.truth) or chosen
        session = Session(self.upstream)
        engine = connect(self.url)
        Strikes(engine).die_at = at
        try:
            report = self._settle(session, chosen, Store(engine, Impatient()), approved=approved)
        except Died:
            report = None
        engine.dispose()
        run = Run(self.truth, chosen, session.answers, approved=approved)
        if report is not None:
            self._expect(run, report)
            return
        there = self._comparable(self._there())
        left = [stage for stage in run.stages if self._comparable(_plain(stage)) == there]
        assert left, "a crash left what no commit made"
        self.truth = left[-1]

    @rule(at=st.integers(1, 6), chosen=some_targets)
    def lose_the_answer_to_a_commit(self, at: int, chosen: list[Target]) -> None:
        session = Session(self.upstream)
        engine = connect(self.url)
        Strikes(engine).lose_at = at
        report = self._settle(session, chosen, Store(engine, Impatient()))
        engine.dispose()
        self._expect(Run(self.truth, chosen, session.answers), report)

    @rule(slow=some_targets, fast=some_targets, late=st.booleans(), now=lists)
    def overtake(self, slow: list[Target], fast: list[Target], late: bool, now: Flows) -> None:
        """A second process does a whole run while the first one waits for its first answer."""
        inner: list[Run] = []
        registered = Run(self.truth, slow, []).after

        def meanwhile() -> None:
            self.upstream.lists[fast[0]] = now
            session = Session(self.upstream)
            engine = connect(self.url)
            report = self._settle(session, fast, Store(engine), threads=self.threads[3:])
            engine.dispose()
            inner.append(Run(registered, fast, session.answers))
            _same_verdicts(inner[0], report)

        session = Session(self.upstream, meanwhile, late=late)
        report = self._settle(session, slow, Store(self.engine))
        self._expect(Run(self.truth, slow, session.answers, meanwhile=inner[0]), report)

    # How it is done

    def _sync_all(self) -> RunReport:
        """As the command does: retire first, then request every list."""
        now, session = self.clock(), Session(self.upstream)
        Store(self.engine).retire_others(self.configured, now, MAX_RETIRED_SHARE)
        before = model.retired(self.truth, self.configured, now, MAX_RETIRED_SHARE)
        report = self._settle(session, self.configured, Store(self.engine))
        self._expect(Run(before, self.configured, session.answers), report)
        return report

    def _settle(
        self,
        session: Session,
        chosen: Sequence[Target],
        store: Store,
        *,
        approved: bool = False,
        threads: tuple[ThreadPoolExecutor, ...] | None = None,
    ) -> RunReport:
        fetchers, writers, batches, *_ = threads or self.threads
        context = RunContext(
            store=store,
            gateway=session,  # type: ignore[arg-type]
            fetchers=fetchers,
            writers=writers,
            in_flight=fetchers._max_workers,
            limits=LIMITS,
            down_after=model.DOWN_AFTER,
            stop=session.stop,
        )
        new = NewRun(origin="approval" if approved else "command", host="here", pid=1, targets=len(chosen))
        report = sync.run(
            context,
            new,
            chosen,
            batches,
            clock=self.clock,
            approval=Approval("somebody", None) if approved else None,
        )
        assert report is not None
        return report

    def _expect(self, run: Run, report: RunReport) -> None:
        _same_verdicts(run, report)
        self.truth = run.after

    @invariant()
    def database_says_the_truth(self) -> None:
        assert self._comparable(self._there()) == self._comparable(_plain(self.truth))

    def _comparable(self, state: dict[Any, Any]) -> dict[Any, Any]:
        """After the clock went back, a retirement is dated at the target's latest event, which may lie ahead."""
        if self.clock_went_back:
            for known in state.values():
                if "retired_at" in known:
                    known["retired_at"] = known["retired_at"] is not None
        return state

    def _there(self) -> dict[Any, Any]:
        with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"))) as connection:
            return _read(connection)

    def teardown(self) -> None:
        try:
            for planned in self.upstream.planned.values():
                planned.clear()
            self.configured = list(TARGETS)
            self._sync_all()
            findings = checker.check(self.url, self.upstream.deliveries, settled=True, guard=GUARD)
            findings += map(str, verify(self.engine))
            assert not findings, "\n".join(findings)
        finally:
            self.engine.dispose()
            shutil.rmtree(self.folder)


def _same_verdicts(run: Run, report: RunReport) -> None:
    found = +report.tally.verdicts
    assert found == run.verdicts, f"the verdicts are {found}, and by the rules {run.verdicts}"


def _plain(truth: Truth) -> dict[Any, Any]:
    lost = {org: changed for org, changed in truth.turnover.items() if any(changed)}
    return {"turnover": lost} | {
        target: {
            "version": known.version,
            "flows": {i: (*_fields(flow), known.missing.get(i)) for i, flow in known.flows.items()},
            "doubted": known.doubted,
            "spans": [tuple(vars(span).values()) for span in known.spans],
            "open": known.is_open,
            "held_since": known.held_since,
            "failures": (known.failures, known.error_code),
            "retired_at": known.retired_at,
        }
        for target, known in truth.items()
    }


def _fields(flow: Flow) -> tuple[Any, ...]:
    return flow.flow_name, flow.cycle, flow.editable


def _read(connection: sqlite3.Connection) -> dict[Any, Any]:
    counted = connection.execute(
        "SELECT org_id, sum(added), sum(removed) FROM org_turnover"
        " WHERE counted_at > datetime('now', '-1 day') GROUP BY org_id"
    )
    there: dict[Any, Any] = {"turnover": {org: (added, removed) for org, added, removed in counted}}
    for target_id, *key, version, open_id, held, failures, code, retired in connection.execute(
        "SELECT id, org_id, user_id, expression, version, observation_id, held_since, consecutive_failures,"
        " last_error_code, retired_at FROM target"
    ).fetchall():
        workflows = connection.execute(
            "SELECT flow_id, flow_name, cycle, editable, missing_since, doubted FROM workflow WHERE target_id = ?",
            [target_id],
        ).fetchall()
        spans = connection.execute(
            "SELECT version, first_at, last_asked_at, last_at, observations, longest_gap_seconds, interrupted"
            " FROM observation WHERE target_id = ? ORDER BY id",
            [target_id],
        )
        there[Target(*key)] = {
            "version": version,
            "flows": {i: (name, cycle, _bool(e), _at(missing)) for i, name, cycle, e, missing, _ in workflows},
            "doubted": {(i, kind): new for i, *_, doubts in workflows for kind, new in json.loads(doubts or "[]")},
            "spans": [(v, _at(f), _at(a), _at(last), n, gap, bool(i)) for v, f, a, last, n, gap, i in spans],
            "open": open_id is not None,
            "held_since": _at(held),
            "failures": (failures, code),
            "retired_at": _at(retired),
        }
    return there


def _bool(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _at(text: str | None) -> dt.datetime | None:
    return None if text is None else dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def _memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def live(examples: int, steps: int, *, seeded: int | None = None, shrink: bool = True) -> None:
    """So many random lives of so many steps; always the same ones without a seed."""
    with tempfile.TemporaryDirectory() as folder:
        Lives.template = Path(folder) / "flowtrail.db"
        engine = connect(f"sqlite:///{Lives.template}")
        upgrade(engine)
        engine.dispose()
        Lives.threads = tuple(ThreadPoolExecutor(1) for _ in range(6))
        try:
            run_state_machine_as_test(
                Lives if seeded is None else seed(seeded)(Lives),
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=steps,
                    derandomize=seeded is None,
                    database=None,
                    deadline=None,
                    print_blob=False,
                    phases=set(Phase) if shrink else [Phase.generate],
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            for pool in Lives.threads:
                pool.shutdown()


def test_the_database_agrees_with_the_rules_on_random_histories() -> None:
    """Upstream edits, lies, faults, stops, crashes, lost COMMITs, config edits, a second process, moved clocks."""
    live(examples=40, steps=25)
