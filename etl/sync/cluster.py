"""A Dask cluster: batches go to its workers as plain values, and their results come back.

The coordinator sends targets, the options of the run, and the settings except credentials. Each worker process builds
its own run context from its own configuration and environment, once per coordinator: see ``etl.sync.worker``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from importlib.util import find_spec
from typing import Any, Final, Protocol
from weakref import WeakSet

import msgspec

from etl.config import Policy
from etl.domain.model import Target
from etl.errors import ClusterError, FlowtrailError, UsageError
from etl.log import get_logger
from etl.sync.batch import RunContext
from etl.sync.result import BatchResult, RunOptions

_CONNECT_SECONDS: Final = 5.0
_WATCH_SECONDS: Final = 0.25
"""How often to look for a stop, to pass it on to the workers."""
_COUNT_SECONDS: Final = 2.0
"""How often the workers are counted."""
_WORKER_TIMEOUT_SECONDS: Final = 30.0
"""How long a run waits for a worker to appear before it continues on this machine."""
_BATCHES_PER_THREAD: Final = 2
"""Batches under way per worker thread: one in work, one in transit."""


class WorkerApplication(Protocol):
    """What a worker builds from its own configuration and environment."""

    stop: threading.Event

    def run_context(self) -> RunContext: ...
    def close(self) -> None: ...


class Build(Protocol):
    """A module-level function, because it is sent by name. Raises FlowtrailError."""

    def __call__(self, policy: Policy) -> WorkerApplication: ...


class Coordinator(msgspec.Struct, frozen=True, kw_only=True):
    """The process that sends batches, and the settings to settle them with."""

    token: str
    host: str
    pid: int
    build: Build
    policy: Policy


class BatchTask(msgspec.Struct, frozen=True):
    """A request to a worker: settle a batch. ``version`` is the release of the coordinator."""

    version: str
    coordinator: Coordinator
    options: RunOptions
    targets: Sequence[Target]


class Cluster:
    """The workers that a scheduler knows. Safe to use from several threads.

    When ``stop`` is set, the workers stop too: complete answers are committed, the rest is abandoned.
    """

    def __init__(self, address: str, build: Build, policy: Policy, stop: threading.Event) -> None:
        if find_spec("distributed") is None:
            raise UsageError("[scale] dask needs Dask: pip install 'flowtrail[dask]'.")
        from etl.sync import worker  # imports Dask

        self._worker = worker
        self._address = address
        self._stop = stop
        self._coordinator = Coordinator(
            token=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid(), build=build, policy=policy
        )
        self._turn = threading.Lock()
        self._client: Any = None
        self._logged_as = ""
        self._threads = 0
        self._closed = threading.Event()
        self._pending: WeakSet[Future[BatchResult]] = WeakSet()

    def connect(self) -> str:
        """Connect to the scheduler and check every worker; return a description. Raises ClusterError."""
        try:
            with self._turn:
                found = self._check_workers()
        except FlowtrailError:
            raise
        except Exception as error:
            raise ClusterError(f"The cluster {self._address} cannot be used: {_first_line(error)}") from error
        for address, answer in found.items():
            if answer is not None:
                raise ClusterError(f"The worker {address} cannot be used: {_first_line(answer)}")
        if not found:
            raise ClusterError(f"The Dask scheduler {self._address} has no workers: start some with `dask worker`.")
        return f"{self._address}, {len(found)} workers with {self._threads} threads"

    def _check_workers(self) -> dict[str, Any]:
        """The error of each worker, or None; connects first if necessary."""
        if self._client is None or self._client.status != "running":
            self._disconnect()
            self._client = self._connect_client()
            self._pending = WeakSet()
            watch = (self._client, self._pending)
            threading.Thread(target=self._watch, args=watch, name="cluster", daemon=True).start()
        self._count(self._client)
        ours = self._worker.our_version()
        theirs = self._client.run(self._worker.our_version, on_error="return")
        mismatched = {who: found for who, found in theirs.items() if found != ours and not isinstance(found, OSError)}
        if mismatched:
            return {who: ClusterError(f"it has Flowtrail {found}, not {ours}.") for who, found in mismatched.items()}
        answers = self._client.run(self._worker.get_ready, self._coordinator, on_error="return")
        return {who: answer for who, answer in answers.items() if not isinstance(answer, OSError)}  # it is gone

    def connect_if_reachable(self) -> Cluster | None:
        """The connected cluster; or None, with a warning in the log, if it cannot be used now."""
        log = get_logger(__name__)
        try:
            found = self.connect()
        except ClusterError as error:
            log.warning("cluster_unreachable", error=str(error), work="is done here")
            self._logged_as = ""
            return None
        if found != self._logged_as:
            log.info("cluster_reached", cluster=found)
        self._logged_as = found
        return self

    def submit(self, options: RunOptions, targets: Sequence[Target]) -> Future[BatchResult]:
        """Have a worker settle a batch. Dask gives the batches of a killed worker to another."""
        future: Future[BatchResult]
        task = BatchTask(self._worker.our_version(), self._coordinator, options, list(targets))
        try:
            future = self._client.get_executor(pure=False).submit(self._worker.settle, task)
        except Exception as error:
            future = Future()
            future.set_exception(error)
        self._pending.add(future)
        return future

    def result(self, future: Future[BatchResult]) -> BatchResult:
        """The result of a batch. Raises ClusterError if it was lost."""
        try:
            return future.result()
        except CancelledError:
            raise ClusterError(f"The Dask scheduler {self._address} went away, or all its workers.") from None
        except Exception as error:
            raise ClusterError(f"A worker of {self._address} gave up: {_first_line(error)}") from error

    def window(self) -> int:
        """How many batches keep all worker threads busy."""
        return max(2, _BATCHES_PER_THREAD * self._threads)

    def close(self) -> None:
        """Let the workers forget this coordinator."""
        self._closed.set()
        with self._turn, contextlib.suppress(Exception):
            if self._client is not None and self._client.status == "running":
                self._client.run(self._worker.forget, self._coordinator, on_error="ignore")
        self._disconnect()

    def _connect_client(self) -> Any:
        import distributed

        client: Any
        for name in ("distributed", "distributed.client"):  # they log tracebacks for errors that we report ourselves
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            client = distributed.Client(  # type: ignore[no-untyped-call]
                self._address, timeout=_CONNECT_SECONDS, set_as_default=False
            )
        except OSError:
            raise ClusterError(
                f"The Dask scheduler {self._address} cannot be reached: nobody answers within {_CONNECT_SECONDS:.0f} s."
            ) from None
        with contextlib.suppress(distributed.TimeoutError):
            client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
        mismatched = _version_mismatches(client.get_versions())
        if mismatched:
            client.close()
            raise ClusterError(f"The cluster {self._address} runs other versions: {mismatched}; install the same.")
        return client

    def _disconnect(self) -> None:
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.close(timeout=_CONNECT_SECONDS)
            self._client = None

    def _count(self, client: Any) -> None:
        self._threads = sum(client.nthreads().values())

    def _watch(self, client: Any, pending: WeakSet[Future[BatchResult]]) -> None:
        """Pass a stop on to the workers, count them, and cancel batches once the scheduler or all workers are gone."""
        counted_at = alive_at = time.monotonic()
        told_to_stop = False
        while not self._closed.wait(_WATCH_SECONDS) and client is self._client:
            now = time.monotonic()
            with contextlib.suppress(Exception):
                if client.status == "running" and self._stop.is_set() and not told_to_stop:
                    client.run(self._worker.stop, self._coordinator, on_error="ignore")
                    told_to_stop = True
                if client.status == "running" and now - counted_at > _COUNT_SECONDS:
                    counted_at = now
                    self._count(client)
            alive_at = now if self._threads else alive_at
            if client.status != "running" or now - alive_at > _WORKER_TIMEOUT_SECONDS:
                for future in list(pending):
                    future.cancel()


def _first_line(error: object) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, FlowtrailError) else f"{type(error).__name__}: {text}"


def _version_mismatches(versions: Any) -> str:
    """The scheduler and workers with other versions of Python or distributed than this process."""
    ours = _versions(versions["client"])
    others = {"the scheduler": versions["scheduler"], **versions["workers"]}
    return "; ".join(
        f"{who} has {_versions(each)}, not {ours}" for who, each in others.items() if each and _versions(each) != ours
    )


def _versions(info: Any) -> str:
    python = ".".join(str(info["host"]["python"]).split(".")[:2])
    return f"Python {python}, distributed {info['packages']['distributed']}"
