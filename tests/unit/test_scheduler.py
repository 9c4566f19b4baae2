"""The scheduler: real APScheduler, short intervals, and clocks that can be set."""

from __future__ import annotations

import datetime as dt
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from etl.config import Schedule
from etl.config.slots import Cron, Every, Slots
from etl.domain.model import Target
from etl.service.scheduler import Scheduler
from etl.system.clock import utc_now
from tests.support.served import wait_until

PATIENCE_SECONDS = 60.0
"""A safety net, not an expectation."""
OFTEN = Every(dt.timedelta(milliseconds=100))
RARELY = Every(dt.timedelta(days=36_500))


class Bench:
    """A scheduler whose runs go into a queue, and whatever ``work`` does."""

    def __init__(self, clock: Callable[[], dt.datetime] | None = None) -> None:
        self.runs: queue.Queue[tuple[Schedule, dt.datetime]] = queue.Queue()
        self.work: Callable[[Schedule], None] = lambda schedule: None
        self.ahead = dt.timedelta(0)
        """By how much the clock was set ahead of this machine's."""
        self.clock = clock or (lambda: utc_now() + self.ahead)
        self.stop = threading.Event()
        self.scheduler = Scheduler(self._run, clock=self.clock, stop=self.stop, check_seconds=0.05)

    def _run(self, schedule: Schedule, slot: dt.datetime) -> None:
        self.runs.put((schedule, slot))
        self.work(schedule)

    def start(self, *schedules: Schedule) -> None:
        self.scheduler.replace(schedules)
        self.scheduler.start()

    def next_run(self) -> tuple[Schedule, dt.datetime]:
        return self.runs.get(timeout=PATIENCE_SECONDS)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.scheduler.shutdown(PATIENCE_SECONDS)


def plan(name: str, slots: Slots = OFTEN, **others: Any) -> Schedule:
    return Schedule(name=name, path=Path(f"{name}.toml"), slots=slots, **others)


@pytest.mark.parametrize("jitter", [0, 90])
def test_each_slot_is_run_once_in_order_and_never_early(bench: Bench, jitter: int) -> None:
    slots: list[dt.datetime] = []
    bench.start(plan("a", jitter=dt.timedelta(milliseconds=jitter)))
    for _ in range(8):
        _, slot = bench.next_run()
        assert slot <= utc_now()
        slots.append(slot)
    assert slots == sorted(set(slots))
    assert all(OFTEN.latest_until(slot) == slot for slot in slots)


def test_exceptions_are_logged_and_runs_and_housekeeping_go_on(bench: Bench) -> None:
    beats: queue.Queue[int] = queue.Queue()

    def fail(*_: Schedule) -> None:
        beats.put(1)
        raise RuntimeError("the database is away")

    with capture_logs() as logs:
        bench.start()
        bench.scheduler.every(0.05, fail, "heartbeat")
        for _ in range(3):
            beats.get(timeout=PATIENCE_SECONDS)
        bench.work = fail
        bench.scheduler.replace([plan("a")])
        for _ in range(3):
            bench.next_run()
    for job in ("a", "heartbeat"):
        assert {"event": "failed", "job": job, "log_level": "error", "exc_info": True} in logs


def test_replace_adds_removes_and_changes(bench: Bench) -> None:
    bench.start(plan("gone"), plan("slower"))
    bench.next_run()
    new = plan("new", targets=(Target("o", "u"),))
    bench.scheduler.replace([plan("slower", RARELY), new])
    wait_until(lambda: bench.next_run()[0] == new)
    assert {bench.next_run()[0].name for _ in range(4)} == {"new"}


def test_replacing_over_and_over_loses_no_run_whose_jitter_is_going_on(bench: Bench) -> None:
    slots, jitter = Every(dt.timedelta(milliseconds=300)), dt.timedelta(milliseconds=299)
    bench.start(plan("a", slots, jitter=jitter))
    for n in range(4):
        targets = (Target("o", f"u{n}"),)
        while bench.runs.empty():
            bench.scheduler.replace([plan("a", slots, jitter=jitter, targets=targets)])
        wait_until(lambda: bench.next_run()[0].targets == targets)  # noqa: B023


def test_a_running_schedule_finishes_as_it_began_and_is_not_doubled(bench: Bench) -> None:
    release, finished = threading.Event(), queue.Queue[Schedule]()

    def work(schedule: Schedule) -> None:
        release.wait(PATIENCE_SECONDS)
        finished.put(schedule)

    bench.work = work
    old, new = plan("a"), plan("a", Every(dt.timedelta(milliseconds=50)), targets=(Target("o", "u"),))
    with capture_logs() as logs:
        bench.start(old)
        _, first = bench.next_run()
        wait_until(lambda: sum(each["event"] == "slot_left_out" for each in logs) >= 3)
        bench.scheduler.replace([new])
        left_out = len(logs)
        wait_until(lambda: len(logs) > left_out)
        bench.scheduler.replace([])
        bench.scheduler.replace([new])
        assert bench.runs.empty()
    release.set()
    assert finished.get(timeout=PATIENCE_SECONDS) is old
    schedule, second = bench.next_run()
    assert schedule is new
    assert second - first >= 3 * OFTEN.interval


def test_a_paused_scheduler_skips_slots_but_goes_on_with_its_housekeeping(bench: Bench) -> None:
    beats: queue.Queue[int] = queue.Queue()
    bench.scheduler.every(0.05, lambda: beats.put(1), "heartbeat")
    bench.scheduler.pause()
    bench.start(plan("a"))
    for _ in range(6):
        beats.get(timeout=PATIENCE_SECONDS)
    assert bench.runs.empty()
    bench.scheduler.resume()
    _, slot = bench.next_run()
    assert utc_now() - slot < dt.timedelta(seconds=PATIENCE_SECONDS)


@pytest.mark.parametrize("slots", [Every(dt.timedelta(days=1)), Cron("* * * * *"), Every(dt.timedelta(seconds=30))])
def test_ten_years_ahead_are_one_run_for_the_newest_slot(bench: Bench, slots: Slots) -> None:
    with capture_logs() as logs:
        bench.start(plan("a", slots))
        wait_until(lambda: bench.scheduler._plans["a"].trigger.slot is not None)
        bench.ahead = dt.timedelta(days=3653)
        _, slot = bench.next_run()
        assert slot == slots.latest_until(bench.clock())
    assert any(each["event"] == "clock_was_set" for each in logs)
    assert bench.scheduler._plans["a"].trigger.slot == slots.next_after(slot)


@pytest.mark.parametrize("back", [dt.timedelta(hours=1), dt.timedelta(days=1), dt.timedelta(days=3653)])
def test_a_clock_put_back_does_not_silence_a_schedule(bench: Bench, back: dt.timedelta) -> None:
    bench.start(plan("a"))
    bench.next_run()
    bench.ahead = -back
    wait_until(lambda: bench.next_run()[1] < utc_now() - back / 2)
    slots = [bench.next_run()[1] for _ in range(3)]
    assert slots == sorted(set(slots))


def test_a_clock_steered_back_a_little_repeats_no_slot(bench: Bench) -> None:
    bench.start(plan("a"))
    slots = [bench.next_run()[1]]
    for _ in range(3):
        bench.ahead -= OFTEN.interval * 3
        slots += [bench.next_run()[1] for _ in range(5)]
    assert slots == sorted(set(slots))


def test_the_clock_of_the_machine_may_be_set_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = [dt.timedelta(0)]

    class MachineTime(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> MachineTime:
            return super().now(tz) + ahead[0]

    monkeypatch.setattr("apscheduler.schedulers.base.datetime", MachineTime)
    monkeypatch.setattr("etl.service.scheduler.utc_now", lambda: MachineTime.now(dt.UTC))
    bench = Bench(clock=lambda: MachineTime.now(dt.UTC))
    beats: queue.Queue[int] = queue.Queue()
    bench.scheduler.every(0.1, lambda: beats.put(1), "heartbeat")
    bench.start(plan("often"), plan("rarely", Every(dt.timedelta(days=1))))
    bench.next_run()
    ahead[0] = dt.timedelta(days=-1)
    wait_until(lambda: bench.next_run()[1] < utc_now() - dt.timedelta(hours=12))
    while not beats.empty():
        beats.get_nowait()
    beats.get(timeout=PATIENCE_SECONDS)
    ahead[0] = dt.timedelta(days=3653)
    wait_until(lambda: bench.next_run()[0].name == "rarely")
    assert bench.scheduler.shutdown(PATIENCE_SECONDS)


def test_shutdown_waits_for_what_is_running_and_starts_nothing_more(bench: Bench) -> None:
    release = threading.Event()
    bench.work = lambda schedule: release.wait(PATIENCE_SECONDS) and None
    bench.start(plan("a"), plan("b", RARELY))
    bench.next_run()
    assert not bench.scheduler.shutdown(0)
    release.set()
    assert bench.scheduler.shutdown(PATIENCE_SECONDS)
    assert bench.runs.empty()
    bench.scheduler.replace([plan("c")])
    bench.scheduler.every(0.01, bench.stop.set, "late")
    bench.scheduler.start()
    assert not bench.stop.wait(0.2)
    assert bench.runs.empty()


def test_nothing_starts_once_stop_is_set(bench: Bench) -> None:
    bench.stop.set()
    beats = threading.Event()
    bench.scheduler.every(0.3, beats.set, "heartbeat")
    bench.start(plan("a"))
    assert beats.wait(PATIENCE_SECONDS)
    assert bench.runs.empty()


def test_shutting_down_at_any_moment_raises_nothing_and_leaves_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    with capture_logs() as logs:
        for n in range(60):
            bench = Bench()
            fast = Every(dt.timedelta(milliseconds=1))
            bench.scheduler.replace([plan(f"s{each}", fast) for each in range(5)])
            if n > 0:  # or before it was started
                bench.scheduler.start()
            threading.Event().wait(n / 4000)
            assert bench.scheduler.shutdown(PATIENCE_SECONDS)
    names = {"APScheduler", "clock-watch", *(f"s{each}" for each in range(5))}
    wait_until(lambda: not names & {thread.name for thread in threading.enumerate()})
    assert not [each for each in logs if each["log_level"] == "error"]
    assert not [each for each in caplog.records if each.levelname in ("ERROR", "CRITICAL")]


def test_a_run_that_hangs_does_not_keep_the_process_alive() -> None:
    program = """
import datetime as dt, pathlib, threading, time
from etl.config import Schedule
from etl.service.scheduler import Scheduler
from etl.config.slots import Every

started = threading.Event()
def run(schedule, slot):
    started.set()
    time.sleep(3600)

scheduler = Scheduler(run, stop=threading.Event())
slots = Every(dt.timedelta(milliseconds=50))
scheduler.replace([Schedule(name="a", path=pathlib.Path("a"), slots=slots)])
scheduler.start()
assert started.wait(60)
assert not scheduler.shutdown(0.1)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=PATIENCE_SECONDS)
