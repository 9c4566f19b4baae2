"""The page, and the server for page, health and metrics.

The server is part of the core. The pages and the report need what the extra ``flowtrail[web]`` brings, and say so in
one UsageError where it is missing.
"""

from __future__ import annotations

import datetime as dt
import importlib
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from etl.config import Schedule
from etl.errors import DatabaseError, UsageError
from etl.report.conditions import Condition
from etl.report.health import TargetSummary, summary_within
from etl.report.summaries import Scope
from etl.system.background import BackgroundLoop
from etl.web.server import HttpServer

__all__ = ["HttpServer", "counting_ahead", "create_app", "report_html"]

_LOOK_AGAIN_SECONDS: Final = 30


def create_app(
    engine: Engine,
    *,
    now: Callable[[], dt.datetime],
    next_fire_times: Callable[[], dict[str, dt.datetime]],
    role: Callable[[], str],
    coverage_gap: dt.timedelta,
    read_health: Callable[[Connection, dt.datetime], TargetSummary] = summary_within,
    routes: Sequence[BaseRoute] = (),
    hosts: Collection[str] = (),
    enos_zone: dt.tzinfo | None = None,
    own: Callable[[], Sequence[Condition]] = lambda: (),
) -> Starlette:
    """The pages over a database whose schema is current; they only read.

    ``now`` gives aware times; ``role`` and ``next_fire_times`` are what the service says of itself. ``read_health``
    says how the targets are, and which of them are overdue where the schedules are known. After a silence longer than
    ``coverage_gap`` the page says so. ``routes`` come first, and do not get the pages' headers. Everything answers to
    addresses, to localhost and to ``hosts`` only (the name that is listened on, and those of the settings). The pages
    take connections from the pool of ``engine``: give them an engine of their own, so that no page keeps a run waiting.
    EnOS's own times are compared with ours where ``enos_zone`` says where they are from. ``own``: what is wrong with
    the service itself.

    Raises UsageError where the extra is missing.
    """
    app = _part("app")
    application: Starlette = app.application(
        app.Site(engine, now, next_fire_times, role, read_health, coverage_gap, enos_zone, own), routes, hosts
    )
    return application


def counting_ahead(engine: Engine, now: Callable[[], dt.datetime]) -> BackgroundLoop:
    """Counts the sums of the first page before somebody asks for it, where they take long. ``engine`` is that of
    ``create_app``. Raises UsageError where the extra is missing."""
    overview = _part("overview")

    def step() -> float:
        with suppress(DatabaseError):  # the service itself reports that it cannot read
            overview.count_ahead(engine, now())
        return _LOOK_AGAIN_SECONDS

    return BackgroundLoop("sums-ahead", step, stop_within_seconds=1.0)


def report_html(
    engine: Engine,
    *,
    now: dt.datetime,
    file: Path,
    coverage_gap: dt.timedelta,
    schedules: Sequence[Schedule] | None = None,
    scope: Scope | None = None,
) -> None:
    """Write the overview and the latest changes as one HTML file that needs no network; it appears whole or not at all.

    Which targets are overdue is said only where the ``schedules`` are given. Without a ``scope`` the plots have thirty
    days of all organisations.

    Raises UsageError where the extra is missing or the place cannot be used, DatabaseError where the database refuses.
    """
    _part("overview").write_report(engine, now, file, schedules, coverage_gap, scope)


def _part(name: str) -> Any:
    try:
        return importlib.import_module(f"etl.web.{name}")
    except ImportError as error:
        library = (error.name or "").partition(".")[0]
        if library in ("", "etl"):
            raise
        raise UsageError(f"The page needs {library}: pip install 'flowtrail[web]'") from error
