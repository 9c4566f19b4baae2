"""The background service: which replica is active, when a schedule runs, and how everything stops in time."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from etl.config import Configured, Schedule
from etl.domain.model import Target
from etl.errors import ConfigError, DatabaseDamaged, DatabaseError
from etl.log import get_logger
from etl.report.conditions import Condition
from etl.service.runs import KnownSchedules, ScheduleRuns
from etl.service.scheduler import Scheduler

LEASE: Final = "service"
TICK_SECONDS: Final = 4.0
"""How often the lease is renewed or tried for. A standby takes over within the life of the lease and one tick."""
SWEEP_SECONDS: Final = 30.0
"""How often to look for abandoned runs and unserved slots."""
PULSE_SECONDS: Final = 15.0
"""How often the scheduler proves that it still starts jobs."""
ROSTERS_SECONDS: Final = 60.0
"""How often to look whether a roster is due."""
STUCK_SECONDS: Final = 180.0
"""A loop without a turn for this long counts as stuck."""
_COMMIT_SECONDS: Final = 5.0
"""The end of the grace period: requests have been cut off, and what has arrived is committed."""
_TRIED_AGAIN: Final = "it is tried again every few seconds; nothing that was committed is lost"
_CHECKED_AGAIN: Final = "nothing is written meanwhile; it is looked at again every few seconds"


class Service:
    """Runs schedules while it holds the lease; stands by while another replica does.

    ``runs.context.stop`` cuts requests off; it is set when the grace period is nearly over.
    """

    role: str = "starting"
    """"starting", "active", "standing_by", "database_unreachable" or "database_damaged"."""
    database_condition: Condition | None = None
    """Why it cannot work, while it cannot."""
    broken_schedules: Condition | None = None
    """Why the last reload failed, until one succeeds."""
    was_active = False
    """Whether this replica is active, or was when it could last reach the database."""
    _other: str | None = None
    """The replica that was active when this one last looked."""
    ended = True
    """After `serve`: whether every run had ended when the grace period was over."""

    def __init__(
        self,
        runs: ScheduleRuns,
        schedules: KnownSchedules,
        *,
        grace: dt.timedelta,
        max_retired_share: float,
        became: Callable[[str], None] = lambda role: None,
    ) -> None:
        self.runs = runs
        self.runs.ended = self._retire_after_reload
        self._schedules = schedules
        self._stopping = runs.stopping
        self._store = runs.context.store
        self._identity = str(runs.identity)
        self._clock = runs.clock
        self._grace_seconds = grace.total_seconds()
        self._max_retired_share = max_retired_share
        self._became = became
        self._loop_alive_at = time.monotonic()
        self._scheduler_alive_at = math.inf
        self._waits_for_database = False
        self._reload = threading.Event()
        self._wake = threading.Event()
        self._sweep_at = 0.0
        self._scheduler = Scheduler(self._start_run, clock=self._clock, stop=self._stopping)
        self.log = get_logger("etl.service.replica")

    # ------------------------------------------------------------------------------------------- start and stop

    def serve(self, *, standby: bool = True) -> bool:
        """Block until a signal asks to stop; False where another replica is active and ``standby`` is off."""
        self._schedules.load()
        try:
            with self._waiting_for_database():
                if not self._store.take_lease(LEASE, self._identity) and not standby:
                    return False
        except DatabaseError as error:
            self._lose_database(error)
        self._scheduler.every(PULSE_SECONDS, self._note_scheduler_alive, "pulse")
        self._scheduler.every(ROSTERS_SECONDS, self._refresh_rosters, "rosters")
        self._note_scheduler_alive()
        self._scheduler.replace(self.schedules)
        self._scheduler.pause()
        self._scheduler.start()
        self.log.info("service_started", replica=self._identity, schedules=[s.name for s in self.schedules])
        try:
            self._loop()
        finally:
            self._shut_down()
        return True

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop, SIGHUP reloads the schedules, while the block runs (main thread only).

        After a stop the signals are ignored, so that a second one does not interrupt the process while it closes what
        it opened. (Python removes its handlers as it exits, and SIGTERM would then kill it.)
        """
        handlers = {
            signal.SIGTERM: self._stop_on_signal,
            signal.SIGINT: self._stop_on_signal,
            signal.SIGHUP: lambda *_: self.reload(),
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if self._stopping.is_set() else handler)

    def _stop_on_signal(self, *_: object) -> None:
        """Stop, and ignore further signals: each would interrupt the handling of the one before."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.stop()

    def stop(self) -> None:
        """Ask the service to stop; safe in a signal handler."""
        self._stopping.set()
        self._wake.set()

    def reload(self) -> None:
        """Ask the service to read its schedules again; safe in a signal handler."""
        self._reload.set()
        self._wake.set()

    def next_fire_times(self) -> dict[str, dt.datetime]:
        """When each schedule is due next."""
        now, schedules = self._clock(), self.schedules
        next_after = {slots: slots.next_after(now) for slots in {schedule.slots for schedule in schedules}}
        return {schedule.name: next_after[schedule.slots] for schedule in schedules}

    @property
    def schedules(self) -> Sequence[Schedule]:
        """The schedules as they are known now."""
        return self._schedules.current

    @property
    def known_since(self) -> Mapping[str, dt.datetime]:
        """When this process first read each schedule, in terms of its clock as it is now."""
        return self._schedules.since(self._clock())

    @property
    def is_progressing(self) -> bool:
        """Whether the service's loop and its scheduler have had a turn lately. Waiting for the database counts as
        progress, however long it takes: a new process would have to wait, too."""
        latest = time.monotonic() - STUCK_SECONDS
        turns = self._loop_alive_at > latest or self._waits_for_database
        return self._stopping.is_set() or (turns and self._scheduler_alive_at > latest)

    @contextlib.contextmanager
    def _waiting_for_database(self) -> Iterator[None]:
        self._waits_for_database = True
        try:
            yield
        finally:
            self._waits_for_database = False

    def _note_scheduler_alive(self) -> None:
        self._scheduler_alive_at = time.monotonic()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._loop_alive_at = time.monotonic()
            try:
                if self._reload.is_set():
                    self._reload.clear()
                    self._read_schedules()
                with self._waiting_for_database():
                    self._tick()
            except DatabaseError as error:
                self._lose_database(error)
            except Exception:
                self.log.exception("service_tick_failed")
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()

    def _tick(self) -> None:
        if not self._store.take_lease(LEASE, self._identity):
            self._other = self._store.lease_holder(LEASE) or self._other
            self._set_role("standing_by", active=self._other)
            return
        took_over = {"instead_of": self._other} if self.role == "standing_by" and self._other else {}
        if self._set_role("active", replica=self._identity, **took_over):
            self._abort_abandoned_runs()
            self._expand_rosters()
            self._retire()
            self.runs.catch_up(self.schedules)
            self._scheduler.resume()
            threading.Thread(target=self._refresh_rosters, name="rosters", daemon=True).start()
        elif time.monotonic() >= self._sweep_at and self._abort_abandoned_runs():
            self.runs.catch_up(self.schedules)

    def _lose_database(self, error: DatabaseError) -> None:
        before = self.database_condition
        same = before is not None and before.code == error.condition
        since = before.since if before is not None and same else self._clock()
        self.database_condition = Condition(error.condition, str(error).removesuffix("."), since=since)
        if isinstance(error, DatabaseDamaged):
            self._set_role("database_damaged", error=str(error), remedy=_CHECKED_AGAIN)
        else:
            self._set_role("database_unreachable", error=str(error), remedy=_TRIED_AGAIN)

    def _set_role(self, role: str, **why: Any) -> bool:
        """Set the role, and log a change; return whether it changed."""
        if role == self.role:
            return False
        level = {"database_unreachable": self.log.warning, "database_damaged": self.log.error}.get(role, self.log.info)
        level(role, before=self.role, **why)
        self.role = role
        if role in ("active", "standing_by"):
            self.database_condition, self.was_active = None, role == "active"
        if role != "active":
            self._scheduler.pause()
        self._became(role)
        return True

    def _shut_down(self) -> None:
        """Let runs finish within the grace period, commit complete answers, abandon the rest."""
        began = time.monotonic()
        self.log.info("stopping", grace_seconds=self._grace_seconds)
        patience = max(0.0, self._grace_seconds - _COMMIT_SECONDS)
        ended = self._scheduler.shutdown(patience) and self.runs.wait(patience - (time.monotonic() - began))
        self.runs.context.stop.set()
        if not ended:
            ended = self.runs.wait(self._grace_seconds - (time.monotonic() - began))
        with contextlib.suppress(DatabaseError):
            self._store.release_lease(LEASE, self._identity)
        self.ended = ended
        self.log.info("stopped", runs_ended=ended, seconds=round(time.monotonic() - began, 1))

    # --------------------------------------------------------------------------------------------- the schedules

    def _read_schedules(self) -> None:
        try:
            self._schedules.load()
        except ConfigError as error:
            problems = [str(problem) for problem in error.problems]
            remedy = "the old ones are kept, and the next start would refuse these: fix them, send SIGHUP again"
            self.log.error("schedules_broken", problems=problems, remedy=remedy)
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            summary = f"The schedules cannot be read, and the old ones are kept: {problems[0]}{more}"
            self.broken_schedules = Condition("schedules_broken", summary.removesuffix("."), since=self._clock())
            return
        self.broken_schedules = None
        self._scheduler.replace(self.schedules)
        self.log.info("schedules_reloaded", schedules=[schedule.name for schedule in self.schedules])
        if self.role == "active":
            self._retire()

    def _expand_rosters(self) -> None:
        self._schedules.expand()
        self._scheduler.replace(self.schedules)

    def _refresh_rosters(self) -> None:
        """Ask for the rosters that are due, and use the users that they list from now on. Runs do not wait for it."""
        with contextlib.suppress(DatabaseError):  # the loop says so, and the last rosters stand
            if self.role != "active" or not self._schedules.refresh_rosters():
                return
            lacked = any(schedule.unlisted for schedule in self.schedules)
            self._expand_rosters()
            self._retire()
            if lacked:
                self.runs.catch_up(self.schedules)

    def _retire(self) -> None:
        """Retire the targets that are in no schedule, nor in a run under way: those are retired when it ends."""
        configured = Configured([*self.schedules, *self.runs.running])
        share, names = self._max_retired_share, configured.names
        done = self._store.retire_others(configured, self._clock(), share, names)
        if done.retired:
            self.log.warning("targets_retired", count=len(done.retired), targets=_sample(done.retired))
        if done.refused:
            self.log.warning(
                "targets_not_retired",
                count=len(done.refused),
                targets=_sample(done.refused),
                remedy="too many at once: put them back into a schedule, or run `flowtrail sync --retire`",
            )

    def _abort_abandoned_runs(self) -> bool:
        """Abort the runs whose heartbeat has stopped; return whether there were any."""
        self._sweep_at = time.monotonic() + SWEEP_SECONDS
        dead = self._store.abort_abandoned_runs(self._clock())
        for run_id in dead:
            self.log.warning("run_aborted", run_id=run_id, why="its heartbeat stopped", remedy="its slot is caught up")
        return bool(dead)

    def _retire_after_reload(self, schedule: Schedule) -> None:
        """If the schedules were reloaded during a run of this one, retire the targets that only the run still had."""
        if self.role == "active" and all(schedule is not known for known in self.schedules):
            with contextlib.suppress(DatabaseError):  # the loop says so, and retires when it is active again
                self._retire()

    def _start_run(self, schedule: Schedule, slot: dt.datetime) -> None:
        if self.role == "active":
            self.runs.run(schedule, slot, "schedule")


def _sample(targets: Sequence[Target]) -> list[str]:
    return [str(target) for target in targets[:5]]
