"""A run: its row first, then its batches, then the targets that lose or change much once more."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Final, NamedTuple

import msgspec

from etl.domain.approvals import Approval
from etl.domain.model import Outcome, RunStatus, Target
from etl.errors import ClusterError, DatabaseError, RunClosed
from etl.log import binding, get_logger
from etl.store import CHANGES_WITH_DETAILS, NewRun
from etl.sync.batch import BATCH_SIZE, Batch, CircuitBreaker, RunContext
from etl.sync.cluster import Cluster
from etl.sync.details import DetailLimits, ask_for_details
from etl.sync.removals import RunRemovals
from etl.sync.result import BatchResult, Details, RunOptions, RunReport, Tally
from etl.system.background import BackgroundLoop

_HEARTBEAT_SECONDS: Final = 20.0
_WINDOW: Final = 3
"""Batches given to the executor at once: enough to keep it busy, and few enough to bound memory."""


def run(
    context: RunContext,
    new_run: NewRun,
    targets: Sequence[Target],
    executor: Executor,
    *,
    clock: Callable[[], dt.datetime],
    approval: Approval | None = None,
    remote: Cluster | None = None,
    details: DetailLimits | None = None,
) -> RunReport | None:
    """One run over ``targets``, each once; None if another run has its slot already.

    ``details`` limits the details that are asked for workflows that changed (None: none). Batches run in
    ``executor``, or on ``remote``; if that is lost, the rest runs here.
    Raises DatabaseUnreachable if the database has gone for good: whatever was applied stays, and the next run declares
    this one dead.
    """
    began, began_at, slowed = time.monotonic(), clock(), context.gateway.slowed_seconds
    run_id = context.store.begin_run(new_run, began_at, targets)
    if run_id is None:
        return None
    options = RunOptions(run_id=run_id, began_at=began_at, asked_as=new_run.asked_as, approval=approval)
    with binding(run_id=run_id), _heartbeat(context, run_id):
        tally, fetched_details = Tally(), None
        status: RunStatus = "aborted"
        with contextlib.suppress(RunClosed):
            dispatcher = Dispatcher(context, executor, remote)
            _settle(context, options, targets, dispatcher, tally)
            # A worker that was thought dead may write until the run is closed; nobody else does.
            judges = remote is not None or tally.changes or context.store.due_organisations(run_id, clock())
            if not judges or context.store.close_run(run_id, clock()):
                if dispatcher.was_lost and not context.stop.is_set():
                    tally.recount(context.store.recount(run_id).sums, len(targets))
                if judges:
                    _derive_events(context, run_id, began_at, clock)
                fetched_details = _details(context, run_id, tally, details)
                status = _seal(context, run_id, tally, len(targets), clock, closes=not judges)
    return RunReport(
        run_id=run_id,
        status=status,
        duration_seconds=time.monotonic() - began,
        targets=len(targets),
        tally=tally,
        details=fetched_details,
        notes=_notes(tally, context.gateway.slowed_seconds - slowed),
    )


def _seal(
    context: RunContext, run_id: int, tally: Tally, targets: int, clock: Callable[[], dt.datetime], *, closes: bool
) -> RunStatus:
    """End a run: not before the latest time that it recorded, whatever the clock says. ``closes``: it is open yet."""
    status = tally.status(aborted=context.stop.is_set() and tally.settled < targets)
    now = clock()
    at = max(now, tally.latest_at or now)
    sealed = context.store.seal_run(run_id, status, tally.sums(), at, closes=closes)
    return status if sealed else "aborted"


def _derive_events(context: RunContext, run_id: int, began_at: dt.datetime, clock: Callable[[], dt.datetime]) -> None:
    """Derive the organisations' events. An error here fails no run: the next run judges the versions too."""
    try:
        context.store.derive_events(run_id, began_at, clock)
    except (DatabaseError, RunClosed):
        raise
    except Exception:
        get_logger(__name__).exception("story_not_judged")


def _details(context: RunContext, run_id: int, tally: Tally, limits: DetailLimits | None) -> Details | None:
    """After closing and before the seal: ask what EnOS says about the workflows that changed."""
    if limits is None:
        return None
    if context.stop.is_set() or not any(tally.changes[kind] for kind in CHANGES_WITH_DETAILS):
        return Details()
    return ask_for_details(context, run_id, limits)


def plan(
    context: RunContext,
    targets: Sequence[Target],
    executor: Executor,
    planned: Callable[[Sequence[Outcome]], None],
    asked_as: Mapping[str, str] = {},
) -> Tally:
    """What a run would do now; writes nothing. ``planned`` gets the outcomes as they come, from several threads.
    ``asked_as``: by organisation, the user as whom its directory is asked for."""
    options = RunOptions(run_id=None, asked_as=asked_as)
    context = msgspec.structs.replace(context, planned=planned)
    tally = Tally()
    _settle(context, options, targets, Dispatcher(context, executor), tally)
    return tally


class _Work(NamedTuple):
    """A batch, and the options to settle it with."""

    options: RunOptions
    targets: Sequence[Target]
    start: int = 0
    """The index of its first target in the run, for a batch of first answers."""


def _settle(
    context: RunContext,
    options: RunOptions,
    targets: Sequence[Target],
    dispatcher: Dispatcher,
    tally: Tally,
) -> None:
    """Ask for all targets, then again for those with an uncertain answer; second answers are decided on together."""
    removals = RunRemovals(
        targets,
        context.limits,
        lambda orgs: context.store.removals(options.run_id, orgs, context.limits),
        context.store.listed_workflows,
    )
    for work, settled in dispatcher.results(_first_batches(options, targets)):
        tally.merge(settled.tally)
        removals.add_first(enumerate(work.targets, work.start), settled.found)
    again = () if context.stop.is_set() else _second_batches(options, removals)
    for work, settled in dispatcher.results(again):
        tally.merge(settled.tally)
        tally.asked_again += len(work.targets)
        assert work.options.second is not None  # noqa: S101 - it was asked a second time
        removals.add_second(work.options.second, settled.found)
        undecided, second_answers = removals.take_decided()
        if context.stop.is_set():
            tally.interrupted += len(undecided)
        elif undecided:
            its_options = msgspec.structs.replace(options, second=second_answers)
            tally.merge(Batch(context, its_options, dispatcher.breaker).decide(undecided).tally)
    tally.interrupted += removals.unsettled


def _first_batches(options: RunOptions, targets: Sequence[Target]) -> Iterator[_Work]:
    for start in range(0, len(targets), BATCH_SIZE):
        yield _Work(options, targets[start : start + BATCH_SIZE], start)


def _second_batches(options: RunOptions, removals: RunRemovals) -> Iterator[_Work]:
    for targets, second_answers in removals.batches(BATCH_SIZE):
        yield _Work(msgspec.structs.replace(options, second=second_answers), targets)


class Dispatcher:
    """Hands out the batches of a run, to threads here or to a cluster, and continues here when the cluster is lost."""

    def __init__(self, context: RunContext, executor: Executor, remote: Cluster | None = None) -> None:
        self.breaker = CircuitBreaker(context.down_after)
        self._context = context
        self._executor = executor
        self._remote = remote
        self._began_remotely = remote is not None
        self._under_way: dict[Future[BatchResult], tuple[_Work, Cluster | None]] = {}

    @property
    def was_lost(self) -> bool:
        """Whether batches were lost with the cluster. Its workers may still have written for the run."""
        return self._began_remotely and self._remote is None

    def results(self, works: Iterable[_Work]) -> Iterator[tuple[_Work, BatchResult]]:
        """The results as they come, with a bounded number of batches under way; after a stop no more begin."""
        try:
            for work in works:
                if self._context.stop.is_set():
                    break
                self._submit(work)
                if len(self._under_way) >= (_WINDOW if self._remote is None else self._remote.window()):
                    yield from self._completed()
            while self._under_way:
                yield from self._completed()
        finally:
            # No batch may go on writing for a run that has ended, however it ended.
            wait([future for future in self._under_way if not future.cancel()])

    def _submit(self, work: _Work) -> None:
        options, targets, _ = work
        if self._remote is not None:
            future = self._remote.submit(options, targets)
        else:
            here = Batch(self._context, options, self.breaker)
            future = self._executor.submit(here.settle_remaining if self._began_remotely else here.settle, targets)
        self._under_way[future] = work, self._remote

    def _completed(self) -> Iterator[tuple[_Work, BatchResult]]:
        """What has come; a batch that was lost with the cluster is submitted again."""
        done, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
        for future in done:
            work, remote = self._under_way.pop(future)
            try:
                settled = future.result() if remote is None else remote.result(future)
            except ClusterError as error:
                if self._remote is not None:
                    get_logger(__name__).warning("cluster_lost", error=str(error), rest="is done here")
                self._remote = None
                self._submit(work)
                continue
            if remote is not None:
                for _ in range(settled.tally.settled + settled.found.unsettled):
                    self._context.arrived()
            yield work, settled


@contextlib.contextmanager
def _heartbeat(context: RunContext, run_id: int) -> Iterator[None]:
    """Renew the heartbeat of the run while the block runs."""

    def beat() -> float:
        with contextlib.suppress(DatabaseError):
            context.store.beat(run_id)
        return _HEARTBEAT_SECONDS

    with BackgroundLoop(f"heartbeat-{run_id}", beat, first_after_seconds=_HEARTBEAT_SECONDS):
        yield


def _notes(tally: Tally, slowed_seconds: float) -> tuple[str, ...]:
    notes = []
    if slowed_seconds > 0:
        notes.append(f"the gateway had too much to do, so all requests together paused for {slowed_seconds:.1f} s")
    if tally.unknown_cycles:
        named = ", ".join(sorted(map(repr, tally.unknown_cycles))[:5])
        notes.append(f"EnOS sent a cycle that its documentation does not name: {named}; stored as it is")
    if tally.clock_went_back:
        notes.append(
            f"the clock went back since the observation before of {tally.clock_went_back} targets; "
            "their times continue just after it"
        )
    return tuple(notes)
