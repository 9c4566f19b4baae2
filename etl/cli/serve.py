"""The command serve: the schedules in the background, what runs beside them, the page and the health endpoints."""

from __future__ import annotations

import datetime as dt
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import click
from click.exceptions import Exit
from sqlalchemy import Engine
from starlette.applications import Starlette

from etl import config, signing
from etl.cli import console
from etl.cli.application import Application
from etl.cli.notify import Notifications
from etl.cli.options import Options, shared
from etl.cli.rules import rule_book
from etl.config import Schedule
from etl.errors import DatabaseUnreachable, FlowtrailError, UsageError
from etl.log import get_logger
from etl.notify import WebhookStatus
from etl.printable import counted
from etl.report import health
from etl.report.conditions import CODES, Condition
from etl.service.maintenance import ConditionWatcher, Maintenance
from etl.service.metrics import Metrics, ServiceStatus
from etl.service.replica import Service
from etl.service.rules import RuleWatch
from etl.service.runs import Identity, KnownSchedules, ScheduleRuns
from etl.service.verification import TimeStamps, Verification
from etl.store import Store
from etl.sync import RunReport
from etl.sync.cluster import Cluster
from etl.system import descriptors
from etl.system.background import BackgroundLoop
from etl.system.clock import utc_now
from etl.verify import HeadsFile
from etl.web.health import Health, health_only, health_routes, metrics_route
from etl.web.server import HttpServer

_LAST_SECONDS = 1.0
"""Time after the grace period for closing what was opened."""
_CONNECTIONS = 2
_TOLD_SECONDS = 10.0
"""How often a supervisor hears of the service, at least."""
_STARTING_SECONDS = 0.2
_TRY_AGAIN_SECONDS = 15
_FEW_DESCRIPTORS = "raise the limit of open files: `ulimit -n`, or LimitNOFILE= in the unit"
_PATIENCE_SECONDS = 5.0
"""How long a page waits for the database before it says that it cannot be read."""
_PAGE_CONNECTIONS = 5
_HEALTH_CONNECTIONS = 2
"""One for `/readyz`, one for `/freshness` and `/metrics`: each reads with one thread at a time."""


@click.command()
@click.option("--no-standby", is_flag=True, help="Exit with 4 if another replica is active.")
@shared("upgrade", "config")
def serve(options: Options, no_standby: bool) -> None:
    """Run the schedules in the background until SIGTERM; SIGHUP reloads them."""
    with options.application(asks_gateway=True) as app:
        app.schedules  # noqa: B018 - a broken schedule is reported before the database is touched
        app.ready(upgrade=options.upgrade)
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
    rules = RuleWatch(rule_book(app, Store(app.engine, app.stop)), active=lambda: service.role == "active")
    rules.changed = notifications.wake
    service = _replica(app, store, metrics, notifications, own, rules)
    verification, timestamps = _verification_of(app, store, service), _timestamps_of(app, store, service)
    own.of_service = lambda: (
        service.database_condition,
        service.broken_schedules,
        verification.condition(),
        timestamps.condition() if timestamps else None,
    )
    watcher = ConditionWatcher(
        store,
        active=lambda: service.role == "active",
        read=lambda: health.read(app.engine, service.schedules, utc_now(), service.known_since),
        own=own,
        clock=utc_now,
        changed=notifications.wake,
    )
    threading.Thread(target=_end_in_time, args=(service, app.settings.service.grace), daemon=True).start()
    with (
        service.signals(),
        _supervised(service),
        _listening(app, service, metrics, own),
        notifications.running(service),
        watcher.loop,
        verification.loop,
        rules.loop,
        timestamps.loop if timestamps else nullcontext(),
        _maintenance(app, service),
    ):
        served = service.serve(standby=standby)
    if not service.ended:
        os._exit(0)  # a thread is stuck after the grace period: what it was doing was not committed
    return served


def _supervised(service: Service) -> AbstractContextManager[object]:
    """Tell systemd, where it asks for that, when the service is ready, that it makes progress, and when it stops."""
    address, watchdog_seconds = config.supervisor()
    if not address:
        return nullcontext()
    told: list[str] = []

    def step() -> float:
        state = ["WATCHDOG=1"] if service.is_progressing else []
        if service.role != "starting" and not told:
            state.append("READY=1")
        if loop.stopping:
            state = ["STOPPING=1"]
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto("\n".join([*state, f"STATUS={service.role}"]).encode(), address)
            told.extend(each for each in state if each == "READY=1")
        return min(watchdog_seconds / 3 or _TOLD_SECONDS, _TOLD_SECONDS) if told else _STARTING_SECONDS

    return (loop := BackgroundLoop("supervisor", step, last_step=True, stop_within_seconds=_LAST_SECONDS))


def _replica(
    app: Application,
    store: Store,
    metrics: Metrics,
    notifications: Notifications,
    own: OwnConditions,
    rules: RuleWatch,
) -> Service:
    def finished(report: RunReport, schedule: Schedule) -> None:
        metrics.run_ended(report, schedule.name)
        own.finished(report, schedule)
        notifications.finished(report, schedule)
        rules.loop.wake()

    def load() -> Sequence[Schedule]:
        schedules = config.load_schedules(app.settings)
        metrics.know(schedule.name for schedule in schedules)
        return schedules

    runs = ScheduleRuns(
        app.run_context(store),
        Identity(socket.gethostname(), os.getpid(), secrets.token_hex(4)),
        coverage_gap=app.settings.coverage_gap,
        batches=app.batches,
        clock=utc_now,
        started=notifications.started,
        finished=finished,
        crashed=notifications.crashed,
        remote=own.remote,
        details=lambda schedule: app.details([schedule]),
    )
    return Service(
        runs,
        KnownSchedules(load, app.rosters(store)),
        grace=app.settings.service.grace,
        max_retired_share=app.settings.guard.max_emptied_share,
        became=notifications.role_changed,
    )


def _end_in_time(service: Service, grace: dt.timedelta) -> None:
    """End the process after the grace period, even if a silent database blocks its threads."""
    service.runs.stopping.wait()
    time.sleep(grace.total_seconds() + _LAST_SECONDS)
    service.log.warning("ended_by_force", why="the grace period is over", remedy="what was not committed is caught up")
    os._exit(0)


class OwnConditions:
    """Gathers these conditions on request; from any thread."""

    def __init__(self, app: Application, notifications: Notifications) -> None:
        self.of_service: Callable[[], Iterable[Condition | None]] = lambda: ()
        """What the service and its checks say, once they exist."""
        self._app = app
        self._notifications = notifications
        self.webhooks = notifications.webhooks
        self._cluster_lost_at: dt.datetime | None = None
        self._details: dict[str, Condition] = {}
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
        self._details[schedule.name] = Condition("details_failing", summary, schedule.name, since, done.failed)

    def __call__(self) -> list[Condition]:
        found = [*filter(None, self.of_service()), *self._notifications.failing(), *self._details.values()]
        if self._cluster_lost_at is not None:
            address = self._app.settings.scale.dask
            found.append(Condition("cluster_lost", f"No worker of {address} answers", since=self._cluster_lost_at))
        if _clock_is_right(self._app) is False and (skew := self._app.gateway.clock_skew):
            said = f"{abs(skew).total_seconds():.0f} s {'ahead of' if skew > dt.timedelta(0) else 'behind'} ours"
            found.append(Condition("clock_off", f"The gateway's clock is {said}", "gateway"))
        return found

    def remote(self) -> Cluster | None:
        """The cluster, where there is one that can be reached."""
        if self._app.cluster is None:
            return None
        found = self._app.cluster.connect_if_reachable()
        self._cluster_lost_at = None if found is not None else self._cluster_lost_at or utc_now()
        return found


def _maintenance(app: Application, service: Service) -> AbstractContextManager[object]:
    """What keeps chain heads and prunes old runs while the service is active, on separate connections."""
    kept = app.settings.retention
    if kept.keep_runs is None and not kept.heads_file:
        return nullcontext()
    engine = app.another_engine(pool_size=_CONNECTIONS)
    return Maintenance(
        app.sealing_store(engine),
        active=lambda: service.role == "active",
        clock=utc_now,
        keep_runs=kept.keep_runs,
        heads=HeadsFile(Path(kept.heads_file), engine) if kept.heads_file else None,
        has_receivers=bool(app.settings.notify),
        clock_is_right=lambda: _clock_is_right(app),
    ).loop


def _verification_of(app: Application, store: Store, service: Service) -> Verification:
    """What checks the trail while this replica is active, on a separate connection. Raises SigningError if a public key
    cannot be read."""
    return Verification(
        app.another_engine(pool_size=1),
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


@contextmanager
def _listening(app: Application, service: Service, metrics: Metrics, own: OwnConditions) -> Iterator[None]:
    """Serve HTTP next to the service. An address that is in use stops no sync: it is logged, and tried again."""
    allowed = descriptors.raise_limit()
    wanted, most_connections = descriptors.allocate(allowed, app.settings.gateway.concurrency)
    if allowed < wanted:
        get_logger("etl.service.replica").warning(
            "few_descriptors", allowed=allowed, wanted=wanted, remedy=_FEW_DESCRIPTORS
        )
    host, _, port = app.settings.service.listen.rpartition(":")
    if not port:
        yield
        return
    page = app.another_engine(pool_size=_PAGE_CONNECTIONS, patience_seconds=_PATIENCE_SECONDS)
    http = _http(app, service, metrics, page, host, own)
    server = HttpServer(http, host.strip("[]"), int(port), most_connections=most_connections)
    counting: AbstractContextManager[object] = nullcontext()
    if app.settings.service.page:
        with suppress(UsageError):  # the page says itself what is missing
            from etl.web.overview import counting_ahead

            counting = counting_ahead(page, utc_now)
    try:
        with BackgroundLoop("http-start", partial(_start, server)), counting:
            yield
    finally:
        server.stop()


def _start(server: HttpServer) -> float | None:
    """Listen; if that fails, return after how many seconds to try again."""
    log = get_logger("etl.http")
    try:
        server.start()
    except FlowtrailError as error:
        log.warning("not_listening", error=str(error), again_in_seconds=_TRY_AGAIN_SECONDS)
        return _TRY_AGAIN_SECONDS
    log.info("listening", url=server.url)
    return None


def _http(
    app: Application,
    service: Service,
    metrics: Metrics,
    page: Engine,
    host: str,
    own: OwnConditions,
) -> Starlette:
    current = Health(
        app.another_engine(pool_size=_HEALTH_CONNECTIONS, patience_seconds=_PATIENCE_SECONDS),
        now=utc_now,
        is_progressing=lambda: service.is_progressing,
        role=lambda: service.role,
        schedules=lambda: service.schedules,
        known_since=lambda: service.known_since,
        own=own,
    )
    metrics.watch(lambda: _service_status(app, service, current, own.webhooks()))
    routes = [*health_routes(current), metrics_route(metrics.render)]
    hosts = [host, *app.settings.service.hosts]
    why_no_page = None
    if app.settings.service.page:
        try:
            from etl.web.app import create_app
            from etl.web.page import Site

            site = Site(
                page,
                now=utc_now,
                next_fire_times=service.next_fire_times,
                role=lambda: service.role,
                coverage_gap=app.settings.coverage_gap,
                read_health=lambda connection, at: health.read_within(
                    connection, service.schedules, at, service.known_since
                ),
                enos_zone=app.enos_zone,
                own=own,
            )
            return create_app(site, routes, hosts)
        except UsageError as error:
            why_no_page = str(error)
            get_logger("etl.http").warning("no_page", error=why_no_page)
    return health_only(routes, hosts, why_no_page)


def _service_status(
    app: Application, service: Service, current: Health, webhooks: Sequence[WebhookStatus]
) -> ServiceStatus:
    ready, error = current.readiness()
    skew = app.gateway.clock_skew
    found = current.latest(error)
    wrong = {each.code for each in current.conditions(found, None if ready else error)}
    return ServiceStatus(
        role=service.role,
        alive=current.alive(),
        ready=ready,
        database_up=not isinstance(error, DatabaseUnreachable),
        runs_under_way=service.runs.under_way,
        clock_skew_seconds=None if skew is None else skew.total_seconds(),
        conditions={code: code in wrong for code in CODES if found is not None or code in wrong},
        webhooks=webhooks,
        snapshot=found,
    )
