"""The pages: what each asks for, and what it answers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby, islice
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import structlog
from sqlalchemy import Connection, Engine
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from etl.domain.kinds import CHANGE_KINDS, DELTA_KINDS
from etl.errors import DatabaseError
from etl.report import HeldRemoval, Report, TargetHealth, statements, summaries
from etl.report.fetch import page, short_transaction
from etl.report.health import TargetSummary
from etl.report.summary_rows import Position
from etl.timeparse import parse_moment
from etl.web import overview
from etl.web.connections import AtOnce
from etl.web.rendering import asset, render
from etl.web.security import KnownHosts, SecurityHeaders

PAGE_ROWS: Final = 100
PAGES_AT_ONCE: Final = 16
"""Requests of pages that are worked on at a time; threads are left for health and metrics, which come in others."""
LIVES_AT_MOST: Final = 1000
"""States of one workflow that its page shows, over all who see it."""
_USUAL_SINCE: Final = "90 days ago"
_LONGEST_VALUE: Final = 2000
_LAST_PAGE: Final = 100_000
_LONGEST_ID: Final = 18
"""Digits of a number that every database can compare."""


class Site:
    """The pages over one database; every page is read in one short transaction, and reads only."""

    def __init__(
        self,
        engine: Engine,
        now: Callable[[], dt.datetime],
        next_fire_times: Callable[[], dict[str, dt.datetime]],
        role: Callable[[], str],
        read_health: Callable[[Connection, dt.datetime], TargetSummary],
        coverage_gap: dt.timedelta,
    ) -> None:
        self._engine = engine
        self._now = now
        self._next_fire_times = next_fire_times
        self._role = role
        self._read_health = read_health
        self._coverage_gap = coverage_gap

    def overview(self, request: Request) -> Response:
        period = RequestParams(request).one_of("days", {str(days) for days in overview.PERIODS}) or str(
            overview.USUAL_PERIOD
        )
        now = self._now()
        with short_transaction(self._engine) as connection:
            health = self._read_health(connection, now)
            found = overview.gather(connection, health, now, coverage_gap=self._coverage_gap, period=int(period))
        service = {"role": self._role(), "next_runs": sorted(self._next_fire_times().items(), key=lambda item: item[1])}
        return _page(request, "overview.html", {**found, **service, "periods": overview.PERIODS})

    def trail(self, request: Request) -> Response:
        asked, now = RequestParams(request), self._now()
        wanted = {name: asked.text(name) for name in ("org", "user", "flow", "name", "since", "until")}
        wanted["since"] = asked.text("since", _USUAL_SINCE)
        kinds = [kind for kind in CHANGE_KINDS if kind in request.query_params.getlist("kind")] or list(DELTA_KINDS)
        try:
            times = {name: _moment(wanted[name], now) for name in ("since", "until")}
        except ValueError as error:
            return _page(request, "trail.html", {"wanted": wanted, "kinds": kinds, "error": str(error)}, 400)
        filters: dict[str, Any] = {name: wanted[name] for name in ("org", "user", "flow", "name")} | times
        after = _position(asked.text("after"))
        with short_transaction(self._engine) as connection:
            events = summaries.trail(connection, **filters, kinds=kinds, after=after, limit=PAGE_ROWS + 1)
        last = events[PAGE_ROWS - 1] if len(events) > PAGE_ROWS else None
        pairs = [*wanted.items(), *(("kind", kind) for kind in kinds)]
        older = "?" + urlencode([*pairs, ("after", _token(last))]) if last else ""
        newest = "?" + urlencode(pairs) if after else ""
        values = {"wanted": wanted, "kinds": kinds, "error": "", "events": events[:PAGE_ROWS]}
        return _page(request, "trail.html", {**values, "older": older, "newest": newest})

    def workflow(self, request: Request) -> Response:
        asked, now = RequestParams(request), self._now()
        flow = request.path_params.get("flow_id") or asked.text("flow")
        org, user = asked.text("org"), asked.text("user")
        report = Report(self._engine)
        states = list(islice(report.history(flow=flow, org=org or None, user=user or None), LIVES_AT_MOST + 1))
        if not states:
            raise HTTPException(404, "No list ever showed a workflow with this id.")
        with short_transaction(self._engine) as connection:
            events = summaries.trail(connection, flow=flow, org=org, user=user, kinds=CHANGE_KINDS, limit=PAGE_ROWS)
        lives = [(key, list(life)) for key, life in groupby(states[:LIVES_AT_MOST], key=lambda state: state[:3])]
        values: dict[str, Any] = {"flow": flow, "org": org, "user": user, "events": events, "lives": lives, "now": now}
        values |= {"latest": max(states, key=lambda state: state.valid_from), "cut": len(states) > LIVES_AT_MOST}
        return _page(request, "workflow.html", {**values, "states": states[:LIVES_AT_MOST]})

    def held(self, request: Request) -> Response:
        asked = RequestParams(request)
        org, user, paging = asked.text("org"), asked.text("user"), asked.paging()
        with short_transaction(self._engine) as connection:
            holds = summaries.holds(connection, org=org or None, limit=PAGE_ROWS)
            chosen = statements.held_removals(org=org or None, user=user or None)
            rows = page(connection, HeldRemoval, chosen, **paging.window)
        values = {"org": org, "user": user, "holds": holds, "now": self._now()}
        return _page(request, "held.html", {**values, **paging.cut(rows)})

    def targets(self, request: Request) -> Response:
        asked = RequestParams(request)
        org, user, paging = asked.text("org"), asked.text("user"), asked.paging()
        show = statements.show(asked.text("show"))
        with short_transaction(self._engine) as connection:
            chosen = statements.targets(show, org=org or None, user=user or None)
            rows = page(connection, TargetHealth, chosen, **paging.window)
        values = {"org": org, "user": user, "show": show, "now": self._now()}
        return _page(request, "targets.html", {**values, **paging.cut(rows)})

    def gaps(self, request: Request) -> Response:
        paging = RequestParams(request).paging()
        with short_transaction(self._engine) as connection:
            rows = summaries.gaps(connection, **paging.window)
        return _page(request, "gaps.html", {"now": self._now(), **paging.cut(rows)})


class RequestParams:
    """The query of a request; what cannot be is answered with 400 and a sentence."""

    def __init__(self, request: Request) -> None:
        self._values = request.query_params

    def text(self, name: str, usual: str = "") -> str:
        value = self._values.get(name, usual)
        if "\0" in value or len(value) > _LONGEST_VALUE:
            raise HTTPException(400, f"The value of “{name}” cannot be looked for.")
        return value

    def one_of(self, name: str, known: Collection[str]) -> str:
        value = self.text(name)
        if value and value not in known:
            raise HTTPException(400, f"There is no such choice of “{name}”.")
        return value

    def paging(self) -> Paging:
        given = self.text("page", "1")
        if not (given.isascii() and given.isdigit() and 1 <= int(given[:9]) <= _LAST_PAGE):
            raise HTTPException(400, "There is no such page: pages are numbered from 1.")
        others = [(name, value) for name, value in self._values.multi_items() if name != "page"]
        return Paging(int(given), others)


class Paging(NamedTuple):
    """A window over rows, and the ways to the ones beside it."""

    number: int
    others: list[tuple[str, str]]

    @property
    def window(self) -> dict[str, int]:
        """One row more than a page shows, so that it is known whether another one follows."""
        return {"limit": PAGE_ROWS + 1, "offset": (self.number - 1) * PAGE_ROWS}

    def cut(self, rows: Sequence[Any]) -> dict[str, Any]:
        further = len(rows) > PAGE_ROWS
        return {
            "rows": rows[:PAGE_ROWS],
            "number": self.number,
            "before": self._to(self.number - 1) if self.number > 1 else "",
            "after": self._to(self.number + 1) if further else "",
        }

    def _to(self, number: int) -> str:
        return "?" + urlencode([*self.others, ("page", str(number))])


def pages(site: Site) -> list[BaseRoute]:
    """Where everything is."""
    return [
        Route("/", site.overview),
        Route("/trail", site.trail),
        Route("/workflow", site.workflow),
        Route("/workflow/{flow_id:path}", site.workflow),
        Route("/held", site.held),
        Route("/targets", site.targets),
        Route("/gaps", site.gaps),
        Route("/static/{name}", _static),
    ]


def application(site: Site, routes: Sequence[BaseRoute], hosts: Collection[str]) -> Starlette:
    """``routes`` as they are, and the pages with their headers, all of them for our own names only."""
    inner = Starlette(
        routes=pages(site),
        middleware=[Middleware(SecurityHeaders), Middleware(AtOnce, most=PAGES_AT_ONCE)],
        exception_handlers={HTTPException: _refused, DatabaseError: _database_away, Exception: _failed},
    )
    return Starlette(routes=[*routes, Mount("/", inner)], middleware=[Middleware(KnownHosts, names=hosts)])


def _page(request: Request, template: str, values: Mapping[str, Any], status: int = 200) -> Response:
    return HTMLResponse(render(template, {"path": request.url.path, "linked": True, **values}), status)


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
    said = {404: "There is no such page.", 405: "These pages only show: they can be asked for, and nothing else."}
    usual = error.detail in ("Not Found", "Method Not Allowed")
    response = _problem(request, error.status_code, said[error.status_code] if usual else error.detail)
    response.headers.update(error.headers or {})
    return response


def _database_away(request: Request, error: Exception) -> Response:
    structlog.get_logger("etl.web").warning("page_failed", path=request.url.path, error=str(error))
    return _problem(request, 503, "The database cannot be read now. The log of the service says why.")


def _failed(request: Request, error: Exception) -> Response:
    return _problem(request, 500, "This page failed. The log of the service says why.")


def _problem(request: Request, status: int, said: str) -> Response:
    return _page(request, "problem.html", {"status": status, "said": said}, status)


def _moment(text: str, now: dt.datetime) -> dt.datetime | None:
    return parse_moment(text, now) if text else None


def _token(event: Any) -> str:
    """A place in the trail, for an address."""
    return f"{event.observed_at.isoformat()}~{event.change_set_id}~{event.kind}~{event.flow_id}"


def _position(token: str) -> Position | None:
    if not token:
        return None
    try:
        at, change_set_id, kind, flow_id = token.split("~", 3)
        number = int(change_set_id[:_LONGEST_ID])
        return Position(dt.datetime.fromisoformat(at).astimezone(dt.UTC), number, flow_id, kind)
    except (ValueError, OverflowError):
        raise HTTPException(400, "There is no such place in the trail: go back to its beginning.") from None
