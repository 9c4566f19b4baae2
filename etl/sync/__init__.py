"""The recipe: evidence first, then batches (read fences, ask, judge, apply), then again who loses something."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any, Final, NamedTuple

import msgspec
import structlog

from etl.domain.holds import Approval
from etl.errors import DatabaseError
from etl.model import Outcome, Target
from etl.store import NewRun
from etl.sync.batch import BATCH_SIZE, Batch, Breaker, Kit
from etl.sync.crew import Crew, Elsewhere, settle_the_rest
from etl.sync.order import Order, Settled
from etl.sync.removals import RunRemovals, SecondLook
from etl.sync.report import Problematic, RunReport, Tally
from etl.sync.telling import Telling

__all__ = [
    "Breaker",
    "Elsewhere",
    "Kit",
    "Order",
    "Problematic",
    "RunReport",
    "Settled",
    "Tally",
    "Telling",
    "plan",
    "run",
    "settle_the_rest",
]

_HEARTBEAT_SECONDS: Final = 20.0


def run(
    kit: Kit,
    new_run: NewRun,
    targets: Sequence[Target],
    coverage_gap: dt.timedelta,
    executor: Executor,
    *,
    clock: Callable[[], dt.datetime],
    own_gap: Callable[[Target], dt.timedelta | None] = lambda target: None,
    approval: Approval | None = None,
    elsewhere: Elsewhere | None = None,
) -> RunReport | None:
    """One run over ``targets``, each once; None where its slot has been taken by another run.

    ``own_gap`` knows the targets whose coverage gap is not ``coverage_gap``. Batches run in ``executor``, or
    ``elsewhere``; if that is lost on the way, the rest runs here.
    Raises DatabaseUnreachable where the database has gone for good: whatever was applied stays, and the run is
    declared dead by the next one.
    """
    began = time.monotonic()
    run_id = kit.store.begin_run(new_run, clock())
    if run_id is None:
        return None
    order = Order(run_id=run_id, coverage_gap=coverage_gap, approval=approval)
    with structlog.contextvars.bound_contextvars(run_id=run_id), _heartbeat(kit, run_id):
        tally = _settle(kit, order, targets, own_gap, Crew(kit, executor, elsewhere))
    status = tally.status(aborted=kit.stop.is_set() and tally.settled < len(targets))
    if not kit.store.finish_run(run_id, status, tally.sums(), clock()):
        status = "aborted"
    return RunReport(
        run_id=run_id,
        status=status,
        duration_seconds=time.monotonic() - began,
        targets=len(targets),
        tally=tally,
        notes=_notes(tally),
    )


def plan(
    kit: Kit,
    targets: Sequence[Target],
    coverage_gap: dt.timedelta,
    executor: Executor,
    planned: Callable[[Sequence[Outcome]], None],
) -> Tally:
    """What a run would do now; writes nothing. ``planned`` gets the outcomes as they come, from several threads."""
    order = Order(run_id=None, coverage_gap=coverage_gap)
    kit = msgspec.structs.replace(kit, planned=planned)
    return _settle(kit, order, targets, lambda target: None, Crew(kit, executor))


class _Work(NamedTuple):
    """A batch, with what is wanted of it."""

    order: Order
    targets: Sequence[Target]
    start: int = 0
    """The number of its first target among the run's, where all are asked for the first time."""


_OwnGap = Callable[[Target], dt.timedelta | None]


def _settle(kit: Kit, order: Order, targets: Sequence[Target], own_gap: _OwnGap, crew: Crew) -> Tally:
    """Ask for everybody, then once more for those whose answer is uncertain, which are judged together."""
    tally = Tally()
    removals = RunRemovals(targets, kit.limits, lambda orgs: kit.store.removals(order.run_id, orgs, kit.limits))
    for work, settled in _in_window(crew, _first_works(order, targets, own_gap), kit.stop):
        tally.merge(settled.tally)
        removals.add_first(enumerate(work.targets, work.start), settled.found)
    again = () if kit.stop.is_set() else _second_works(order, removals, own_gap)
    for work, settled in _in_window(crew, again, kit.stop):
        tally.merge(settled.tally)
        tally.asked_again += len(work.targets)
        assert work.order.second is not None  # noqa: S101 - it was asked a second time
        removals.add_second(work.order.second, settled.found)
        undecided, look = removals.take_decided()
        if kit.stop.is_set():
            tally.interrupted += len(undecided)
        elif undecided:
            its_order = _with_gaps(order, [each.fence.target for each in undecided], own_gap, look)
            tally.merge(Batch(kit, its_order, crew.breaker).decide(undecided).tally)
    tally.interrupted += removals.unsettled
    return tally


def _first_works(order: Order, targets: Sequence[Target], own_gap: _OwnGap) -> Iterator[_Work]:
    for start in range(0, len(targets), BATCH_SIZE):
        batch = targets[start : start + BATCH_SIZE]
        yield _Work(_with_gaps(order, batch, own_gap), batch, start)


def _second_works(order: Order, removals: RunRemovals, own_gap: _OwnGap) -> Iterator[_Work]:
    for batch, look in removals.batches(BATCH_SIZE):
        yield _Work(_with_gaps(order, batch, own_gap, look), batch)


def _with_gaps(order: Order, targets: Iterable[Target], own_gap: _OwnGap, look: SecondLook | None = None) -> Order:
    """The order for these targets: small, whatever the run has."""
    gaps = {target: gap for target in targets if (gap := own_gap(target)) is not None}
    return msgspec.structs.replace(order, gaps=gaps, second=look)


def _in_window(crew: Crew, works: Iterable[_Work], stop: threading.Event) -> Iterator[tuple[_Work, Settled]]:
    """Results as they come, with at most a window of work handed out; a stop hands out no more."""
    pending: dict[Future[Any], _Work] = {}
    try:
        for work in works:
            if stop.is_set():
                break
            pending[crew.submit(work.order, work.targets)] = work
            if len(pending) >= crew.window():
                yield from _some(crew, pending)
        while pending:
            yield from _some(crew, pending)
    finally:
        # Nobody goes on writing for a run that has ended, however it did.
        wait([future for future in pending if not future.cancel()])


def _some(crew: Crew, pending: dict[Future[Any], _Work]) -> Iterator[tuple[_Work, Settled]]:
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        work = pending.pop(future)
        settled = crew.result(future)
        if settled is not None:
            yield work, settled
        else:
            pending[crew.submit(work.order, work.targets)] = work


@contextlib.contextmanager
def _heartbeat(kit: Kit, run_id: int) -> Iterator[None]:
    """Say from a timer that the run lives, however slow the gateway is."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(_HEARTBEAT_SECONDS):
            with contextlib.suppress(DatabaseError):
                kit.store.beat(run_id)

    timer = threading.Thread(target=beat, name=f"heartbeat-{run_id}", daemon=True)
    timer.start()
    try:
        yield
    finally:
        over.set()
        timer.join()


def _notes(tally: Tally) -> tuple[str, ...]:
    notes = []
    if tally.unknown_cycles:
        named = ", ".join(sorted(map(repr, tally.unknown_cycles))[:5])
        notes.append(f"EnOS sent a cycle that its documentation does not name: {named}; stored as it is")
    if tally.clock_went_back:
        notes.append(
            f"the clock went back since the observation before of {tally.clock_went_back} targets; "
            "their times continue just after it"
        )
    return tuple(notes)
