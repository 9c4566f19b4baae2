"""Where the batches of a run are settled: in threads of this process, or on a cluster while it is reachable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from typing import Any, Final, Protocol, cast

import structlog

from etl.domain.model import Target
from etl.errors import ClusterError
from etl.sync.batch import Batch, CircuitBreaker, RunContext
from etl.sync.messages import BatchResult, RunOptions
from etl.sync.result import TargetIssue

_WINDOW: Final = 3
"""Batches given to the executor at once: enough to keep it busy, and few enough to bound memory."""


class RemoteExecutor(Protocol):
    """Other processes that settle batches with their own run context."""

    def submit(self, options: RunOptions, targets: Sequence[Target]) -> Future[Any]:
        """Have a batch settled."""

    def result(self, future: Future[Any]) -> BatchResult:
        """The result of a batch. Raises ClusterError if it was lost."""

    def window(self) -> int:
        """How many batches keep them all busy."""


class Dispatcher:
    """Hands out the batches of a run, and continues in this process when the cluster is lost."""

    def __init__(self, context: RunContext, executor: Executor, remote: RemoteExecutor | None = None) -> None:
        self.breaker = CircuitBreaker(context.down_after)
        self._context = context
        self._executor = executor
        self._remote = remote
        self._began_remotely = remote is not None
        self._remote_futures: dict[Future[Any], RemoteExecutor] = {}

    def submit(self, options: RunOptions, targets: Sequence[Target]) -> Future[Any]:
        """Have a batch settled."""
        if self._remote is not None:
            future = self._remote.submit(options, targets)
            self._remote_futures[future] = self._remote
            return future
        if self._began_remotely:
            return self._executor.submit(settle_remaining, self._context, options, self.breaker, targets)
        return self._executor.submit(Batch(self._context, options, self.breaker).settle, targets)

    @property
    def was_lost(self) -> bool:
        """Whether batches were lost with the cluster. Its workers may still have written for the run."""
        return self._began_remotely and self._remote is None

    def window(self) -> int:
        """How many batches may be under way."""
        return _WINDOW if self._remote is None else self._remote.window()

    def result(self, future: Future[Any]) -> BatchResult | None:
        """The result of a batch; None if it was lost with the cluster and has to be submitted again."""
        if future not in self._remote_futures:
            return cast(BatchResult, future.result())
        remote = self._remote_futures.pop(future)
        try:
            settled = remote.result(future)
        except ClusterError as error:
            if self._remote is not None:
                structlog.get_logger(__name__).warning("cluster_lost", error=str(error), rest="is done here")
            self._remote = None
            return None
        for _ in range(settled.tally.settled + settled.found.unsettled):
            self._context.arrived()
        return settled


def settle_remaining(
    context: RunContext, options: RunOptions, breaker: CircuitBreaker, targets: Sequence[Target]
) -> BatchResult:
    """Settle a batch that a process may have begun before it was killed. Targets that this run has written are counted
    as written, and those that it has observed unchanged as unchanged; only the others are asked.

    Of an unchanged target, the only trace of the run is a longer span. If another run may have extended it, the target
    is asked again. The fences are read first: so what a lost process writes after the look makes the answer here stale.
    """
    batch = Batch(context, options, breaker)
    fences = batch.fences(targets)
    done = {} if options.run_id is None else context.store.written_by(options.run_id, targets)
    left = [target for target in targets if target not in done]
    seen = _observed(context, options, left)
    settled = batch.settle_fences([fence for fence in fences if fence.target not in done and fence.target not in seen])
    if seen:
        settled.tally.verdicts["unchanged"] += len(seen)
    missing = Counter(settled.found.missing)
    for target, written in done.items():
        settled.tally.verdicts[written.verdict] += 1
        settled.tally.changes.update(written.changes)
        missing[target.org_id] += written.changes.get("removed", 0)
        if written.issue is not None:
            settled.tally.add_issues([TargetIssue(target, written.verdict, written.issue)])
            missing[target.org_id] += written.issue.missing
    return settled._replace(found=settled.found._replace(missing=missing))


def _observed(context: RunContext, options: RunOptions, targets: Sequence[Target]) -> set[Target]:
    """The targets that the run has observed unchanged. `verify` relies on a run observing a target once; this does not
    apply to second answers."""
    if options.run_id is None or options.began_at is None or options.second is not None:
        return set()
    return context.store.observed_by(options.run_id, options.began_at, targets)
