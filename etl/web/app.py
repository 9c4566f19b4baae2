"""The pages: their parameters, and their responses."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from etl.domain.kinds import DELTA_KINDS, EVENT_KINDS
from etl.domain.rules import as_object
from etl.errors import DatabaseError
from etl.log import get_logger
from etl.report import summaries, trail_page
from etl.report.condition_checks import incomplete_directories
from etl.report.details import detail_sentences
from etl.report.listings import CHANGES, EVENTS, FINDINGS, GAPS, HELD_WORKFLOWS, RUNS, TARGETS, UNLISTED
from etl.report.names import WHOLE
from etl.report.reading import short_transaction
from etl.report.rows import OrgWorkflowEvent, columns_of
from etl.report.rules import RuleState, days_of, states_within
from etl.report.runs import causes, issues, versions
from etl.report.trail_page import Position
from etl.report.workflow_page import UserChange, search, user_changes
from etl.web import lists, overview
from etl.web.page import (
    PAGE_ROWS,
    RequestParams,
    Site,
    TableQuery,
    html,
    list_page,
    listing_file,
    rows_file,
    whole_number,
)
from etl.web.rendering import MEDIA_TYPES, asset
from etl.web.security import ConcurrencyLimit, KnownHosts, SecurityHeaders

PAGES_AT_ONCE: Final = 16
"""Requests for pages handled at a time; further threads are left for health and metrics."""
_USUAL_SINCE: Final = "90 days ago"
_SHOWN: Final = 100
_FOUND: Final = 50
_FEW: Final = 20
_LATEST: Final = 10
_DAYS: Final = 90
"""Of a rule's strip."""


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
        events = EVENTS.page(connection, _LATEST, newest_first=True)
        behind = _users_behind(connection, events)
    latest = {"latest_events": events, "behind": behind, "enos_zone": site.enos_zone}
    service = {"role": site.role(), "next_runs": sorted(site.next_fire_times().items(), key=lambda item: item[1])}
    return html(request, "overview.html", {**found, **latest, **service, "periods": overview.PERIODS, "asked": asked})


def trail(site: Site, request: Request) -> Response:
    asked = RequestParams(request, {"since": _USUAL_SINCE})
    fmt = asked.format()
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


def _directories(site: Site, connection: Connection, rows: Sequence[Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    directories = TARGETS.page(connection, _SHOWN, org=wanted["org"], user=WHOLE)
    incomplete = list(incomplete_directories(connection, {each.org_id for each in directories}))
    return {"directories": directories, "incomplete": incomplete}


def _holds(site: Site, connection: Connection, rows: Sequence[Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {"holds": summaries.holds(connection, **wanted, limit=PAGE_ROWS)}


def _behind(
    site: Site, connection: Connection, rows: Sequence[OrgWorkflowEvent], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    kinds = wanted["kind"] or EVENT_KINDS
    return {"kinds": kinds, "behind": _users_behind(connection, rows), "enos_zone": site.enos_zone}


def _users_behind(connection: Connection, shown: Sequence[OrgWorkflowEvent]) -> Mapping[int, Sequence[UserChange]]:
    """The users of events of few; those of others have a page of their own."""
    return user_changes(connection, [each for each in shown if max(each.users_before, each.users_after) <= _FEW])


def event(site: Site, request: Request) -> Response:
    asked = RequestParams(request)
    fmt = asked.format()
    number = asked.number("event_id")
    with short_transaction(site.engine) as connection:
        found = next(iter(EVENTS.page(connection, 1, event=number)), None)
        if found is None:
            raise HTTPException(404, "There is no such event.")
        behind = user_changes(connection, [found])[number]
    if fmt:
        return rows_file("lists", columns_of(UserChange), behind, fmt)
    return html(request, "event.html", {"asked": asked, "event": found, "lists": behind, "enos_zone": site.enos_zone})


def run(site: Site, request: Request) -> Response:
    asked = RequestParams(request)
    fmt = asked.format()
    run_id = asked.number("run_id")
    tables = {
        "versions": TableQuery("versions", versions(run_id)),
        "issues": TableQuery("issues", issues(run_id)),
    }
    table = asked.one_of("table", tables)
    with short_transaction(site.engine) as connection:
        found = next(iter(RUNS.page(connection, 1, run=run_id)), None)
        if found is None:
            raise HTTPException(404, "There is no such run.")
        if not fmt:
            values: dict[str, Any] = {name: each.page(connection, _SHOWN + 1) for name, each in tables.items()}
            values["causes"] = causes(connection, run_id)
    if fmt:
        return listing_file(site, tables[table or "versions"], fmt)
    return html(request, "run.html", {"asked": asked, "run": found, "now": site.now(), "most": _SHOWN, **values})


def rules(site: Site, request: Request) -> Response:
    asked = RequestParams(request)
    fmt = asked.format()
    with short_transaction(site.engine) as connection:
        states = states_within(connection)
    if fmt:
        return rows_file("rules", columns_of(RuleState), states, fmt)
    return html(request, "rules.html", {"asked": asked, "now": site.now(), "rules": states})


def rule(site: Site, request: Request) -> Response:
    """A rule, also one that is gone but has found something."""
    asked = RequestParams(request)
    name, fmt = asked.id("rule"), asked.format()
    listing = TableQuery.of(site, FINDINGS, rule=name, show=asked.one_of("show", ("open", "ended")))
    with short_transaction(site.engine) as connection:
        state = next((each for each in states_within(connection) if each.rule == name), None)
        days = days_of(connection, name, site.now(), _DAYS)
        if state is None and not days:
            raise HTTPException(404, "There is no such rule, and there never was one that found something.")
        values = {} if fmt else listing.shown(connection, asked)
    if fmt:
        return listing_file(site, listing, fmt)
    values["rows"] = [(each, as_object(each.row)) for each in values["rows"]]
    return html(
        request, "rule.html", {"asked": asked, "now": site.now(), "name": name, "rule": state, "days": days, **values}
    )


def found(site: Site, request: Request) -> Response:
    asked = RequestParams(request)
    part = asked.text("q").strip()
    with short_transaction(site.engine) as connection:
        result = search(connection, part, _FOUND) if part else None
    return html(request, "search.html", {"asked": asked, "q": part, "result": result, "most": _FOUND})


def pages(site: Site) -> list[BaseRoute]:
    """The routes of the pages."""
    a_list = partial(list_page, site)
    return [
        Route("/", partial(first, site)),
        Route("/trail", partial(trail, site)),
        Route("/workflows", partial(lists.all_workflows, site)),
        Route("/workflows/{org}/{flow}", partial(lists.one_workflow, site)),
        Route("/workflow", partial(lists.one_workflow, site)),
        Route("/events", partial(a_list, listing=EVENTS, template="events.html", beside=_behind, newest_first=True)),
        Route("/events/{event_id}", partial(event, site)),
        Route("/runs", partial(a_list, listing=RUNS, template="runs.html")),
        Route("/runs/{run_id}", partial(run, site)),
        Route("/search", partial(found, site)),
        Route("/rules", partial(rules, site)),
        Route("/rules/{rule}", partial(rule, site)),
        Route("/unlisted", partial(a_list, listing=UNLISTED, template="unlisted.html", beside=_directories)),
        Route("/held", partial(a_list, listing=HELD_WORKFLOWS, template="held.html", beside=_holds)),
        Route("/targets", partial(lists.all_targets, site)),
        Route("/targets/{org}/{user}", partial(lists.one_target, site)),
        Route("/target", partial(lists.one_target, site)),
        Route("/gaps", partial(a_list, listing=GAPS, template="gaps.html")),
        Route("/static/{name}", _static),
    ]


def create_app(site: Site, routes: Sequence[BaseRoute] = (), hosts: Collection[str] = ()) -> Starlette:
    """The pages over a database whose schema is current; they only read.

    ``routes`` come first, and do not get the pages' headers. Everything answers to addresses, to localhost and to
    ``hosts`` only (the name that is listened on, and those of the settings).
    """
    inner = Starlette(
        routes=pages(site),
        middleware=[Middleware(SecurityHeaders), Middleware(ConcurrencyLimit, most=PAGES_AT_ONCE)],
        exception_handlers={HTTPException: _refused, DatabaseError: _database_away, Exception: _failed},
    )
    return Starlette(routes=[*routes, Mount("/", inner)], middleware=[Middleware(KnownHosts, names=hosts)])


def _static(request: Request) -> Response:
    name, compressed = request.path_params["name"], "gzip" in request.headers.get("accept-encoding", "")
    if name not in MEDIA_TYPES:
        raise HTTPException(404)
    headers = {"Vary": "Accept-Encoding", "Cache-Control": "public, max-age=31536000, immutable"}
    headers |= {"Content-Encoding": "gzip"} if compressed else {}
    return Response(asset(name, compressed=compressed), media_type=MEDIA_TYPES[name], headers=headers)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    messages = {404: "There is no such page.", 405: "These pages are read-only."}
    usual = error.detail in ("Not Found", "Method Not Allowed")
    response = _problem(request, error.status_code, messages[error.status_code] if usual else error.detail)
    response.headers.update(error.headers or {})
    return response


def _database_away(request: Request, error: Exception) -> Response:
    get_logger("etl.web").warning("page_failed", path=request.url.path, error=str(error))
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
