"""Who works on the batches of a run: threads of this process, or processes elsewhere while they can be reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from typing import Any, Final, Protocol, cast

import structlog

from etl.errors import ClusterError
from etl.model import Target
from etl.sync.batch import Batch, Breaker, Kit
from etl.sync.order import Order, Settled
from etl.sync.report import Problematic

_WINDOW: Final = 3
"""Batches given to the executor at once: enough to keep it busy, few enough to bound memory."""


class Elsewhere(Protocol):
    """Other processes, which settle batches with kits of their own."""

    def submit(self, order: Order, targets: Sequence[Target]) -> Future[Any]:
        """Have a batch settled."""

    def result(self, future: Future[Any]) -> Settled:
        """What became of a batch. Raises ClusterError where that cannot be known."""

    def window(self) -> int:
        """As many batches keep all of them busy."""


class Crew:
    """Takes batches for a run, and goes on alone when the others are lost."""

    def __init__(self, kit: Kit, executor: Executor, elsewhere: Elsewhere | None = None) -> None:
        self.breaker = Breaker(kit.down_after)
        self._kit = kit
        self._executor = executor
        self._elsewhere = elsewhere
        self._is_again = elsewhere is not None
        self._away: dict[Future[Any], Elsewhere] = {}

    def submit(self, order: Order, targets: Sequence[Target]) -> Future[Any]:
        """Have a batch settled."""
        if self._elsewhere is not None:
            future = self._elsewhere.submit(order, targets)
            self._away[future] = self._elsewhere
            return future
        if self._is_again:
            return self._executor.submit(settle_the_rest, self._kit, order, self.breaker, targets)
        return self._executor.submit(Batch(self._kit, order, self.breaker).settle, targets)

    def window(self) -> int:
        """So many batches may be under way."""
        return _WINDOW if self._elsewhere is None else self._elsewhere.window()

    def result(self, future: Future[Any]) -> Settled | None:
        """What became of a batch; None where it was lost with the others and is to be submitted once more."""
        if future not in self._away:
            return cast(Settled, future.result())
        elsewhere = self._away.pop(future)
        try:
            settled = elsewhere.result(future)
        except ClusterError as error:
            if self._elsewhere is not None:
                structlog.get_logger(__name__).warning("cluster_lost", error=str(error), rest="is done here")
            self._elsewhere = None
            return None
        for _ in range(settled.tally.settled + settled.found.unsettled):
            self._kit.arrived()
        return settled


def settle_the_rest(kit: Kit, order: Order, breaker: Breaker, targets: Sequence[Target]) -> Settled:
    """Settle a batch that somebody may have begun, and whose process was killed: what the run has already is counted
    as it was written, and only the others are asked. (Who was asked and found unchanged left no trace of the run.)"""
    done = {} if order.run_id is None else kit.store.written_by(order.run_id, targets)
    settled = Batch(kit, order, breaker).settle([target for target in targets if target not in done])
    missing = Counter(settled.found.missing)
    for target, written in done.items():
        settled.tally.verdicts[written.verdict] += 1
        settled.tally.changes.update(written.changes)
        missing[target.org_id] += written.changes.get("removed", 0)
        if written.issue is not None:
            settled.tally.tell([Problematic(target, written.verdict, written.issue)])
            missing[target.org_id] += written.issue.missing
    return settled._replace(found=settled.found._replace(missing=missing))
