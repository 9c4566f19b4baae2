"""The pages: their parameters, and their responses."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import structlog
from sqlalchemy import Connection
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from etl.domain.kinds import DELTA_KINDS
from etl.errors import DatabaseError
from etl.report import summaries, trail_page
from etl.report.details import detail_sentences
from etl.report.listings import CHANGES, GAPS, HELD_WORKFLOWS
from etl.report.reading import short_transaction
from etl.report.trail_page import Position
from etl.web import events, overview, targets, workflows
from etl.web.answers import Site, TableQuery, html, listing_file, table_page, wanted_format
from etl.web.connections import ConcurrencyLimit
from etl.web.params import PAGE_ROWS, RequestParams, whole_number
from etl.web.rendering import asset
from etl.web.security import KnownHosts, SecurityHeaders

PAGES_AT_ONCE: Final = 16
"""Requests for pages handled at a time; further threads are left for health and metrics."""
_USUAL_SINCE: Final = "90 days ago"
_PIECE_ROWS: Final = 1000
_GAPS_AT_MOST: Final = 1_000_000


def first(site: Site, request: Request) -> Response:
    asked, now = RequestParams(request), site.now()
    period = asked.one_of("days", {str(days) for days in overview.PERIODS}) or str(overview.USUAL_PERIOD)
    zone = asked.zone("zone")
    with short_transaction(site.engine) as connection:
        health = site.read_health(connection, now)
        scope = overview.period(now, int(period), zone)
        found = overview.gather(
            connection, health, now, coverage_gap=site.coverage_gap, scope=scope, own=site.own(), wait=False
        )
        latest = events.latest(site, connection)
    service = {"role": site.role(), "next_runs": sorted(site.next_fire_times().items(), key=lambda item: item[1])}
    return html(request, "overview.html", {**found, **latest, **service, "periods": overview.PERIODS, "asked": asked})


def trail(site: Site, request: Request) -> Response:
    asked, fmt = RequestParams(request, {"since": _USUAL_SINCE}), wanted_format(request)
    try:
        wanted = {**asked.asked_of(CHANGES, site.now())}
    except HTTPException as error:
        return html(request, "trail.html", {"kinds": DELTA_KINDS, "error": error.detail, "asked": asked}, 400)
    wanted["kind"] = kinds = wanted["kind"] or DELTA_KINDS
    if fmt:
        return listing_file(site, TableQuery.of(site, CHANGES, **wanted, newest_first=True)._replace(name="trail"), fmt)
    after = _position(asked.text("after"))
    with short_transaction(site.engine) as connection:
        shown = trail_page.newest(connection, **wanted, after=after, limit=PAGE_ROWS + 1)
        details = detail_sentences(connection, shown[:PAGE_ROWS], site.enos_zone)
    last = shown[PAGE_ROWS - 1] if len(shown) > PAGE_ROWS else None
    values = {"kinds": kinds, "error": "", "events": shown[:PAGE_ROWS], "beside": details, "asked": asked}
    values |= {"older": asked.link(after=_token(last)) if last else "", "newest": asked.link(after="") if after else ""}
    return html(request, "trail.html", values)


def held(site: Site, request: Request) -> Response:
    wanted = RequestParams(request).asked_of(HELD_WORKFLOWS, site.now())

    def holds(connection: Connection, rows: Sequence[Any]) -> dict[str, Any]:
        return {"holds": summaries.holds(connection, **wanted, limit=PAGE_ROWS)}

    return table_page(site, request, TableQuery.of(site, HELD_WORKFLOWS, **wanted), "held.html", holds)


def gaps(site: Site, request: Request) -> Response:
    listing = TableQuery.of(site, GAPS, **RequestParams(request).asked_of(GAPS, site.now()))
    return table_page(site, request, listing, "gaps.html")


def pages(site: Site) -> list[BaseRoute]:
    """The routes of the pages."""
    return [
        Route("/", partial(first, site)),
        Route("/trail", partial(trail, site)),
        Route("/workflows", partial(workflows.index, site)),
        Route("/workflows/{org}/{flow}", partial(workflows.one, site)),
        Route("/workflow", partial(workflows.one, site)),
        Route("/events", partial(events.events, site)),
        Route("/events/{event_id}", partial(events.event, site)),
        Route("/runs", partial(events.runs, site)),
        Route("/runs/{run_id}", partial(events.run, site)),
        Route("/search", partial(events.found, site)),
        Route("/held", partial(held, site)),
        Route("/targets", partial(targets.index, site)),
        Route("/targets/{org}/{user}", partial(targets.one, site)),
        Route("/target", partial(targets.one, site)),
        Route("/gaps", partial(gaps, site)),
        Route("/static/{name}", _static),
    ]


def application(site: Site, routes: Sequence[BaseRoute], hosts: Collection[str]) -> Starlette:
    """``routes`` as they are, and the pages with their headers, all of them for our own names only."""
    inner = Starlette(
        routes=pages(site),
        middleware=[Middleware(SecurityHeaders), Middleware(ConcurrencyLimit, most=PAGES_AT_ONCE)],
        exception_handlers={HTTPException: _refused, DatabaseError: _database_away, Exception: _failed},
    )
    return Starlette(routes=[*routes, Mount("/", inner)], middleware=[Middleware(KnownHosts, names=hosts)])


def _static(request: Request) -> Response:
    found = asset(request.path_params["name"])
    if found is None:
        raise HTTPException(404)
    headers = {"Vary": "Accept-Encoding", "Cache-Control": "public, max-age=31536000, immutable"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(found.body, media_type=found.media_type, headers=headers)
    return Response(found.compressed, media_type=found.media_type, headers={**headers, "Content-Encoding": "gzip"})


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    messages = {404: "There is no such page.", 405: "These pages are read-only."}
    usual = error.detail in ("Not Found", "Method Not Allowed")
    response = _problem(request, error.status_code, messages[error.status_code] if usual else error.detail)
    response.headers.update(error.headers or {})
    return response


def _database_away(request: Request, error: Exception) -> Response:
    structlog.get_logger("etl.web").warning("page_failed", path=request.url.path, error=str(error))
    return _problem(request, 503, "The database cannot be read now. The log of the service says why.")


def _failed(request: Request, error: Exception) -> Response:
    return _problem(request, 500, "This page failed. The log of the service says why.")


def _problem(request: Request, status: int, message: str) -> Response:
    return html(request, "problem.html", {"status": status, "message": message}, status)


def _token(event: Any) -> str:
    """A place in the trail, as part of an address."""
    return f"{event.observed_at.isoformat()}~{event.change_set_id}~{event.kind}~{event.flow_id}"


def _position(token: str) -> Position | None:
    if not token:
        return None
    with suppress(ValueError, OverflowError):
        at, change_set_id, kind, flow_id = token.split("~", 3)
        moment, number = dt.datetime.fromisoformat(at).astimezone(dt.UTC), whole_number(change_set_id)
        if number is not None:
            return Position(moment, number, flow_id, kind)
    raise HTTPException(400, "There is no such place in the trail: go back to its beginning.")
