"""The schedules of a service, and their runs: each for its slot, and never two of one schedule at once."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import KW_ONLY, dataclass
from typing import Any

import msgspec

from etl import sync
from etl.config import Schedule
from etl.config.slots import is_served
from etl.domain.model import Origin
from etl.errors import DatabaseError
from etl.log import binding, get_logger
from etl.store import NewRun
from etl.sync import DetailLimits, Rosters, RunContext, RunLogger, RunReport, organisations
from etl.sync.cluster import Cluster


class Identity(msgspec.Struct, frozen=True):
    """How this replica is known to the others and in ``sync_run``."""

    host: str
    pid: int
    token: str
    """Distinguishes this process from an earlier one with the same host and pid."""

    def __str__(self) -> str:
        return f"{self.host}/{self.pid}/{self.token}"


def was_killed(holder: str) -> bool:
    """Whether the ``Identity`` that holds the lease is of this machine, and no such process is left."""
    host, pid, _ = holder.rsplit("/", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@dataclass(eq=False)
class ScheduleRuns:
    """Runs schedules, each in the thread that asks for it, where it also says what becomes of the run."""

    context: RunContext
    identity: Identity
    _: KW_ONLY
    coverage_gap: dt.timedelta
    batches: Executor
    clock: Callable[[], dt.datetime]
    started: Callable[[Schedule], None] = lambda schedule: None
    finished: Callable[[RunReport, Schedule], None] = lambda report, schedule: None
    """A run ended with a report."""
    crashed: Callable[[Schedule, str], None] = lambda schedule, why: None
    """A run ended without a report."""
    remote: Callable[[], Cluster | None] = lambda: None
    details: Callable[[Schedule], DetailLimits | None] = lambda schedule: None
    ended: Callable[[Schedule], None] = lambda schedule: None
    """Called after every run that did not crash, with or without a report."""

    def __post_init__(self) -> None:
        self.stopping = threading.Event()
        """Once it is set, no run begins."""
        self._busy: dict[str, threading.Lock] = {}
        self._running: dict[str, Schedule] = {}
        self._log: Any = get_logger("etl.service.runs")
        self._run_logger = RunLogger(self._log)

    @property
    def under_way(self) -> int:
        """How many runs are under way."""
        return sum(busy.locked() for busy in list(self._busy.values()))

    @property
    def running(self) -> Sequence[Schedule]:
        """The schedules of the runs under way, as they were when the runs began."""
        return list(self._running.values())

    def wait(self, within_seconds: float) -> bool:
        """Wait until no run is under way; return whether that was within the time."""
        give_up = time.monotonic() + max(0.0, within_seconds)
        for busy in list(self._busy.values()):
            if not busy.acquire(timeout=max(0.0, give_up - time.monotonic())):
                return False
            busy.release()
        return True

    def catch_up(self, schedules: Iterable[Schedule]) -> None:
        """Catch up on slots that passed while no replica was active: one run per schedule, however many slots."""
        for schedule in schedules:
            served = self.context.store.served_until(schedule.name)
            now = self.clock()
            due = schedule.slots.latest_until(now)
            if served is not None and due is not None and not is_served(due, served, now):
                threading.Thread(
                    target=self.run, args=(schedule, due, "catch_up"), name=f"catch-up-{schedule.name}"
                ).start()

    def run(self, schedule: Schedule, slot: dt.datetime, origin: Origin) -> None:
        """Run a schedule for a slot, unless a run of it is under way; errors are logged and reported."""
        lock = self._busy.setdefault(schedule.name, threading.Lock())
        if not lock.acquire(blocking=False):
            return
        try:
            if not self.stopping.is_set():
                self._running[schedule.name] = schedule
                self._run(schedule, slot, origin)
                del self._running[schedule.name]
                self.ended(schedule)
        except DatabaseError as error:
            self._log.error("run_failed", schedule=schedule.name, error=str(error), remedy="it is tried again when due")
            self.crashed(schedule, str(error))
        except Exception:
            self._log.exception("run_crashed", schedule=schedule.name, remedy="it is tried again when due")
            self.crashed(schedule, "the run crashed: the log says how")
        finally:
            self._running.pop(schedule.name, None)
            lock.release()

    def _run(self, schedule: Schedule, slot: dt.datetime, origin: Origin) -> None:
        if not schedule.targets:
            self._log.warning("no_roster", schedule=schedule.name, remedy="its slot is caught up when one has come")
            return
        due = self.context.store.due(schedule.name, slot)
        if is_served(slot, due.served, self.clock()):
            return
        self._warn_if_clock_went_back(schedule, slot, due.served)
        new_run = NewRun(
            origin=origin,
            host=self.identity.host,
            pid=self.identity.pid,
            targets=len(schedule.targets),
            lists={schedule.name: schedule.targets},
            gaps={schedule.name: schedule.coverage_gap or self.coverage_gap},
            asked_as=schedule.directories,
            schedule=schedule.name,
            scheduled_for=due.free,
            missed_slots=self._missed(schedule, due.before or due.served, slot),
        )
        self.started(schedule)
        with binding(schedule=schedule.name):
            report = sync.run(
                self.context,
                new_run,
                schedule.targets,
                self.batches,
                clock=self.clock,
                remote=self.remote(),
                details=self.details(schedule),
            )
            if report is not None:
                self._run_logger.log(report, new_run)
                self.finished(report, schedule)

    def _warn_if_clock_went_back(self, schedule: Schedule, slot: dt.datetime, served: dt.datetime | None) -> None:
        if served is not None and served > slot:
            remedy = "make sure that the clock is right (NTP); slots from now on are served anyway"
            self._log.warning(
                "clock_went_back", schedule=schedule.name, slot=str(slot), latest=str(served), remedy=remedy
            )

    def _missed(self, schedule: Schedule, before: dt.datetime | None, slot: dt.datetime) -> int:
        """How many slots were missed since ``before``; a slot whose run was aborted counts as missed."""
        if before is None or slot <= before:
            return 0
        aborted = self.context.store.was_aborted(schedule.name, slot)
        return schedule.slots.count_between(before, slot) + int(aborted)


class KnownSchedules:
    """Safe to use from several threads."""

    def __init__(self, load: Callable[[], Sequence[Schedule]], rosters: Rosters | None = None) -> None:
        self._load = load
        self._rosters = rosters
        self._configured: Sequence[Schedule] = ()
        self._known_at: Mapping[str, float] = {}
        """When this process first read each schedule, by the monotonic clock."""
        self._lock = threading.Lock()
        self.current: Sequence[Schedule] = ()

    def load(self) -> None:
        """Read the files. If one is broken, raises ConfigError and leaves the schedules as they were."""
        self._configured = self._load()
        self.expand()

    def expand(self) -> None:
        """Take the users that the rosters list now; if the database is away, keep the known ones."""
        with self._lock:
            expanded = self._configured
            if self._rosters is not None and organisations(expanded):
                with contextlib.suppress(DatabaseError):
                    expanded = self._rosters.expand(expanded)
            now = time.monotonic()
            self._known_at = {each.name: self._known_at.get(each.name, now) for each in expanded}
            self.current = expanded

    def refresh_rosters(self) -> bool:
        """Ask for the rosters that are due; return whether one changed the result of `expand`. Raises DatabaseError."""
        orgs = organisations(self._configured)
        if self._rosters is None:
            return False
        self._rosters.keep_only(self._configured)
        if not orgs:
            return False
        return any(each.moves for each in self._rosters.refresh(orgs))

    def since(self, now: dt.datetime) -> Mapping[str, dt.datetime]:
        """Since when this process has known each schedule, in terms of the clock that says ``now``."""
        started = now - dt.timedelta(seconds=time.monotonic())
        return {name: started + dt.timedelta(seconds=at) for name, at in self._known_at.items()}
