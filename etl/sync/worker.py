"""What runs on the workers of a Dask cluster; imported only where Dask is installed.

The functions that take a ``dask_worker`` are called on every worker by ``Client.run``; ``settle`` is a task.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Final

from distributed import WorkerPlugin, get_worker
from distributed.utils import sync

from etl.domain.model import Target
from etl.errors import ClusterError, FlowtrailError
from etl.sync.batch import Batch, CircuitBreaker, RunContext
from etl.sync.cluster import BatchTask, Coordinator, WorkerApplication
from etl.sync.result import BatchResult, RunOptions, Tally

_RUNS_KEPT: Final = 100
"""How many runs' circuit breakers are kept."""
_IDLE_SECONDS: Final = 600.0
"""How long a worker keeps what it built for a coordinator that has gone silent and may have been killed."""


class CoordinatorPlugin(WorkerPlugin):
    """What a worker keeps for one coordinator: an application of its own, built when it is first needed.

    Dask keeps it in ``worker.plugins`` under the coordinator's token, and tears it down with the worker. It is not
    registered with the scheduler, which would keep it for ever if the coordinator were killed.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._lock = threading.Lock()
        self._app: WorkerApplication | None = None
        self._context: RunContext | None = None
        self._breaker_of = lru_cache(_RUNS_KEPT)(self._new_breaker)
        self._stopped = False
        self._busy = 0
        self._used_at = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def setup(self, worker: Any) -> None:
        """Check from time to time whether the coordinator still asks for anything."""
        self._timer = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._remove_if_idle, worker)

    async def teardown(self, worker: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.to_thread(self.close)

    def build(self) -> RunContext:
        """The context for batches. Raises ClusterError, in one sentence, if this machine lacks something."""
        with self._lock:
            if self._context is None:
                with _one_sentence():
                    self._app = self._coordinator.build(self._coordinator.policy)
                    self._context = self._app.run_context()
                if self._stopped:
                    self._app.stop.set()
            return self._context

    def settle(self, options: RunOptions, targets: Sequence[Target]) -> BatchResult:
        """Settle a batch. Raises ClusterError."""
        if self._stopped:
            return BatchResult(Tally(interrupted=len(targets)))
        with self._in_use(), _one_sentence():
            context = self.build()
            with self._lock:
                breaker = self._breaker_of(context, options.run_id)
            return Batch(context, options, breaker).settle_remaining(targets)

    def stop(self) -> None:
        """Stop as the coordinator does: complete answers are committed, the rest is abandoned."""
        self._stopped = True
        if (app := self._app) is not None:
            app.stop.set()

    def close(self) -> None:
        self.stop()
        with self._lock:
            if self._app is not None:
                self._app.close()

    def _new_breaker(self, context: RunContext, run_id: int | None) -> CircuitBreaker:
        who = self._coordinator
        if run_id is not None and not context.store.is_running(run_id, who.host, who.pid):
            raise ClusterError(f"its database has no run {run_id} of {who.host}: it is another one, or the run ended.")
        return CircuitBreaker(context.down_after)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                self._used_at = time.monotonic()

    def _remove_if_idle(self, worker: Any) -> None:
        silent_seconds = time.monotonic() - self._used_at
        if not self._busy and silent_seconds >= _IDLE_SECONDS:
            self._removal = asyncio.ensure_future(worker.plugin_remove(self._coordinator.token))
        else:
            self.setup(worker)


def settle(task: BatchTask) -> BatchResult:
    """Settle a batch; a task of the cluster. Raises ClusterError if the coordinator runs another release."""
    if task.version != our_version():
        raise ClusterError(f"it has Flowtrail {our_version()}, not {task.version}: install the same.")
    worker = get_worker()
    plugin = sync(worker.loop, _plugin_of, worker, task.coordinator)
    return plugin.settle(task.options, task.targets)


async def get_ready(coordinator: Coordinator, dask_worker: Any) -> None:
    """Build what a batch needs, so that problems are reported before a run begins. Raises ClusterError."""
    plugin = await _plugin_of(dask_worker, coordinator)
    await asyncio.to_thread(plugin.build)


async def stop(coordinator: Coordinator, dask_worker: Any) -> None:
    """The coordinator stops; a worker that has not begun to work for it must not begin."""
    (await _plugin_of(dask_worker, coordinator)).stop()


async def forget(coordinator: Coordinator, dask_worker: Any) -> None:
    """Drop everything of a coordinator that has ended."""
    if coordinator.token in dask_worker.plugins:
        await dask_worker.plugin_remove(coordinator.token)


async def _plugin_of(worker: Any, coordinator: Coordinator) -> CoordinatorPlugin:
    """The coordinator's plugin on this worker. There is only one: all callers are on the worker's event loop, and
    nothing here waits."""
    if coordinator.token not in worker.plugins:
        await worker.plugin_add(CoordinatorPlugin(coordinator), coordinator.token, catch_errors=False)
    plugin: CoordinatorPlugin = worker.plugins[coordinator.token]
    return plugin


def our_version() -> str:
    """The release of Flowtrail that is installed here."""
    return version("flowtrail")


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    """Send an error back as one sentence, without its cause."""
    try:
        yield
    except FlowtrailError as error:
        raise ClusterError(" ".join(str(error).split())) from None
