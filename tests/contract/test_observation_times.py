"""Clocks that jump and services that were down: one catch-up run, missed slots counted, no slot left waiting."""

from __future__ import annotations

import datetime as dt
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import Engine, select

from etl.config import Schedule
from etl.config.slots import MOST_COUNTED, Cron, Every
from etl.database import reading, writing
from etl.domain.model import Target
from etl.schema import observation, sync_run
from etl.verify import verify
from tests.support.builders import run_row
from tests.support.served import PATIENCE_SECONDS, Clock, Served

DAY = dt.timedelta(days=1)
HOUR = dt.timedelta(hours=1)
TARGET = Target("o1", "ann")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def served(engine: Engine, clock: Clock, tmp_path: Path) -> Iterator[Served]:
    every_second = Every(dt.timedelta(seconds=1))
    served = Served(engine, [Schedule(name="plants", path=tmp_path, slots=every_second, targets=(TARGET,))], clock)
    yield served
    served.close()


class Run(NamedTuple):
    scheduled_for: dt.datetime
    started_at: dt.datetime
    missed_slots: int
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
    ahead = [run.missed_slots for run in recorded if run.missed_slots > 1000]
    assert ahead == [MOST_COUNTED], "one run after the jump, however many slots went by"
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
    served = Served(engine, [every_second], clock)
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
    often = Schedule(name="plants", path=tmp_path, slots=Cron("*/5 * * * *"), targets=(TARGET,))
    clock.offset = -30 * DAY
    Served(engine, [often], clock).close()
    now = clock()
    with engine.begin() as connection:
        slot = often.slots.latest_until(now)
        connection.execute(
            sync_run.insert().values(run_row(now, origin="schedule", schedule="plants", scheduled_for=slot))
        )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock.offset = dt.timedelta(0)
    served = Served(engine, [often], clock)
    served.wait_for_another_run()
    served.close()
    caught_up, *later = runs(engine)[1:]
    assert (caught_up.origin, abs(caught_up.missed_slots - 30 * 24 * 12) <= 2) == ("catch_up", True)
    assert {run.origin for run in later} <= {"schedule"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "KiB: memory stays flat"
