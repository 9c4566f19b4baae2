"""The organisations' events, the runs, and the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from etl.domain.kinds import EVENT_KINDS
from etl.report import columns_of, versions
from etl.report.listings import EVENTS, RUNS, STATUSES
from etl.report.names import search
from etl.report.reading import short_transaction
from etl.report.rows import OrgWorkflowEvent, RunIssue, RunVersion
from etl.report.workflow_page import UserChange, user_changes
from etl.web.answers import Site, TableQuery, html, listing_file, rows_file, table_page, wanted_format
from etl.web.params import RequestParams

_SHOWN: Final = 100
_FOUND: Final = 50
_FEW: Final = 20
_LATEST: Final = 10


def events(site: Site, request: Request) -> Response:
    wanted = RequestParams(request).asked_of(EVENTS, site.now())

    def behind(connection: Connection, rows: Sequence[OrgWorkflowEvent]) -> dict[str, Any]:
        kinds = wanted["kind"] or EVENT_KINDS
        return {"kinds": kinds, "behind": _users_behind(connection, rows), "enos_zone": site.enos_zone}

    return table_page(site, request, TableQuery.of(site, EVENTS, **wanted, newest_first=True), "events.html", behind)


def latest(site: Site, connection: Connection) -> dict[str, Any]:
    """The last events of all organisations, for the first page."""
    rows = EVENTS.page(connection, _LATEST, newest_first=True)
    return {"latest_events": rows, "behind": _users_behind(connection, rows), "enos_zone": site.enos_zone}


def _users_behind(connection: Connection, shown: Sequence[OrgWorkflowEvent]) -> Mapping[int, Sequence[UserChange]]:
    return user_changes(connection, [event for event in shown if _is_of_few(event)])


def _is_of_few(event: OrgWorkflowEvent) -> bool:
    """Whether its users are shown beside it; those of others have a page of their own."""
    return max(event.users_before, event.users_after) <= _FEW


def event(site: Site, request: Request) -> Response:
    asked, fmt = RequestParams(request), wanted_format(request)
    number = asked.number("event_id")
    with short_transaction(site.engine) as connection:
        found = next(iter(EVENTS.page(connection, 1, event=number)), None)
        if found is None:
            raise HTTPException(404, "There is no such event.")
        lists = user_changes(connection, [found])[number]
    if fmt:
        return rows_file("lists", columns_of(UserChange), lists, fmt)
    return html(request, "event.html", {"asked": asked, "event": found, "lists": lists, "enos_zone": site.enos_zone})


def runs(site: Site, request: Request) -> Response:
    listing = TableQuery.of(site, RUNS, **RequestParams(request).asked_of(RUNS, site.now()))
    return table_page(site, request, listing, "runs.html", lambda connection, rows: {"statuses": STATUSES})


def run(site: Site, request: Request) -> Response:
    asked, fmt = RequestParams(request), wanted_format(request)
    run_id = asked.number("run_id")
    tables = {
        "versions": TableQuery("versions", RunVersion, versions.versions(run_id)),
        "issues": TableQuery("issues", RunIssue, versions.issues(run_id)),
    }
    table = asked.one_of("table", tables)
    with short_transaction(site.engine) as connection:
        found = next(iter(RUNS.page(connection, 1, run=run_id)), None)
        if found is None:
            raise HTTPException(404, "There is no such run.")
        if not fmt:
            values: dict[str, Any] = {name: each.page(connection, _SHOWN + 1) for name, each in tables.items()}
            values["causes"] = versions.causes(connection, run_id)
    if fmt:
        return listing_file(site, tables[table or "versions"], fmt)
    return html(request, "run.html", {"asked": asked, "run": found, "now": site.now(), "most": _SHOWN, **values})


def found(site: Site, request: Request) -> Response:
    asked = RequestParams(request)
    part = asked.text("q").strip()
    with short_transaction(site.engine) as connection:
        result = search(connection, part, _FOUND) if part else None
    return html(request, "search.html", {"asked": asked, "q": part, "result": result, "most": _FOUND})
