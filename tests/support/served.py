"""A service in a thread of this process, over a real database, with a clock that a test may set."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from sqlalchemy import Engine

from etl.config import Schedule
from etl.domain.model import Flow, Target
from etl.service.replica import Service
from etl.service.runs import Identity, KnownSchedules, ScheduleRuns
from etl.store import Store
from etl.sync import RunReport
from tests.support.builders import flow, run_context
from tests.support.questions import Upstream

PATIENCE_SECONDS = 60


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for something that another thread does without notice."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(0.01)


class Clock:
    """The real time, with an offset that a test sets."""

    def __init__(self) -> None:
        self.offset = dt.timedelta(0)

    def __call__(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC) + self.offset


class Served:
    """A service in a thread of this process, until the block ends, and the runs that have ended."""

    def __init__(
        self,
        engine: Engine,
        schedules: Sequence[Schedule] | Callable[[], Sequence[Schedule]],
        clock: Clock,
        asked: Callable[[Target], object] = lambda target: None,
    ) -> None:
        """``schedules``: what is read at the start and at each reload. All have one list; ``asked`` is called with each
        target before its answer."""
        self.schedules = schedules
        self._news = threading.Condition()
        self._ended: list[str] = []
        self._resources = contextlib.ExitStack()
        stop = threading.Event()

        def one_list(target: Target, n: int) -> list[Flow]:
            asked(target)
            return [flow(1, "one")]

        gateway = Upstream({})
        gateway.clock, gateway.says = clock, one_list
        context, batches = self._resources.enter_context(run_context(Store(engine, stop), gateway, stop=stop))
        runs = ScheduleRuns(
            context,
            Identity("here", 1, "test"),
            coverage_gap=dt.timedelta(hours=36),
            batches=batches,
            clock=clock,
            finished=self._finished,
        )
        known = KnownSchedules(lambda: self.schedules() if callable(self.schedules) else self.schedules)
        self.service = Service(runs, known, grace=dt.timedelta(seconds=10), max_retired_share=0.2)
        self._thread = threading.Thread(target=self.service.serve, daemon=True)
        self._thread.start()

    def _finished(self, report: RunReport, schedule: Schedule) -> None:
        with self._news:
            self._ended.append(schedule.name)
            self._news.notify_all()

    def wait_for_runs(self, count: int) -> list[str]:
        """The schedules of the runs that have ended, once there are so many."""
        with self._news:
            assert self._news.wait_for(lambda: len(self._ended) >= count, PATIENCE_SECONDS), self._ended
            return list(self._ended)

    def wait_for_another_run(self) -> None:
        self.wait_for_runs(len(self._ended) + 1)

    def close(self) -> None:
        self.service.stop()
        self._thread.join(PATIENCE_SECONDS)
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
