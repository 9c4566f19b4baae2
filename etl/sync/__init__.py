"""The recipe: evidence first, then batches (read fences, ask, judge, apply), then the targets that became empty."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Final

import structlog

from etl import guard
from etl.errors import DatabaseError
from etl.model import Outcome, Target
from etl.store import NewRun
from etl.sync.batch import BATCH_SIZE, Batch, Breaker, Emptied, Kit, Order, Settled
from etl.sync.report import Problematic, RunReport, Tally
from etl.sync.telling import Telling

__all__ = ["Kit", "Order", "Problematic", "RunReport", "Tally", "Telling", "plan", "run"]

_HEARTBEAT_SECONDS: Final = 20.0
_WINDOW: Final = 3
"""Batches given to the executor at once: enough to keep it busy, few enough to bound memory."""


def run(
    kit: Kit,
    new_run: NewRun,
    targets: Sequence[Target],
    coverage_gap: dt.timedelta,
    executor: Executor,
    *,
    clock: Callable[[], dt.datetime],
    gaps: Mapping[Target, dt.timedelta] | None = None,
    approved_by: str | None = None,
) -> RunReport | None:
    """One run over ``targets``, each once; None where its slot has been taken by another run.

    Raises DatabaseUnreachable where the database has gone for good: whatever was applied stays, and the run is
    declared dead by the next one.
    """
    began = time.monotonic()
    run_id = kit.store.begin_run(new_run, clock())
    if run_id is None:
        return None
    order = Order(run_id=run_id, coverage_gap=coverage_gap, gaps=gaps or {}, approved_by=approved_by)
    with structlog.contextvars.bound_contextvars(run_id=run_id), _heartbeat(kit, run_id):
        tally, _ = _settle(kit, order, targets, executor)
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
    kit: Kit, targets: Sequence[Target], coverage_gap: dt.timedelta, executor: Executor
) -> tuple[Tally, Sequence[Outcome]]:
    """What a run would do now; writes nothing."""
    return _settle(kit, Order(run_id=None, coverage_gap=coverage_gap), targets, executor)


def _settle(kit: Kit, order: Order, targets: Sequence[Target], executor: Executor) -> tuple[Tally, Sequence[Outcome]]:
    tally, emptied, planned = Tally(), list[Emptied](), list[Outcome]()
    breaker = Breaker(kit.down_after)
    work = (lambda batch=batch: Batch(kit, order, breaker).settle(batch) for batch in _batches(targets))
    for settled in _in_window(executor, work, kit.stop):
        tally.merge(settled.tally)
        emptied += settled.emptied
        planned += settled.outcomes
    if emptied and not kit.stop.is_set():
        decided = _decide_emptied(kit, order, breaker, emptied, tally.emptied + len(emptied), len(targets))
        tally.merge(decided.tally)
        planned += decided.outcomes
    return tally, planned


def _decide_emptied(
    kit: Kit, order: Order, breaker: Breaker, emptied: Sequence[Emptied], of_all: int, targets: int
) -> Settled:
    believe = not guard.too_many_emptied(of_all, targets, kit.limits)
    return Batch(kit, order, breaker).decide(emptied, believe)


def _batches(targets: Sequence[Target]) -> Iterator[Sequence[Target]]:
    return (targets[start : start + BATCH_SIZE] for start in range(0, len(targets), BATCH_SIZE))


def _in_window(executor: Executor, work: Iterable[Callable[[], Settled]], stop: threading.Event) -> Iterator[Settled]:
    """Results as they come, with at most a window of work handed out; a stop hands out no more."""
    pending: set[Future[Settled]] = set()
    try:
        for each in work:
            if stop.is_set():
                break
            pending.add(executor.submit(each))
            if len(pending) >= _WINDOW:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        # Nobody goes on writing for a run that has ended, however it did.
        wait([future for future in pending if not future.cancel()])


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
