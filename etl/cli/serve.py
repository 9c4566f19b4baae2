"""The command serve: the schedules in the background, and what runs beside them."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from click.exceptions import Exit

from etl import config, signing
from etl.cli import console
from etl.cli.application import Application
from etl.cli.listen import listening
from etl.cli.notify import Notifications
from etl.cli.options import Given, shared
from etl.config import Schedule
from etl.domain.model import VERDICTS
from etl.printable import counted
from etl.report import health
from etl.report.conditions import DetectedCondition
from etl.service.maintenance import ConditionWatcher, Maintenance
from etl.service.metrics import Metrics
from etl.service.replica import Service
from etl.service.runs import Identity, RunHooks
from etl.service.verification import TimeStamps, Verification
from etl.store import Store
from etl.sync import RemoteExecutor, RunReport
from etl.system.background import BackgroundLoop
from etl.system.clock import utc_now
from etl.verify import HeadsFile

_LAST_SECONDS = 1.0
"""Time after the grace period for closing what was opened."""
_CONNECTIONS = 2
_TOLD_SECONDS = 10.0
"""How often a supervisor hears of the service, at least."""
_STARTING_SECONDS = 0.2


@click.command()
@click.option("--no-standby", is_flag=True, help="Exit with 4 if another replica is active.")
@shared("upgrade", "config")
def serve(given: Given, no_standby: bool) -> None:
    """Run the schedules in the background until SIGTERM; SIGHUP reloads them."""
    with given.application(asks_gateway=True) as app:
        app.schedules  # noqa: B018 - a broken schedule is reported before the database is touched
        app.ready(upgrade=given.upgrade)
        served = _serve(app, standby=not no_standby)
    if not served:
        console.complain("Another replica is active, and --no-standby was given.")
        raise Exit(4)


def _serve(app: Application, *, standby: bool) -> bool:
    """Run the service and everything beside it; False if another replica is active and ``standby`` is off."""
    metrics = Metrics()
    app.exchanged, app.desynced = metrics.exchanged, metrics.desynced
    store = app.sealing_store(applied=metrics.applied)
    notifications = Notifications(app, store)
    own = OwnConditions(app, notifications)
    service = _replica(app, store, metrics, notifications, own)
    own.service, own.verification = service, _verification_of(app, store, service)
    own.timestamps = _timestamps_of(app, store, service)
    threading.Thread(target=_end_in_time, args=(service, app.settings.service.grace), daemon=True).start()
    with (
        service.signals(),
        _supervised(service),
        listening(app, service, metrics, own),
        notifications.running(service),
        _watching(app, store, service, notifications, own),
        own.verification.running(),
        own.timestamps.running() if own.timestamps is not None else contextlib.nullcontext(),
        _maintenance_running(app, service),
    ):
        served = service.serve(standby=standby)
    if not service.ended:
        os._exit(0)  # a thread is stuck after the grace period: what it was doing was not committed
    return served


def _supervised(service: Service) -> contextlib.AbstractContextManager[object]:
    """Tell systemd, where it asks for that, when the service is ready, that it makes progress, and when it stops."""
    given = config.supervisor()
    if not given.socket:
        return contextlib.nullcontext()
    told: list[str] = []

    def step() -> float:
        state = ["WATCHDOG=1"] if service.is_progressing else []
        if service.role != "starting" and not told:
            state.append("READY=1")
        if loop.stopping:
            state = ["STOPPING=1"]
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto("\n".join([*state, f"STATUS={service.role}"]).encode(), given.socket)
            told.extend(each for each in state if each == "READY=1")
        return min(given.watchdog_seconds / 3 or _TOLD_SECONDS, _TOLD_SECONDS) if told else _STARTING_SECONDS

    return (loop := BackgroundLoop("supervisor", step, last_step=True, stop_within_seconds=_LAST_SECONDS))


def _watching(
    app: Application, store: Store, service: Service, notifications: Notifications, own: OwnConditions
) -> BackgroundLoop:
    return ConditionWatcher(
        store,
        active=lambda: service.role == "active",
        read=lambda: health.read(app.engine, service.schedules, utc_now(), service.known_since),
        own=own,
        clock=utc_now,
        changed=notifications.wake,
    ).running()


def _replica(
    app: Application, store: Store, metrics: Metrics, notifications: Notifications, own: OwnConditions
) -> Service:
    def finished(report: RunReport, schedule: Schedule) -> None:
        _count(metrics, report, schedule)
        own.finished(report, schedule)
        notifications.finished(report, schedule)

    return Service(
        app.run_context(store),
        Identity(socket.gethostname(), os.getpid(), secrets.token_hex(4)),
        lambda: _load_schedules(app, metrics),
        coverage_gap=app.settings.coverage_gap,
        grace=app.settings.service.grace,
        max_retired_share=app.settings.guard.max_emptied_share,
        batches=app.batches,
        clock=utc_now,
        hooks=RunHooks(started=notifications.started, finished=finished, crashed=notifications.crashed),
        became=notifications.role_changed,
        remote=own.remote,
        rosters=app.rosters(store),
        details=lambda schedule: app.details([schedule]),
    )


def _end_in_time(service: Service, grace: dt.timedelta) -> None:
    """End the process after the grace period, even if a silent database blocks its threads."""
    service.wait_for_stop()
    time.sleep(grace.total_seconds() + _LAST_SECONDS)
    service.log.warning("ended_by_force", why="the grace period is over", remedy="what was not committed is caught up")
    os._exit(0)


def _count(metrics: Metrics, report: RunReport, schedule: Schedule) -> None:
    tally = report.tally
    metrics.run_ended(
        schedule.name,
        report.status,
        report.duration_seconds,
        verdicts=tally.verdicts,
        changes=tally.changes,
        failures={cause: count for cause, count in tally.causes.items() if cause not in VERDICTS},
        asked_again=tally.asked_again,
    )


def _load_schedules(app: Application, metrics: Metrics) -> Sequence[Schedule]:
    schedules = config.load_schedules(app.settings)
    metrics.know(schedule.name for schedule in schedules)
    return schedules


class OwnConditions:
    """Gathers these conditions on request; from any thread."""

    def __init__(self, app: Application, notifications: Notifications) -> None:
        self.service: Service | None = None
        """Set once the service exists."""
        self.verification: Verification | None = None
        """Set if the service checks its trail."""
        self.timestamps: TimeStamps | None = None
        """Set where the service has seals stamped."""
        self._app = app
        self._notifications = notifications
        self._cluster_lost_at: dt.datetime | None = None
        self._details: dict[str, DetectedCondition] = {}
        """By schedule."""

    def finished(self, report: RunReport, schedule: Schedule) -> None:
        """Note whether a run could fetch the details that it asked for; a run that asked for none changes nothing."""
        done = report.details
        if done is None or not done.asked:
            return
        if not done.failed:
            self._details.pop(schedule.name, None)
            return
        codes = ", ".join(f"{code} ({count})" for code, count in done.codes.items())
        summary = (
            f"Details of {counted(done.failed, 'changed workflow')} could not be fetched: {codes or 'see the log'}"
        )
        since = self._details[schedule.name].since if schedule.name in self._details else utc_now()
        self._details[schedule.name] = DetectedCondition("details_failing", summary, schedule.name, since, done.failed)

    def __call__(self) -> list[DetectedCondition]:
        return list(self._found())

    def _found(self) -> Iterator[DetectedCondition]:
        if self.service is not None:
            yield from filter(None, (self.service.database_condition, self.service.broken_schedules))
        if self._cluster_lost_at is not None:
            address = self._app.settings.scale.dask
            yield DetectedCondition("cluster_lost", f"No worker of {address} answers", since=self._cluster_lost_at)
        yield from self._notifications.failing()
        yield from list(self._details.values())
        for each in (self.verification, self.timestamps):
            condition = each.condition() if each is not None else None
            if condition is not None:
                yield condition
        yield from self._clock()

    def _clock(self) -> Iterator[DetectedCondition]:
        skew, limit = self._app.gateway.clock_skew, self._app.settings.gateway.max_clock_skew
        if skew is not None and limit and abs(skew) > limit:
            ahead = "ahead of" if skew > dt.timedelta(0) else "behind"
            yield DetectedCondition(
                "clock_off", f"The gateway's clock is {abs(skew).total_seconds():.0f} s {ahead} ours", "gateway"
            )

    def remote(self) -> RemoteExecutor | None:
        """The cluster, where there is one that can be reached."""
        if self._app.cluster is None:
            return None
        found = self._app.cluster.connect_if_reachable()
        self._cluster_lost_at = None if found is not None else self._cluster_lost_at or utc_now()
        return found


@contextmanager
def _maintenance_running(app: Application, service: Service) -> Iterator[None]:
    """Let the active service keep chain heads and prune old runs, on separate connections."""
    kept = app.settings.retention
    if kept.keep_runs is None and not kept.heads_file:
        yield
        return
    engine = app.another_engine(app.settings.database.url, _CONNECTIONS)
    maintenance = Maintenance(
        app.sealing_store(engine),
        active=lambda: service.role == "active",
        clock=utc_now,
        keep_runs=kept.keep_runs,
        heads=HeadsFile(Path(kept.heads_file), engine) if kept.heads_file else None,
        has_receivers=bool(app.settings.notify),
        clock_is_right=lambda: _clock_is_right(app),
    )
    with maintenance.running():
        yield


def _verification_of(app: Application, store: Store, service: Service) -> Verification:
    """What checks the trail while this replica is active, on a separate connection. Raises SigningError if a public key
    cannot be read."""
    return Verification(
        app.another_engine(app.settings.database.url, 1),
        store,
        active=lambda: service.role == "active",
        clock=utc_now,
        every=app.settings.verify.every,
        full=app.settings.verify.full,
        keys=[signing.load_public_key(Path(name)) for name in app.settings.verify.public_keys],
    )


def _timestamps_of(app: Application, store: Store, service: Service) -> TimeStamps | None:
    """What has seals stamped while this replica is active; None if no authority is configured. Raises UsageError if the
    extra is not installed."""
    settings = app.settings.seal
    if not settings.timestamp_url:
        return None
    return TimeStamps(
        store,
        signing.timestamps_by(settings.timestamp_url),
        active=lambda: service.role == "active",
        clock=utc_now,
        every=settings.timestamp_every,
    )


def _clock_is_right(app: Application) -> bool | None:
    """Whether the gateway's clock confirms ours; None if no answer has come yet."""
    skew, limit = app.gateway.clock_skew, app.settings.gateway.max_clock_skew
    if not limit:
        return True
    return None if skew is None else abs(skew) <= limit
