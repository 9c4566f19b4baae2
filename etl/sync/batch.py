"""One batch of a run: read fences, ask, judge, apply. A target that fails touches no other."""

from __future__ import annotations

import datetime as dt
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

import msgspec
import structlog

from etl import guard, verdict
from etl.errors import DatabaseError, DatabaseUnreachable, GatewayError, GatewayUnreachable, Interrupted, Malformed
from etl.gateway import Gateway, reread_strictly
from etl.guard import Decision, Limits
from etl.model import Fence, Issue, Outcome, Snapshot, State, Target
from etl.store import STALE, Store
from etl.sync.report import Tally
from etl.trail import state_digest

BATCH_SIZE: Final = 500
"""Targets whose fences are read, and whose quiet outcomes are written, in one statement."""
_FLOWS_IN_HAND: Final = 20_000
"""As many workflows of answers that differ are kept before they are written, to bound memory."""
_LULL_SECONDS: Final = 1.0
"""What has arrived is written when nothing more arrives for so long."""


class Kit(msgspec.Struct, frozen=True, kw_only=True):
    """What every batch of a process works with."""

    store: Store
    gateway: Gateway
    fetchers: Executor
    """Threads that wait for the gateway: as many as requests may be in flight."""
    limits: Limits
    down_after: int
    """So many targets in a row without an answer mean that the gateway is down."""
    stop: threading.Event
    arrived: Callable[[], None] = lambda: None
    """Called once for every answer, from several threads."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a run wants of its batches."""

    run_id: int | None
    """None: judge only, write nothing."""
    coverage_gap: dt.timedelta
    """A longer silence ends a span; ``gaps`` has the targets whose schedule says otherwise."""
    gaps: Mapping[Target, dt.timedelta] = {}
    approved_by: str | None = None
    """Whoever says that the held removals are true; None in every run but an approval."""


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
    outcomes: Sequence[Outcome]
    """Only where nothing is written: what would be."""


class Breaker:
    """Sees a gateway that is down, over all batches of a run in this process."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row = 0
        self.is_open = False

    def saw(self, error: GatewayError | None) -> None:
        self._in_a_row = self._in_a_row + 1 if error is not None and error.gateway_down_evidence else 0
        self.is_open = self.is_open or self._in_a_row >= self._limit


class _Asked(NamedTuple):
    """A target's answer: a snapshot (``differs``: from the last one), an error, or None for an interruption."""

    fence: Fence
    answer: Snapshot | GatewayError | None
    differs: bool = False


class Batch:
    """Targets on their way to a verdict."""

    def __init__(self, kit: Kit, order: Order, breaker: Breaker) -> None:
        self._kit = kit
        self._order = order
        self._breaker = breaker
        self._tally = Tally()
        self._emptied: list[Emptied] = []
        self._planned: list[Outcome] = []

    def settle(self, targets: Sequence[Target]) -> Settled:
        """Ask for every one of ``targets`` and write what became of it.

        Raises DatabaseUnreachable where the database has gone for good; what was applied before stays.
        """
        fences = self._kit.store.fences(targets, register=self._order.run_id is not None)
        for group in _groups(self._ask_all(fences), len(fences)):
            self._settle_group(group)
        return self._settled()

    def decide(self, emptied: Sequence[Emptied], believe: bool) -> Settled:
        """Write the verdicts of targets that became empty."""
        self._apply([self._judged(each, believe) for each in emptied])
        return self._settled()

    def _gap(self, fence: Fence) -> dt.timedelta:
        return self._order.gaps.get(fence.target, self._order.coverage_gap)

    def _settled(self) -> Settled:
        return Settled(self._tally, self._emptied, self._planned)

    def _judged(self, emptied: Emptied, believe: bool) -> Outcome:
        fence, state, snapshot, decision = emptied
        if not believe:
            decision = guard.hold(state.flows.keys(), state.flows.keys())
        return verdict.judged(fence, state, snapshot, decision, self._gap(fence))

    def _ask_all(self, fences: Sequence[Fence]) -> queue.SimpleQueue[_Asked]:
        answers: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        for fence in fences:
            self._kit.fetchers.submit(self._ask_into, answers, fence)
        return answers

    def _ask_into(self, answers: queue.SimpleQueue[_Asked], fence: Fence) -> None:
        """Put an answer, whatever happens: who waits for it would wait for ever."""
        try:
            asked = self._ask(fence)
        except Exception:
            structlog.get_logger(__name__).exception("target_crashed", target=str(fence.target))
            asked = _Asked(fence, Malformed("the answer could not be handled; the log says more", code="internal"))
        answers.put(asked)
        self._kit.arrived()

    def _ask(self, fence: Fence) -> _Asked:
        if self._kit.stop.is_set():
            return _Asked(fence, None)
        if self._breaker.is_open:
            return _Asked(fence, _gateway_down())
        try:
            known = None if fence.held or self._order.approved_by else fence.data_hash
            asked = self._compare(fence, self._kit.gateway.fetch(fence.target, known))
        except Interrupted:
            return _Asked(fence, None)
        except GatewayError as error:
            asked = _Asked(fence, error)
        self._breaker.saw(asked.answer if isinstance(asked.answer, GatewayError) else None)
        return asked

    def _compare(self, fence: Fence, snapshot: Snapshot) -> _Asked:
        """Whether the answer differs from the last one; what differs must stand the strict second reading."""
        if snapshot.flows is None:
            return _Asked(fence, snapshot)
        if not fence.held and fence.version and state_digest(snapshot.flows) == fence.answer_digest:
            return _Asked(fence, msgspec.structs.replace(snapshot, flows=None, body=b""))
        reread_strictly(snapshot)
        return _Asked(fence, msgspec.structs.replace(snapshot, body=b""), differs=True)

    def _settle_group(self, group: Sequence[_Asked]) -> None:
        self._tally.interrupted += sum(asked.answer is None for asked in group)
        outcomes = [verdict.failed(a.fence, a.answer) for a in group if isinstance(a.answer, GatewayError)]
        outcomes += [
            verdict.unchanged(asked.fence, asked.answer, self._gap(asked.fence))
            for asked in group
            if isinstance(asked.answer, Snapshot) and not asked.differs
        ]
        outcomes += self._judge([asked for asked in group if asked.differs])
        self._apply(outcomes)

    def _judge(self, differing: Sequence[_Asked]) -> Iterator[Outcome]:
        states = self._kit.store.states([a.fence.target_id for a in differing if a.fence.version])
        doubted = []
        for fence, snapshot, _ in differing:
            assert isinstance(snapshot, Snapshot)  # noqa: S101 - only a snapshot can differ
            state = states.get(fence.target_id, State({}))
            decision = self._decide(fence, state, snapshot)
            if decision.ask_again:
                doubted.append((fence, state))
            else:
                yield verdict.judged(fence, state, snapshot, decision, self._gap(fence), self._order.approved_by)
        yield from self._judge_second_answers(doubted)

    def _judge_second_answers(self, doubted: Sequence[tuple[Fence, State]]) -> Iterator[Outcome]:
        """Ask those that would lose everything once more: the second answer counts."""
        answers = self._ask_all([fence for fence, _ in doubted])
        states = {fence.target: state for fence, state in doubted}
        for _ in doubted:
            fence, answer, differs = answers.get()
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
        if fence.version == 0:
            return Decision()
        answered = {flow.flow_id for flow in snapshot.flows or ()}
        if self._order.approved_by is not None:
            return guard.approve(state.flows.keys(), state.missing, answered)
        return guard.weigh(state.flows.keys(), state.missing, answered, self._kit.limits)

    def _apply(self, outcomes: Sequence[Outcome]) -> None:
        if self._order.run_id is None:
            self._planned += outcomes
            self._tally.add(outcomes)
            return
        try:
            stale = self._kit.store.apply(self._order.run_id, outcomes)
        except DatabaseUnreachable:
            raise
        except DatabaseError as error:
            self._apply_apart(outcomes, error)
        else:
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


def _gateway_down() -> GatewayError:
    return GatewayUnreachable("not asked: the gateway is down", code="gateway_down", attempts=0)


def _left_out(outcome: Outcome) -> Outcome:
    issue = outcome.issue or Issue(None, STALE)
    return msgspec.structs.replace(outcome, verdict="stale", change_set=None, hash=None, issue=issue)


def _groups(answers: queue.SimpleQueue[_Asked], expected: int) -> Iterator[list[_Asked]]:
    """What has arrived, in groups that are worth a transaction, and whose memory is bounded."""
    group: list[_Asked] = []
    in_hand = 0
    while expected:
        try:
            asked = answers.get(timeout=_LULL_SECONDS)
        except queue.Empty:
            if group:
                yield group
                group, in_hand = [], 0
            continue
        group.append(asked)
        expected -= 1
        in_hand += len(asked.answer.flows or ()) if asked.differs and isinstance(asked.answer, Snapshot) else 0
        if in_hand >= _FLOWS_IN_HAND:
            yield group
            group, in_hand = [], 0
    if group:
        yield group
