"""Clocks that jump and services that were down: one catch-up, the missed slots counted, and no slot that waits."""

from __future__ import annotations

import datetime as dt
import hashlib
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from builders import run_row
from sqlalchemy import Engine, select

from etl.config import Schedule
from etl.database import reading, writing
from etl.guard import Limits
from etl.model import Flow, Snapshot, Target
from etl.schema import observation, sync_run
from etl.service import Identity, Service
from etl.slots import Cron, Every
from etl.store import Store
from etl.sync import Kit, RunReport
from etl.verify import verify

DAY = dt.timedelta(days=1)
HOUR = dt.timedelta(hours=1)
TARGET = Target("o1", "ann")
PATIENCE_SECONDS = 60


class Clock:
    """The real time, and what somebody has put it wrong by."""

    def __init__(self) -> None:
        self.offset = dt.timedelta(0)

    def __call__(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC) + self.offset


class Gateway:
    """The boundary: always the same list, observed by the given clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def fetch(self, target: Target, known_data_hash: str | None = None, *, own_connection: bool = False) -> Snapshot:
        item = {"flowId": "1", "flowName": "one", "cycle": "D", "editable": True}
        body = msgspec.json.encode({"code": 0, "data": [item]})
        known = hashlib.sha256(msgspec.json.encode([item])).hexdigest()
        flows = None if known == known_data_hash else (Flow("1", "one", "D", True),)
        return Snapshot(target, flows, known, self.clock(), self.clock(), 1, body, own_connection)


class Served:
    """A service in a thread of this process, and the runs that it ended."""

    def __init__(self, engine: Engine, schedule: Schedule, clock: Clock) -> None:
        self.clock = clock
        self._news = threading.Condition()
        self._ended: list[RunReport] = []
        self._fetchers, self._writers, self._batches = (ThreadPoolExecutor(2) for _ in range(3))
        stop = threading.Event()
        kit = Kit(
            store=Store(engine, stop),
            gateway=Gateway(clock),  # type: ignore[arg-type]
            fetchers=self._fetchers,
            writers=self._writers,
            in_flight=self._fetchers._max_workers,
            limits=Limits(),
            down_after=6,
            stop=stop,
        )
        self.service = Service(
            kit,
            Identity("here", 1, "test"),
            lambda: [schedule],
            coverage_gap=dt.timedelta(hours=36),
            grace=dt.timedelta(seconds=10),
            max_retired_share=0.2,
            batches=self._batches,
            clock=clock,
            finished=self._finished,
        )
        self._thread = threading.Thread(target=self.service.serve)
        self._thread.start()

    def _finished(self, report: RunReport, schedule: Schedule) -> None:
        with self._news:
            self._ended.append(report)
            self._news.notify_all()

    def wait_for_another_run(self) -> None:
        with self._news:
            seen = len(self._ended)
            assert self._news.wait_for(lambda: len(self._ended) > seen, PATIENCE_SECONDS)

    def close(self) -> None:
        self.service.stop()
        self._thread.join(PATIENCE_SECONDS)
        for pool in (self._fetchers, self._batches, self._writers):
            pool.shutdown()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def served(engine: Engine, clock: Clock, tmp_path: Path) -> Iterator[Served]:
    every_second = Every(dt.timedelta(seconds=1))
    served = Served(engine, Schedule(name="plants", path=tmp_path, slots=every_second, targets=(TARGET,)), clock)
    yield served
    served.close()


class Run(NamedTuple):
    scheduled_for: dt.datetime
    started_at: dt.datetime
    missed: int
    origin: str


def runs(engine: Engine) -> list[Run]:
    with reading(engine) as connection:
        columns = (sync_run.c[name] for name in Run._fields)
        return [Run(*row) for row in connection.execute(select(*columns).order_by(sync_run.c.id))]


def test_a_clock_that_jumps_back_a_day_or_ahead_ten_years_silences_nothing_and_bursts_nothing(
    served: Served, engine: Engine, clock: Clock
) -> None:
    served.wait_for_another_run()
    for jump in (-DAY, dt.timedelta(0), 3652 * DAY):
        clock.offset = jump
        served.wait_for_another_run()
        served.wait_for_another_run()
    served.close()
    recorded = runs(engine)
    assert len({run.scheduled_for for run in recorded}) == len(recorded)
    assert all(abs(run.started_at - run.scheduled_for) < dt.timedelta(minutes=1) for run in recorded)
    ahead = [run.missed for run in recorded if run.missed > 1000]
    assert len(ahead) == 1, "one run after the jump, however many slots went by"
    assert abs(ahead[0] - 3652 * 86_400) < 120
    with reading(engine) as connection:
        spans = connection.execute(select(observation).order_by(observation.c.id)).all()
    assert all(span.first_at <= span.last_at for span in spans)
    assert list(verify(engine)) == []


@pytest.mark.parametrize(
    "latest",
    [
        pytest.param(-HOUR, id="the clock was ahead, and those slots come now"),
        pytest.param(DAY, id="the clock has been put back into a time with runs"),
    ],
)
def test_slots_that_earlier_runs_have_are_served_all_the_same(
    engine: Engine, clock: Clock, tmp_path: Path, latest: dt.timedelta
) -> None:
    now = clock().replace(microsecond=0)
    seconds = [now + dt.timedelta(seconds=number) for number in range(-5, 2 * PATIENCE_SECONDS)]
    with writing(engine) as connection:
        for slot in (*seconds, now + latest):
            row = run_row(slot, origin="schedule", schedule="plants", scheduled_for=slot, finished_at=slot)
            connection.execute(sync_run.insert().values(row))
    every_second = Schedule(name="plants", path=tmp_path, slots=Every(dt.timedelta(seconds=1)), targets=(TARGET,))
    served = Served(engine, every_second, clock)
    for _ in range(3):
        served.wait_for_another_run()
    served.close()
    mine = runs(engine)[len(seconds) + 1 :]
    assert len({run.scheduled_for for run in mine}) == len(mine) >= 3
    assert all(run.scheduled_for <= run.started_at for run in mine)
    assert all(run.scheduled_for.microsecond == 1 for run in mine), "just after the earlier run's"


def test_thirty_days_of_downtime_give_one_catch_up_run_and_the_count_of_the_others(
    engine: Engine, clock: Clock, tmp_path: Path
) -> None:
    every_minute = Schedule(name="plants", path=tmp_path, slots=Cron("* * * * *"), targets=(TARGET,))
    clock.offset = -30 * DAY
    Served(engine, every_minute, clock).close()
    now = clock()
    with engine.begin() as connection:
        slot = now.replace(second=0, microsecond=0)
        connection.execute(
            sync_run.insert().values(run_row(now, origin="schedule", schedule="plants", scheduled_for=slot))
        )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock.offset = dt.timedelta(0)
    served = Served(engine, every_minute, clock)
    served.wait_for_another_run()
    served.close()
    caught_up = [run.missed for run in runs(engine) if run.origin == "catch_up"]
    assert len(caught_up) == 1
    assert abs(caught_up[0] - 30 * 24 * 60) <= 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "KiB: memory stays flat"
