"""What ``serve`` listens for: health always, the page where it is wanted and its extra is there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy import Engine
from starlette.applications import Starlette

from etl import database
from etl.cli.workbench import Workbench, utc_now
from etl.errors import FlowtrailError, UsageError
from etl.service import Service
from etl.web import HttpServer, create_app
from etl.web.health import health_routes

_TRY_AGAIN_SECONDS = 15


@contextmanager
def listening(bench: Workbench, service: Service) -> Iterator[None]:
    """Serve HTTP beside the service. An address that is taken stops no sync: it is said, and tried again."""
    host, _, port = bench.settings.service.listen.rpartition(":")
    if not port:
        yield
        return
    over = threading.Event()
    engine = database.connect(bench.settings.database.url)
    server = HttpServer(_application(bench, service, engine, host), host.strip("[]"), int(port))
    starter = threading.Thread(target=_start, args=(server, over), name="http-start", daemon=True)
    starter.start()
    try:
        yield
    finally:
        over.set()
        starter.join()
        server.stop()
        engine.dispose()


def _start(server: HttpServer, over: threading.Event) -> None:
    log = structlog.get_logger("etl.http")
    while not over.is_set():
        try:
            server.start()
        except FlowtrailError as error:
            log.warning("not_listening", error=str(error), again_in_seconds=_TRY_AGAIN_SECONDS)
            over.wait(_TRY_AGAIN_SECONDS)
        else:
            log.info("listening", url=server.url)
            return


def _application(bench: Workbench, service: Service, engine: Engine, host: str) -> Starlette:
    health = health_routes(
        engine,
        now=utc_now,
        turns_over=lambda: service.turns_over,
        role=lambda: service.role,
        schedules=lambda: service.schedules,
    )
    if bench.settings.service.page:
        try:
            return create_app(
                engine,
                now=utc_now,
                next_fire_times=service.next_fire_times,
                role=lambda: service.role,
                routes=health,
                hosts=[host],
            )
        except UsageError as error:
            structlog.get_logger("etl.http").warning("no_page", error=str(error))
    return Starlette(routes=health)
