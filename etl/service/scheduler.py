"""Runs a function at the slots of schedules, and others at intervals; the only importer of APScheduler.

APScheduler keeps the jobs in memory and calls them. Its Slots and the given clock decide when a schedule is due:
APScheduler is told "now, plus the time until the slot by the given clock". So it never steps through years of slots
when a clock jumps ahead. If the clock is set, that is noticed, and all jobs are planned again.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from apscheduler.events import EVENT_JOB_MAX_INSTANCES
from apscheduler.executors.base import BaseExecutor
from apscheduler.job import Job
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from etl.config import Schedule
from etl.config.slots import LEEWAY, Slots
from etl.log import get_logger
from etl.system.background import BackgroundLoop
from etl.system.clock import utc_now

log = get_logger(__name__)

Clock = Callable[[], dt.datetime]

_CHECK_SECONDS: Final = 5.0
_MOMENT: Final = dt.timedelta(milliseconds=1)
_JOB_OPTIONS: Final = {"misfire_grace_time": None, "coalesce": True, "max_instances": 1}


class Scheduler:
    """Calls ``run(schedule, slot)`` when a slot of a schedule is due, each schedule in a thread of its own.

    ``slot`` is the newest slot at that moment. A schedule never runs twice at once: slots that become due meanwhile are
    skipped. An exception of ``run`` is logged, and the schedule continues. Nothing starts once ``stop`` is set.
    All methods may be called from any thread, before ``start`` and after ``shutdown`` too.
    """

    def __init__(
        self,
        run: Callable[[Schedule, dt.datetime], None],
        *,
        clock: Clock = utc_now,
        stop: threading.Event,
        check_seconds: float = _CHECK_SECONDS,
    ) -> None:
        """``check_seconds``: how often the clock is compared with the monotonic one."""
        self._run = run
        self._clock = clock
        self._stop = stop
        self._check_seconds = check_seconds
        self._last_clock_error = self._clock_error()
        self._clock_watch = BackgroundLoop("clock-watch", self._watch_clock, first_after_seconds=check_seconds)
        self._closed = threading.Event()
        self._paused = False
        self._lock = threading.RLock()
        self._plans: dict[str, Job] = {}
        """The job of each schedule; its trigger is a _SlotTrigger."""
        self._threads = _ThreadPerRun()
        self._jobs = BackgroundScheduler(timezone=dt.UTC, executors={"default": self._threads})
        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # we log the same ourselves
        self._jobs.add_listener(self._log_skipped, EVENT_JOB_MAX_INSTANCES)

    def replace(self, schedules: Iterable[Schedule]) -> None:
        """Replace the schedules: new ones are added, missing ones removed, the others left as they are.

        Only a schedule whose slots or jitter changed is planned again. A run under way finishes as it began.
        """
        wanted = {schedule.name: schedule for schedule in schedules}
        with self._lock:
            if self._closed.is_set():
                return
            for name in self._plans.keys() - wanted.keys():
                self._plans.pop(name).remove()
            for name, schedule in wanted.items():
                self._plan(name, schedule)

    def every(self, seconds: float, function: Callable[[], object], name: str) -> None:
        """Call ``function`` every ``seconds``, even when paused, first after ``seconds``; its exceptions are logged."""
        work = partial(_log_exceptions, function, name)
        with self._lock:
            if not self._closed.is_set():
                self._jobs.add_job(work, _IntervalTrigger(seconds), id=f"every {name}", name=name, **_JOB_OPTIONS)

    def start(self) -> None:
        """Start; to be called once."""
        with self._lock:
            if self._closed.is_set() or self._jobs.running:
                return
            self._jobs.start()
        self._clock_watch.start()

    def pause(self) -> None:
        """Skip slots until ``resume``. Runs under way and functions of ``every`` go on."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def shutdown(self, wait_seconds: float) -> bool:
        """Start nothing more, and wait up to ``wait_seconds`` for what is running; True if all of it has finished.

        Unfinished work continues in daemon threads, which do not keep the process alive.
        """
        with self._lock:
            self._closed.set()
        self._clock_watch.stop(0)
        if self._jobs.running:
            self._jobs.shutdown(wait=False)
        return self._threads.wait(wait_seconds)

    def _plan(self, name: str, schedule: Schedule) -> None:
        old = self._plans.get(name)
        if old and (old.trigger.slots, old.trigger.jitter) == (schedule.slots, schedule.jitter):
            old.trigger.schedule = schedule
            return
        if old:
            old.remove()
        trigger, work = _SlotTrigger(schedule, self._clock), partial(self._fire, name)
        self._plans[name] = self._jobs.add_job(work, trigger, id=f"schedule {name}", name=name, **_JOB_OPTIONS)

    def _fire(self, name: str) -> None:
        with self._lock:
            job = self._plans.get(name)
        if job is None or self._paused or self._stop.is_set() or self._closed.is_set():
            return
        plan = job.trigger
        slot = plan.slots.latest_until(_not_before(plan.due, self._clock()))
        if slot is not None:
            _log_exceptions(partial(self._run, plan.schedule, slot), name)

    def _log_skipped(self, event: Any) -> None:
        remedy = "if it happens often: a longer interval, fewer targets, or a higher [gateway] concurrency"
        log.warning("slot_left_out", job=event.job_id, remedy=remedy)

    def _watch_clock(self) -> float:
        error, last = self._clock_error(), self._last_clock_error
        if abs(error - last) > LEEWAY:
            log.warning("clock_was_set", jump_seconds=round((error - last).total_seconds(), 3))
            _log_exceptions(self._plan_anew, "clock-watch")
        self._last_clock_error = error
        return self._check_seconds

    def _clock_error(self) -> dt.timedelta:
        return self._clock() - dt.datetime.fromtimestamp(0, dt.UTC) - dt.timedelta(seconds=time.monotonic())

    def _plan_anew(self) -> None:
        with self._lock:
            if not self._closed.is_set():
                for job in self._jobs.get_jobs():
                    job.reschedule(job.trigger)


class _SlotTrigger(BaseTrigger):  # type: ignore[misc]
    """When a schedule is due next: ``slot`` by the given clock, the fire time by APScheduler's clock."""

    def __init__(self, schedule: Schedule, clock: Clock) -> None:
        self.schedule = schedule
        self.slots: Slots = schedule.slots
        self.jitter = schedule.jitter
        self.slot: dt.datetime | None = None
        self.due: dt.datetime | None = None
        """The slot that became due last; None if a jump of the clock fired the job."""
        self._clock = clock
        self._fired_at: dt.datetime | None = None
        self._fires_at: dt.datetime | None = None

    def get_next_fire_time(self, previous: dt.datetime | None, now: dt.datetime) -> dt.datetime:
        if previous is not None and previous == self._fired_at and self._fires_at:
            return self._fires_at  # APScheduler asks twice for the time after a fire time
        clock = self._clock()
        if previous is None and self.slot is not None and self.slot <= clock:
            return now  # the clock was set past it
        self.due = self.slot if previous is not None and previous == self._fires_at else None
        self.slot = self.slots.next_after(_not_before(self.due, clock))
        # utc_now is read after the clock, so that no slot fires before its time
        fires_at = utc_now() + (self.slot - clock) + random.random() * self.jitter
        self._fired_at, self._fires_at = previous, max(fires_at, now + _MOMENT)
        return self._fires_at


class _IntervalTrigger(BaseTrigger):  # type: ignore[misc]
    """Due at fixed intervals by the monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self._interval = dt.timedelta(seconds=seconds)

    def get_next_fire_time(self, previous: dt.datetime | None, now: dt.datetime) -> dt.datetime:
        return max(utc_now(), now) + self._interval


class _ThreadPerRun(BaseExecutor):  # type: ignore[misc]
    """Runs each job in a daemon thread. A pool could be full, be closed too early, or keep the process from exiting."""

    def __init__(self) -> None:
        super().__init__()
        self._idle = threading.Condition()
        self._running = 0

    def wait(self, seconds: float) -> bool:
        """Whether all runs have finished within ``seconds``."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._running, max(0.0, seconds))

    def _do_submit_job(self, job: Any, run_times: list[dt.datetime]) -> None:
        thread = threading.Thread(target=self._work, args=(job,), name=job.name, daemon=True)
        with self._idle:
            thread.start()
            self._running += 1

    def _work(self, job: Any) -> None:
        try:
            job.func()
        finally:
            self._run_job_success(job.id, [])
            with self._idle:
                self._running -= 1
                self._idle.notify_all()


def _not_before(planned: dt.datetime | None, now: dt.datetime) -> dt.datetime:
    """``now``, or ``planned`` if it is at most LEEWAY later: a clock may be slewed back while a slot is due."""
    return planned if planned is not None and now < planned <= now + LEEWAY else now


def _log_exceptions(function: Callable[[], object], name: str) -> None:
    try:
        function()
    except Exception:
        log.exception("failed", job=name)
