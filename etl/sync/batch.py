"""One batch of a run: read fences, ask, judge, apply. A target that fails touches no other."""

from __future__ import annotations

import contextvars
import datetime as dt
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Executor, Future, wait
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain
from typing import Final, NamedTuple

import msgspec
import structlog

from etl import guard, verdict
from etl.domain.holds import Approval, code, held_set
from etl.errors import (
    DatabaseDamaged,
    DatabaseError,
    DatabaseUnreachable,
    GatewayError,
    GatewayUnreachable,
    Interrupted,
    Malformed,
)
from etl.gateway import Gateway, reread_strictly
from etl.guard import Decision, Limits
from etl.model import Fence, Issue, Outcome, Snapshot, State, Target
from etl.store import STALE, Store
from etl.sync.asking import Asked, Asking
from etl.sync.report import Tally
from etl.trail import state_digest

BATCH_SIZE: Final = 500
"""Targets whose fences are read, and whose quiet outcomes are written, in one statement."""
_WRITTEN_AT_ONCE: Final = 2
"""Groups of a batch: one waits for the disk while the database takes the next one."""


class Kit(msgspec.Struct, frozen=True, kw_only=True):
    """What every batch of a process works with."""

    store: Store
    gateway: Gateway
    fetchers: Executor
    """Threads that wait for the gateway."""
    writers: Executor
    """Threads that wait for the database to write."""
    in_flight: int
    """As many requests as may be on their way: there are as many ``fetchers``."""
    limits: Limits
    down_after: int
    """So many targets in a row without an answer mean that the gateway is down."""
    stop: threading.Event
    arrived: Callable[[], None] = lambda: None
    """Called once for every answer, from several threads."""
    planned: Callable[[Sequence[Outcome]], None] = lambda outcomes: None
    """Called with what would be written where nothing is, from several threads."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a run wants of its batches."""

    run_id: int | None
    """None: judge only, write nothing."""
    coverage_gap: dt.timedelta
    """A longer silence ends a span; ``gaps`` has the targets whose schedule says otherwise."""
    gaps: Mapping[Target, dt.timedelta] = {}
    approval: Approval | None = None
    """By whom held removals are said to be true, and which; None in every run but an approval."""


class Emptied(NamedTuple):
    """A target whose few workflows all vanished: decided at the end of the run, with the others."""

    fence: Fence
    state: State
    snapshot: Snapshot
    decision: Decision


class Settled(NamedTuple):
    """What became of a batch, small enough to travel."""

    tally: Tally
    emptied: Sequence[Emptied]


class Breaker:
    """Sees a gateway that is down, over all batches of a run in this process."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row = 0
        self.is_open = False

    def saw(self, error: GatewayError | None) -> None:
        self._in_a_row = self._in_a_row + 1 if error is not None and error.gateway_down_evidence else 0
        self.is_open = self.is_open or self._in_a_row >= self._limit


class Batch:
    """Targets on their way to a verdict."""

    def __init__(self, kit: Kit, order: Order, breaker: Breaker) -> None:
        self._kit = kit
        self._order = order
        self._breaker = breaker
        self._tally = Tally()
        self._counting = threading.Lock()
        self._emptied: list[Emptied] = []

    def settle(self, targets: Sequence[Target]) -> Settled:
        """Ask for every one of ``targets`` and write what became of it.

        Raises DatabaseUnreachable where the database has gone for good; what was applied before stays.
        """
        with structlog.contextvars.bound_contextvars(run_id=self._order.run_id):
            fences = self._kit.store.fences(targets, register=self._order.run_id is not None)
            with self._writing() as write, closing(self._ask_all(fences).groups()) as groups:
                for group in groups:
                    write(self._judge_group(group))
        return self._settled()

    def decide(self, emptied: Sequence[Emptied], believe: bool) -> Settled:
        """Write the verdicts of targets that became empty."""
        self._apply([self._judged(each, believe) for each in emptied])
        return self._settled()

    @contextmanager
    def _writing(self) -> Iterator[Callable[[Sequence[Outcome]], None]]:
        """Apply groups beside whoever judges the next one, and a few at once; an error of one is raised soon after."""
        under_way: deque[Future[None]] = deque()

        def write(outcomes: Sequence[Outcome]) -> None:
            under_way.append(self._kit.writers.submit(contextvars.copy_context().run, self._apply, outcomes))
            if len(under_way) == _WRITTEN_AT_ONCE:
                under_way.popleft().result()

        try:
            yield self._apply if self._order.run_id is None else write
            while under_way:
                under_way.popleft().result()
        finally:
            wait(under_way)

    def _gap(self, fence: Fence) -> dt.timedelta:
        return self._order.gaps.get(fence.target, self._order.coverage_gap)

    def _settled(self) -> Settled:
        return Settled(self._tally, self._emptied)

    def _judged(self, emptied: Emptied, believe: bool) -> Outcome:
        fence, state, snapshot, decision = emptied
        if not believe:
            decision = guard.hold(state.flows.keys(), state.flows.keys())
        return verdict.judged(fence, state, snapshot, decision, self._gap(fence))

    def _ask_all(self, fences: Sequence[Fence], *, own_connections: bool = False) -> Asking:
        ask = partial(self._ask_surely, own_connection=own_connections)
        return Asking(ask, fences, self._kit.fetchers, self._kit.in_flight)

    def _ask_surely(self, fence: Fence, own_connection: bool) -> Asked:
        """An answer, whatever happens: who waits for it would wait for ever.

        Whatever is logged meanwhile has the target in it: the context is this call's own.
        """
        structlog.contextvars.bind_contextvars(target=str(fence.target))
        try:
            return self._ask(fence, own_connection)
        except Exception:
            structlog.get_logger(__name__).exception("target_crashed")
            return Asked(fence, Malformed("the answer could not be handled; the log says more", code="internal"))
        finally:
            self._kit.arrived()

    def _ask(self, fence: Fence, own_connection: bool) -> Asked:
        if self._kit.stop.is_set():
            return Asked(fence, None)
        if self._breaker.is_open:
            return Asked(fence, _gateway_down())
        try:
            asked = self._answer(fence, own_connection)
        except Interrupted:
            return Asked(fence, None)
        except GatewayError as error:
            asked = Asked(fence, error)
        self._breaker.saw(asked.answer if isinstance(asked.answer, GatewayError) else None)
        return asked

    def _answer(self, fence: Fence, own_connection: bool) -> Asked:
        """A kept connection may say that nothing is new; any other answer must be the only one of its connection."""
        fetch = self._kit.gateway.fetch
        judged_anyway = fence.held or not fence.version or self._order.approval is not None
        known = None if judged_anyway else fence.data_hash
        snapshot = fetch(fence.target, known, own_connection=own_connection or judged_anyway)
        if not snapshot.sole_answer and not _is_as_before(fence, snapshot):
            del snapshot  # a second list of the same size may follow
            snapshot = fetch(fence.target, known, own_connection=True)
        return self._compare(fence, snapshot)

    def _compare(self, fence: Fence, snapshot: Snapshot) -> Asked:
        """Whether the answer differs from the last one; what differs must stand the strict second reading."""
        if _is_as_before(fence, snapshot):
            return Asked(fence, msgspec.structs.replace(snapshot, flows=None, body=b""))
        reread_strictly(snapshot)
        return Asked(fence, msgspec.structs.replace(snapshot, body=b""), differs=True)

    def _judge_group(self, group: Sequence[Asked]) -> list[Outcome]:
        self._tally.interrupted += sum(asked.answer is None for asked in group)
        outcomes = [verdict.failed(a.fence, a.answer) for a in group if isinstance(a.answer, GatewayError)]
        outcomes += [
            verdict.unchanged(asked.fence, asked.answer, self._gap(asked.fence))
            for asked in group
            if isinstance(asked.answer, Snapshot) and not asked.differs
        ]
        outcomes += self._judge([asked for asked in group if asked.differs])
        return outcomes

    def _judge(self, differing: Sequence[Asked]) -> Iterator[Outcome]:
        states = self._kit.store.states([a.fence.target_id for a in differing if a.fence.version])
        doubted = []
        for fence, snapshot, _ in differing:
            assert isinstance(snapshot, Snapshot)  # noqa: S101 - only a snapshot can differ
            state = states.get(fence.target_id, State({}))
            decision = self._decide(fence, state, snapshot)
            if decision.ask_again:
                doubted.append((fence, state))
            else:
                yield verdict.judged(fence, state, snapshot, decision, self._gap(fence), self._order.approval)
        yield from self._judge_second_answers(doubted)

    def _judge_second_answers(self, doubted: Sequence[tuple[Fence, State]]) -> Iterator[Outcome]:
        """Ask those that have nothing, or would lose everything, once more: the second answer counts."""
        states = {fence.target: state for fence, state in doubted}
        again = self._ask_all([fence for fence, _ in doubted], own_connections=True)
        for fence, answer, differs in chain.from_iterable(again.groups()):
            state = states[fence.target]
            if answer is None:
                self._tally.interrupted += 1
            elif isinstance(answer, GatewayError):
                yield verdict.failed(fence, answer)
            elif not differs:
                yield verdict.unchanged(fence, answer, self._gap(fence))
            else:
                decision = self._decide(fence, state, answer)
                if decision.emptied:
                    self._emptied.append(Emptied(fence, state, answer, decision))
                else:
                    yield verdict.judged(fence, state, answer, decision, self._gap(fence))

    def _decide(self, fence: Fence, state: State, snapshot: Snapshot) -> Decision:
        answered = {flow.flow_id for flow in snapshot.flows or ()}
        if fence.version == 0:
            return guard.weigh_first(answered)
        if self._order.approval is not None:
            return self._approve(self._order.approval, fence.target, state, answered)
        return guard.weigh(state.flows.keys(), state.missing, answered, self._kit.limits)

    def _approve(self, approval: Approval, target: Target, state: State, answered: Set[str]) -> Decision:
        held = held_set(target, state.missing)
        if approval.covers(target, held.scope):
            return guard.approve(state.flows.keys(), state.missing, answered)
        return guard.refuse_approval(state.flows.keys(), answered, code(held.scope))

    def _apply(self, outcomes: Sequence[Outcome]) -> None:
        if self._order.run_id is None:
            self._kit.planned(outcomes)
            self._tally.add(outcomes)
            return
        try:
            stale = self._kit.store.apply(self._order.run_id, outcomes)
        except (DatabaseUnreachable, DatabaseDamaged):
            raise
        except DatabaseError as error:
            self._apply_apart(outcomes, error)
        else:
            with self._counting:
                self._tally.add([_left_out(o) if o.fence.target_id in stale else o for o in outcomes])

    def _apply_apart(self, outcomes: Sequence[Outcome], error: DatabaseError) -> None:
        """The database refused a batch: find the target that it refuses, and let the others through."""
        if len(outcomes) > 1:
            half = len(outcomes) // 2
            self._apply(outcomes[:half])
            self._apply(outcomes[half:])
        elif outcomes[0].verdict != "failed":
            refused = Malformed(f"the answer could not be stored: {error}", code="not_stored")
            self._apply([verdict.failed(outcomes[0].fence, refused)])
        else:
            raise error


def _is_as_before(fence: Fence, snapshot: Snapshot) -> bool:
    if snapshot.flows is None:
        return True
    return not fence.held and fence.version > 0 and state_digest(snapshot.flows) == fence.answer_digest


def _gateway_down() -> GatewayError:
    return GatewayUnreachable("not asked: the gateway is down", code="gateway_down", attempts=0)


def _left_out(outcome: Outcome) -> Outcome:
    issue = outcome.issue or Issue(None, STALE)
    return msgspec.structs.replace(outcome, verdict="stale", change_set=None, hash=None, issue=issue)
