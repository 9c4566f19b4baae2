"""The pages of the workflows: an organisation's list now or at a moment, and one workflow with its story."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final, get_args

from sqlalchemy import Connection, Select
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from etl.report import ListState, ListWorkflow, ListWorkflowAsOf, columns_of, fetch, trail_page, workflow_page
from etl.report.details import detail_sentences, latest_details_of_flow
from etl.report.fetch import short_transaction
from etl.report.names import WHOLE
from etl.report.org_difference import OrgDifference, difference, first_look
from etl.report.rows import OrgWorkflow, OrgWorkflowEvent, OrgWorkflowShown, OrgWorkflowState
from etl.report.workflow_page import LISTS_THEN, Order, TooManyLists, Which, WorkflowFilter
from etl.web.answers import TableQuery, html, listing_file, rows_file, wanted_format
from etl.web.params import PAGE_ROWS, Paging, RequestParams
from etl.web.site import Site

STATES_AT_MOST: Final = 200
"""States of one workflow that its page shows, for all users together."""
SEEN_AT_MOST: Final = 100
EVENTS: Final = 200
DIFFERENCES: Final = 200
_DRAWN: Final = 40
"""Lists in a timeline, a row each."""
ORGANISATIONS: Final = 200
LIST_TABLES: Final = ("list", "difference")
TABLES: Final = ("states", "story", "seen")
"""The tables of a workflow's page; ``?table=`` chooses the one that becomes a file."""


def index(site: Site, request: Request) -> Response:
    asked, now = RequestParams(request), site.now()
    at, since = asked.moment("as_of", now), asked.moment("since", now)
    fmt, table, paging = wanted_format(request), asked.one_of("table", LIST_TABLES), asked.paging()
    with short_transaction(site.engine) as connection:
        orgs = workflow_page.organisations(connection, asked.text("org"), ORGANISATIONS)
        if len(orgs) != 1:
            return _which_organisation(request, asked, orgs, fmt)
        filters = _filters(asked, orgs[0].org_id)
        if at and filters.which:
            raise HTTPException(400, "“Show” asks who sees or may edit a workflow now: choose all, or empty “As of”.")
        if since and since > (at or now):
            raise HTTPException(400, "“Compare with” must be earlier than “As of”.")
        changes = difference(connection, filters.org, since, at or now) if since else []
        if not fmt:
            values = _shown(connection, filters, at, paging) | _compared(connection, filters.org, since, changes)
        listing = _listing(connection, filters, at)
    if fmt and table == "difference":
        return rows_file(table, columns_of(OrgDifference), changes, fmt)
    if fmt:
        return listing_file(site, listing, fmt)
    values |= {"asked": asked, "org": orgs[0], "filters": filters, "at": at, "now": now}
    return html(request, "workflows.html", values)


def _shown(connection: Connection, filters: WorkflowFilter, at: dt.datetime | None, paging: Paging) -> dict[str, Any]:
    """The rows of a page, and how many workflows have each cycle, whichever is asked for."""
    row_type = OrgWorkflowState if at else OrgWorkflowShown
    rows = fetch.page(connection, row_type, _statement(connection, filters, at, row_type), *paging.window)
    facets = workflow_page.by_cycle(connection, _statement(connection, filters._replace(cycle=""), at, row_type))
    found = sum(number for cycle, number in facets if filters.cycle in ("", cycle))
    values = paging.cut(rows) | {"facets": facets, "found": found}
    if at:
        values["users"] = workflow_page.users_then(connection, values["rows"], at)
        values["known"] = workflow_page.coverage_then(connection, filters.org, at)
    return values


def _compared(
    connection: Connection, org: str, since: dt.datetime | None, changes: Sequence[OrgDifference]
) -> dict[str, Any]:
    """What the page shows of the comparison with ``since``."""
    first = first_look(connection, org) if since else None
    shown, further = changes[:DIFFERENCES], len(changes) - DIFFERENCES
    return {"since": since, "first_look": first, "changes": shown, "further": further}


def _listing(connection: Connection, filters: WorkflowFilter, at: dt.datetime | None) -> TableQuery:
    row_type = OrgWorkflowState if at else OrgWorkflow
    return TableQuery("workflows", row_type, _statement(connection, filters, at, row_type))


def _statement(
    connection: Connection, filters: WorkflowFilter, at: dt.datetime | None, row_type: type[tuple[Any, ...]]
) -> Select[Any]:
    if at is None:
        return workflow_page.list_now(connection.dialect.name, filters, row_type)
    try:
        return workflow_page.list_then(connection, filters, at)
    except TooManyLists as error:
        raise HTTPException(400, f"More than {LISTS_THEN} lists are of users like that: name one.") from error


def _filters(asked: RequestParams, org: str) -> WorkflowFilter:
    which: Which = next((each for each in get_args(Which) if each == asked.text("which")), "")
    order: Order = next((each for each in get_args(Order) if each == asked.text("order")), "")
    return WorkflowFilter(org, asked.text("find"), asked.text("user"), asked.text("cycle"), which, order)


def _which_organisation(request: Request, asked: RequestParams, orgs: Sequence[Any], fmt: str | None) -> Response:
    if fmt:
        raise HTTPException(400, "Name one organisation: the file has the workflows of one.")
    return html(request, "organisations.html", {"asked": asked, "orgs": orgs, "most": ORGANISATIONS})


def one(site: Site, request: Request) -> Response:
    asked, now = RequestParams(request), site.now()
    org, flow = asked.id("org"), asked.id("flow")
    at, fmt, table = asked.moment("as_of", now), wanted_format(request), asked.one_of("table", TABLES)
    with short_transaction(site.engine) as connection:
        tables = {
            "states": TableQuery("states", ListState, workflow_page.states(org, flow)),
            "story": TableQuery("story", OrgWorkflowEvent, workflow_page.story(org, flow)),
            "seen": TableQuery(
                "seen",
                ListWorkflowAsOf,
                workflow_page.seen_by(connection, org, flow, at or now),
                workflow_page.parameters_then(org, at or now, flow),
            ),
        }
        if not fmt:
            values = _about(site, connection, org, flow, tables)
            seen = tables["seen"] if at else TableQuery("seen", ListWorkflow, workflow_page.seen_now(org, flow))
            values["seen"] = seen.page(connection, SEEN_AT_MOST + 1)
    if fmt:
        return listing_file(site, tables[table or "states"], fmt)
    return html(request, "workflow.html", {**values, "asked": asked, "at": at, "now": now, "org": org, "flow": flow})


def _about(site: Site, connection: Connection, org: str, flow: str, tables: dict[str, TableQuery]) -> dict[str, Any]:
    states = tables["states"].page(connection, STATES_AT_MOST + 1)
    if not states:
        raise HTTPException(404, "No list of this organisation ever showed a workflow with this id.")
    shown = states[:STATES_AT_MOST]
    users = list(dict.fromkeys(state.user_id for state in shown))
    events = trail_page.newest(connection, org=WHOLE + org, flow=WHOLE + flow, limit=PAGE_ROWS)
    return {
        "states": shown,
        "cut": len(states) > STATES_AT_MOST,
        "lives": [list(life) for _, life in groupby(shown, key=lambda state: state[:3])],
        "latest": max(shown, key=lambda state: state.valid_from),
        "gaps": workflow_page.gaps_of(connection, org, users),
        "story": tables["story"].page(connection, EVENTS),
        "said": latest_details_of_flow(connection, org, flow, EVENTS),
        "most_seen": SEEN_AT_MOST,
        "events": events,
        "beside": detail_sentences(connection, events, site.enos_zone),
        "enos_zone": site.enos_zone,
        "patience": site.coverage_gap,
        "drawn": _DRAWN,
    }
