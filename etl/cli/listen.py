"""The HTTP server of ``serve``: health and metrics, and the page if it is wanted and its extra is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial

import structlog
from sqlalchemy import Engine
from starlette.applications import Starlette

from etl import database
from etl.cli.application import Application
from etl.errors import DatabaseUnreachable, FlowtrailError, UsageError
from etl.report.conditions import CONDITIONS, DetectedCondition
from etl.report.health import read_within
from etl.service.metrics import Metrics, ServiceStatus
from etl.service.replica import Service
from etl.system import descriptors
from etl.system.background import BackgroundLoop
from etl.system.clock import utc_now
from etl.web import Connections, HttpServer, counting_ahead, create_app
from etl.web.health import Health, health_only, health_routes, metrics_route

_TRY_AGAIN_SECONDS = 15
_FEW_DESCRIPTORS = "raise the limit of open files: `ulimit -n`, or LimitNOFILE= in the unit"
_PATIENCE_SECONDS = 5.0
"""How long a page waits for the database before it says that it cannot be read."""
_PAGE_CONNECTIONS = 5
_HEALTH_CONNECTIONS = 2
"""One for `/readyz`, one for `/freshness` and `/metrics`: each reads with one thread at a time."""


@contextmanager
def listening(
    app: Application, service: Service, metrics: Metrics, own: Callable[[], Sequence[DetectedCondition]]
) -> Iterator[None]:
    """Serve HTTP next to the service. An address that is in use stops no sync: it is logged, and tried again."""
    connections = _connections(app)
    host, _, port = app.settings.service.listen.rpartition(":")
    if not port:
        yield
        return
    url = app.settings.database.url
    page = database.connect(url, pool_size=_PAGE_CONNECTIONS, patience_seconds=_PATIENCE_SECONDS)
    health = database.connect(url, pool_size=_HEALTH_CONNECTIONS, patience_seconds=_PATIENCE_SECONDS)
    server = HttpServer(
        _application(app, service, metrics, page, health, host, own), host.strip("[]"), int(port), connections
    )
    try:
        with BackgroundLoop("http-start", partial(_start, server)), _counting_ahead(app, page):
            yield
    finally:
        server.stop()
        page.dispose()
        health.dispose()


def _counting_ahead(app: Application, page: Engine) -> AbstractContextManager[object]:
    if app.settings.service.page:
        with suppress(UsageError):  # the page says itself what is missing
            return counting_ahead(page, utc_now)
    return nullcontext()


def _connections(app: Application) -> Connections:
    """As many connections as leave enough descriptors for the database and the gateway."""
    found = descriptors.allocate(descriptors.raise_limit(), app.settings.gateway.concurrency)
    if found.allowed < found.wanted:
        structlog.get_logger("etl.service.replica").warning(
            "few_descriptors", allowed=found.allowed, wanted=found.wanted, remedy=_FEW_DESCRIPTORS
        )
    return Connections(found.http_connections)


def _start(server: HttpServer) -> float | None:
    """Listen; if that fails, return after how many seconds to try again."""
    log = structlog.get_logger("etl.http")
    try:
        server.start()
    except FlowtrailError as error:
        log.warning("not_listening", error=str(error), again_in_seconds=_TRY_AGAIN_SECONDS)
        return _TRY_AGAIN_SECONDS
    log.info("listening", url=server.url)
    return None


def _application(
    app: Application,
    service: Service,
    metrics: Metrics,
    page: Engine,
    for_health: Engine,
    host: str,
    own: Callable[[], Sequence[DetectedCondition]],
) -> Starlette:
    health = Health(
        for_health,
        now=utc_now,
        is_progressing=lambda: service.is_progressing,
        role=lambda: service.role,
        schedules=lambda: service.schedules,
        known_since=lambda: service.known_since,
        own=own,
    )
    metrics.watch(lambda: _service_status(app, service, health))
    routes = [*health_routes(health), metrics_route(metrics.render)]
    hosts = [host, *app.settings.service.hosts]
    why_no_page = None
    if app.settings.service.page:
        try:
            return create_app(
                page,
                now=utc_now,
                next_fire_times=service.next_fire_times,
                role=lambda: service.role,
                coverage_gap=app.settings.coverage_gap,
                read_health=lambda connection, at: read_within(connection, service.schedules, at, service.known_since),
                routes=routes,
                hosts=hosts,
                enos_zone=app.enos_zone,
                own=own,
            )
        except UsageError as error:
            why_no_page = str(error)
            structlog.get_logger("etl.http").warning("no_page", error=why_no_page)
    return health_only(routes, hosts, why_no_page)


def _service_status(app: Application, service: Service, health: Health) -> ServiceStatus:
    ready, error = health.readiness()
    skew = app.gateway.clock_skew
    found = health.latest(error)
    wrong = {each.code for each in health.conditions(found, None if ready else error)}
    return ServiceStatus(
        role=service.role,
        alive=health.alive(),
        ready=ready,
        database_up=not isinstance(error, DatabaseUnreachable),
        runs_under_way=service.runs_under_way,
        clock_skew_seconds=None if skew is None else skew.total_seconds(),
        conditions={code: code in wrong for code in CONDITIONS if found is not None or code in wrong},
        snapshot=found,
    )
