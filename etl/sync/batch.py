"""One batch of a run: read fences, ask, decide, apply. A target that fails touches no other."""

from __future__ import annotations

import contextvars
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from contextlib import closing, contextmanager
from functools import partial
from operator import attrgetter
from typing import Final

import msgspec

from etl.domain import answers, verdict
from etl.domain.answers import KeptAnswer
from etl.domain.chain import answer_digest_of
from etl.domain.guard import Limits
from etl.domain.model import Fence, Issue, Outcome, Snapshot, State, Target
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
from etl.log import binding, get_logger
from etl.store import STALE, RunBegun, Store, TooManyRemovals
from etl.store.bulk import grouped
from etl.sync.deciding import Decider
from etl.sync.fetching import FLOWS_A_GROUP, Fetched, Fetcher
from etl.sync.removals import PendingAnswer
from etl.sync.result import BatchResult, RunOptions, Tally, TargetIssue

BATCH_SIZE: Final = 500
"""Targets per batch: their fences are read in one statement."""
_WRITTEN_AT_ONCE: Final = 2
"""Groups of a batch that are written at once: while one waits for the disk, the database takes the next."""
_CHANGING: Final = 8
"""From so many more answers that differ than do not, the next targets are asked over separate connections at once."""


class RunContext(msgspec.Struct, frozen=True, kw_only=True):
    """What every batch of a process works with."""

    store: Store
    gateway: Gateway
    fetchers: Executor
    """Threads that wait for the gateway."""
    writers: Executor
    """Threads that wait for the database to write."""
    in_flight: int
    """How many requests may be in flight; the number of ``fetchers``."""
    limits: Limits
    down_after: int
    """How many targets in a row without an answer mean that the gateway is down."""
    stop: threading.Event
    arrived: Callable[[], None] = lambda: None
    """Called once per answer, from several threads."""
    keeps_answers: bool = False
    """Whether answers that make a version, or are held, are archived."""
    planned: Callable[[Sequence[Outcome]], None] = lambda outcomes: None
    """Called with the outcomes of a plan, which are not written; from several threads."""


class CircuitBreaker:
    """Opens when the gateway is down; shared by all batches of a run in this process."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row = 0
        self.is_open = False

    def saw(self, error: GatewayError | None) -> None:
        self._in_a_row = self._in_a_row + 1 if error is not None and error.gateway_down_evidence else 0
        self.is_open = self.is_open or self._in_a_row >= self._limit


class Batch:
    """Targets on their way to a verdict."""

    def __init__(self, context: RunContext, options: RunOptions, breaker: CircuitBreaker) -> None:
        self._context = context
        self._options = options
        self._breaker = breaker
        self._tally = Tally()
        self._counting = threading.Lock()
        self._decider = Decider(options, context.limits)
        self._changing = 0
        """How many more answers differed lately than did not: 0 to twice ``_CHANGING``."""

    def settle(self, targets: Sequence[Target]) -> BatchResult:
        """Ask for each of ``targets`` and write the outcome, except for those that are deferred or pending.

        Raises DatabaseUnreachable if the database has gone for good; what was applied before stays.
        """
        return self._settle(self._fences(targets))

    def settle_remaining(self, targets: Sequence[Target]) -> BatchResult:
        """As ``settle``, of targets that a process may have begun before it was killed. Those that this run has written
        are counted as written, and those that it has observed unchanged as unchanged; only the others are asked.

        Of an unchanged target, the only trace of the run is a longer span. If another run may have extended it, the
        target is asked again. The fences are read first: so what a lost process writes after the look makes the answer
        here stale.
        """
        run_id, began_at = self._options.run_id, self._options.began_at
        assert run_id is not None  # noqa: S101 - a plan has no other process
        fences = self._fences(targets)
        done = self._context.store.written_by(run_id, targets)
        seen: set[Target] = set()
        if began_at is not None and self._options.second is None:  # `verify` wants one observation, of first answers
            left = [target for target in targets if target not in done]
            seen = self._context.store.observed_by(run_id, began_at, left)
        tally, found = self._settle([each for each in fences if each.target not in done and each.target not in seen])
        tally.verdicts += Counter(unchanged=len(seen))
        missing = Counter(found.missing)
        for target, written in done.items():
            tally.verdicts[written.verdict] += 1
            tally.changes.update(written.changes)
            counts = not target.is_directory
            missing[target.org_id] += counts * written.changes.get("removed", 0)
            if written.issue is not None:
                tally.add_issues([TargetIssue(target, written.verdict, written.issue)])
                missing[target.org_id] += counts * written.issue.missing
        return BatchResult(tally, found._replace(missing=missing))

    def decide(self, undecided: Sequence[PendingAnswer]) -> BatchResult:
        """Write the outcomes of pending answers that can be decided now."""
        for some in grouped(undecided, attrgetter("flows"), FLOWS_A_GROUP):
            states = self._context.store.states([each.fence.target_id for each in some])
            self._apply(list(self._decider.decide([(states[each.fence.target_id], each) for each in some])))
        return BatchResult(self._tally, self._decider.found())

    def _fences(self, targets: Sequence[Target]) -> list[Fence]:
        """The fences of ``targets``, in their order. Raises DatabaseUnreachable and RunClosed."""
        run_id, began_at = self._options.run_id, self._options.began_at
        if run_id is None or began_at is None:
            return self._asked_as(self._context.store.fences(targets, register=run_id is not None))
        fences = self._context.store.fences(targets, run=RunBegun(run_id, began_at))
        return self._asked_as([msgspec.structs.replace(fence, run_began_at=began_at) for fence in fences])

    def _asked_as(self, fences: Sequence[Fence]) -> list[Fence]:
        """The fences, those of directories with the user as whom they are asked for."""
        asked_as = self._options.asked_as
        return [
            msgspec.structs.replace(fence, asked_as=asked_as.get(fence.target.org_id, fence.asked_as))
            if fence.target.is_directory
            else fence
            for fence in fences
        ]

    def _settle(self, fences: Sequence[Fence]) -> BatchResult:
        """Settle targets whose fences have been read. What was written since then makes an answer stale."""
        with binding(run_id=self._options.run_id), self._writing() as write:
            fetcher = Fetcher(self._fetch_safely, fences, self._context.fetchers, self._context.in_flight)
            waiting: list[Outcome] = []
            with closing(fetcher.groups()) as groups:
                for group in groups:
                    waiting += self._decide_group(group)
                    ends = sum(fetched.flows for fetched in group) < FLOWS_A_GROUP  # or others take their time
                    rows = sum(len(o.missing) + (len(o.change_set.changes) if o.change_set else 0) for o in waiting)
                    if ends or self._options.second or rows >= FLOWS_A_GROUP:
                        write(waiting)
                        waiting = []
            write(waiting)
        return BatchResult(self._tally, self._decider.found())

    @contextmanager
    def _writing(self) -> Iterator[Callable[[Sequence[Outcome]], None]]:
        """Apply groups in the background while the next ones are decided on. Errors are raised by a later call."""
        under_way: deque[Future[None]] = deque()

        def write(outcomes: Sequence[Outcome]) -> None:
            under_way.append(self._context.writers.submit(contextvars.copy_context().run, self._apply, outcomes))
            if len(under_way) == _WRITTEN_AT_ONCE:
                under_way.popleft().result()

        try:
            yield self._apply if self._options.run_id is None else write
            while under_way:
                under_way.popleft().result()
        finally:
            wait(under_way)

    def _fetch_safely(self, fence: Fence) -> Fetched:
        """Fetch without ever raising: the consumer would wait for the answer for ever."""
        with binding(target=str(fence.target)):
            try:
                if self._context.stop.is_set():
                    return Fetched(fence, None)
                if self._breaker.is_open:
                    down = GatewayUnreachable("not asked: the gateway is down", code="gateway_down", attempts=0)
                    return Fetched(fence, down)
                fetched = self._fetch_confirmed(fence)
                self._breaker.saw(None)
                return fetched
            except Interrupted:
                return Fetched(fence, None)
            except GatewayError as error:
                self._breaker.saw(error)
                return Fetched(fence, error)
            except Exception:
                get_logger(__name__).exception("target_crashed")
                return Fetched(fence, Malformed("the answer could not be handled; the log says more", code="internal"))
            finally:
                self._context.arrived()

    def _fetch_confirmed(self, fence: Fence) -> Fetched:
        """Ask over a kept connection; if the list is not the known one, ask again over a separate connection.

        Where most lists have changed, the kept connection is left out. A target whose answer is shorter than the known
        list is asked again at the end of the run anyway: until then the answer is only counted. One that differs
        otherwise is read a second time, strictly. Raises Malformed.
        """
        fetch = partial(self._context.gateway.fetch, fence.target, asked_as=fence.asked_as)
        decided_anyway = fence.held or not fence.version or self._options.approval is not None
        is_first = not decided_anyway and self._options.second is None
        known = None if decided_anyway else fence.data_hash
        snapshot = fetch(known, own_connection=not is_first or self._changing >= _CHANGING)
        differs = not _is_as_before(fence, snapshot)
        if is_first:
            with self._counting:
                self._changing = max(0, min(self._changing + (1 if differs else -1), 2 * _CHANGING))
        if differs and is_first and len(snapshot.flows or ()) < fence.flow_count:
            return Fetched(fence, _without_bytes(msgspec.structs.replace(snapshot, sole_answer=False)), differs=True)
        if differs and not snapshot.sole_answer:
            first = _without_bytes(snapshot)
            del snapshot  # the second answer may be as large
            snapshot = fetch(known, own_connection=True, before=first)
            differs = snapshot.data_hash == first.data_hash or not _is_as_before(fence, snapshot)
        if not differs:
            return Fetched(fence, _without_bytes(msgspec.structs.replace(snapshot, flows=None)))
        reread_strictly(snapshot)
        kept = answers.kept(snapshot.data_hash, bytes(snapshot.data)) if self._context.keeps_answers else None
        return Fetched(fence, _without_bytes(snapshot, kept), differs=True)

    def _decide_group(self, group: Sequence[Fetched]) -> list[Outcome]:
        self._decider.answered(fetched.fence.target for fetched in group)
        outcomes, differing = list[Outcome](), list[tuple[Fence, Snapshot]]()
        for fence, answer, differs in group:
            if answer is None:
                self._tally.interrupted += 1
            elif isinstance(answer, GatewayError):
                outcomes.append(verdict.failed(fence, answer))
            elif differs:
                differing.append((fence, answer))
            else:
                outcomes.append(verdict.unchanged(fence, answer, fence.coverage_gap))
        states = self._context.store.states([fence.target_id for fence, _ in differing if fence.version])
        known = [(fence, states.get(fence.target_id, State({})), snapshot) for fence, snapshot in differing]
        return [*outcomes, *self._decider.outcomes(known)]

    def _apply(self, outcomes: Sequence[Outcome]) -> None:
        if not outcomes:
            return
        if self._options.run_id is None:
            self._context.planned(outcomes)
            self._tally.add(outcomes)
            self._decider.written(outcomes)
            return
        try:
            stale = self._context.store.apply(self._options.run_id, outcomes, self._decider.removals)
        except TooManyRemovals as found:
            self._apply(self._decider.held_instead(outcomes, found.sums))
        except (DatabaseUnreachable, DatabaseDamaged):
            raise
        except DatabaseError as error:
            self._apply_apart(outcomes, error)
        else:
            self._decider.written(outcomes)
            with self._counting:
                self._tally.add([_as_stale(o) if o.fence.target_id in stale else o for o in outcomes])

    def _apply_apart(self, outcomes: Sequence[Outcome], error: DatabaseError) -> None:
        """The database refused a group: halve it until the refused target is alone, and write the others."""
        if len(outcomes) > 1:
            half = len(outcomes) // 2
            self._apply(outcomes[:half])
            self._apply(outcomes[half:])
        elif outcomes[0].verdict != "failed":
            refused = Malformed(f"the answer could not be stored: {error}", code="not_stored")
            self._apply([verdict.failed(outcomes[0].fence, refused)])
        else:
            raise error


def _without_bytes(snapshot: Snapshot, kept: KeptAnswer | None = None) -> Snapshot:
    """What is to be decided on: many of them are in memory at once."""
    return msgspec.structs.replace(snapshot, body=b"", data=b"", kept=kept)


def _is_as_before(fence: Fence, snapshot: Snapshot) -> bool:
    if snapshot.flows is None:
        return True
    return not fence.held and fence.version > 0 and answer_digest_of(snapshot) == fence.answer_digest


def _as_stale(outcome: Outcome) -> Outcome:
    issue = outcome.issue or Issue(None, STALE)
    return msgspec.structs.replace(outcome, verdict="stale", change_set=None, hash=None, issue=issue)
