"""The pages of lists: the targets, the workflows of an organisation, and one of either, now or at a moment."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from sqlalchemy import Connection, Select
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from etl.domain.model import Target
from etl.report import difference, targets, trail_page, workflow_page
from etl.report.details import detail_sentences, details_of_flow
from etl.report.listings import EVENTS, FLOWS, HISTORY, TARGETS, UNLISTED, WORKFLOWS
from etl.report.names import WHOLE
from etl.report.reading import short_transaction
from etl.report.rows import Difference, TargetHealth, columns_of
from etl.report.targets import KnownTarget, targets_of_user
from etl.report.workflow_page import LISTS_THEN, SHOWN, TooManyLists
from etl.web.labels import utc
from etl.web.page import (
    PAGE_ROWS,
    RequestParams,
    Site,
    TableQuery,
    html,
    list_page,
    listing_file,
    rows_file,
)

TICKS: Final = 90
VERSIONS: Final = 20
TARGET_TABLES: Final = ("list", "versions", "difference")
"""The tables of a target's page; ``?table=`` chooses the one that becomes a file."""
STATES_AT_MOST: Final = 200
"""States of one workflow that its page shows, for all users together."""
SEEN_AT_MOST: Final = 100
EVENTS_AT_MOST: Final = 200
DIFFERENCES: Final = 200
_DRAWN: Final = 40
"""Lists in a timeline, a row each."""
ORGANISATIONS: Final = 200
LIST_TABLES: Final = ("list", "difference")
WORKFLOW_TABLES: Final = ("states", "story", "seen")
"""The tables of a workflow's page; ``?table=`` chooses the one that becomes a file."""


# ------------------------------------------------------------------------------------------------------- the targets


def all_targets(site: Site, request: Request) -> Response:
    asked, now = RequestParams(request), site.now()
    at, fmt = asked.moment("as_of", now), asked.format()
    if fmt and at:
        wanted = asked.asked_of(TARGETS, now)
        then = targets.coverage_then(site.engine.dialect.name, at, org=wanted["org"], user=wanted["user"])
        return listing_file(site, TableQuery("targets", then), fmt)

    def covered(_: Site, connection: Connection, rows: Sequence[TargetHealth], wanted: object) -> dict[str, Any]:
        return {"at": at, "then": targets.coverage_of(connection, [Target(*row[:3]) for row in rows], at)}

    return list_page(site, request, listing=TARGETS, template="targets.html", beside=covered)


def one_target(site: Site, request: Request) -> Response:
    asked, now = RequestParams(request), site.now()
    at, since = _two_moments(asked, now)
    fmt, table = asked.format(), asked.one_of("table", TARGET_TABLES)
    with short_transaction(site.engine) as connection:
        others = targets_of_user(connection, asked.id("org"), asked.id("user"))
        known = _chosen(others, asked.text("expression"))
        filters = {"find": asked.text("find"), "cycle": asked.text("cycle")}
        listing = TableQuery("workflows", targets.listing(connection, known.target, at, **filters))
        versions = TableQuery("versions", targets.versions(known.id, at))
        compared = difference.of_target(connection, known, since, at or now) if since else None
        changes = []
        if compared and not compared.refusal:
            changes = difference.target_differences(connection, known, compared)
        if not fmt:
            past = versions.page(connection, VERSIONS + 1)
            values = {
                **listing.shown(connection, asked),
                "health": targets.health_of(connection, known.target),
                "versions": past[:VERSIONS],
                "older": past[VERSIONS].observed_at if len(past) > VERSIONS else None,
                "ticks": targets.ticks(connection, known.id, at or now, TICKS, site.coverage_gap),
                "then": targets.coverage_of(connection, [known.target], at).get(known.target),
                "before": targets.coverage_of(connection, [known.target], since).get(known.target),
            }
    if fmt and table == "difference":
        _comparable(compared)
        return rows_file(table, columns_of(Difference), changes, fmt)
    if fmt:
        return listing_file(site, versions if table == "versions" else listing, fmt)
    values |= {"asked": asked, "others": others, "known": known, "at": at, "since": since, "now": now}
    values |= {"compared": compared, "changes": changes[:DIFFERENCES], "further": len(changes) > DIFFERENCES}
    return html(request, "target.html", values)


def _two_moments(asked: RequestParams, now: dt.datetime) -> tuple[dt.datetime | None, dt.datetime | None]:
    at, since = asked.moment("as_of", now), asked.moment("since", now)
    if since and since > (at or now):
        raise HTTPException(400, "“Compare with” must be earlier than the list that is compared.")
    return at, since


def _comparable(compared: difference.Comparison | None) -> difference.Comparison:
    """Refuse a file that would look as if two lists were the same."""
    if compared is None:
        raise HTTPException(400, "Name the moment to compare with: since=...")
    if compared.refusal:
        words, at = compared.refusal
        raise HTTPException(400, f"Nothing can be compared: {words}{f' {utc(at)} UTC' if at else ''}.")
    return compared


def _chosen(others: Sequence[KnownTarget], expression: str) -> KnownTarget:
    """The target with this search expression; without one, the user's first target, which usually has none either."""
    found = [each for each in others if expression in ("", each.expression)]
    if not found:
        raise HTTPException(404, "There is no such target: no schedule ever named this user and organisation.")
    return found[0]


# ----------------------------------------------------------------------------------------------------- the workflows


def all_workflows(site: Site, request: Request) -> Response:
    asked, now = RequestParams(request), site.now()
    at, since = _two_moments(asked, now)
    fmt, table = asked.format(), asked.one_of("table", LIST_TABLES)
    with short_transaction(site.engine) as connection:
        orgs = workflow_page.organisations(connection, asked.text("org"), ORGANISATIONS)
        if len(orgs) != 1:
            if fmt:
                raise HTTPException(400, "Name one organisation: the file has the workflows of one.")
            return html(request, "organisations.html", {"asked": asked, "orgs": orgs, "most": ORGANISATIONS})
        org = orgs[0].org_id
        if at and asked.text("which"):
            raise HTTPException(400, "“Show” asks who sees or may edit a workflow now: choose all, or empty “As of”.")
        compared = difference.of_organisation(connection, org, since, at or now) if since else None
        if not fmt:
            values = _shown(connection, asked, org, at)
            changes: Sequence[Any] = []
            if compared and not compared.refusal:
                changes = _differences(org, compared).page(connection, DIFFERENCES + 1)
            values |= {"changes": changes[:DIFFERENCES], "further": len(changes) > DIFFERENCES}
        listing = TableQuery("workflows", _statement(connection, asked, org, at))
    if fmt and table == "difference":
        return listing_file(site, _differences(org, _comparable(compared)), fmt)
    if fmt:
        return listing_file(site, listing, fmt)
    values |= {"asked": asked, "org": orgs[0], "at": at, "now": now, "since": since, "compared": compared}
    return html(request, "workflows.html", values)


def _differences(org: str, compared: difference.Comparison) -> TableQuery:
    return TableQuery("difference", difference.organisation_differences(org, compared))


def _shown(connection: Connection, asked: RequestParams, org: str, at: dt.datetime | None) -> dict[str, Any]:
    """The rows of a page, and how many workflows have each cycle, whichever is asked for."""
    few = () if at else SHOWN
    listed = TableQuery("workflows", _statement(connection, asked, org, at, few))
    facets = workflow_page.by_cycle(connection, _statement(connection, asked, org, at, few, cycle=""))
    found = sum(number for cycle, number in facets if asked.text("cycle") in ("", cycle))
    values = listed.shown(connection, asked) | {"facets": facets, "found": found}
    values["unlisted"] = UNLISTED.count(connection, org=WHOLE + org)
    if at:
        users = workflow_page.users_then(connection, org, [row.flow_id for row in values["rows"]], at)
        values["users"] = [users.get(row.flow_id, 0) for row in values["rows"]]
        values["known"] = workflow_page.coverage_then(connection, org, at)
    return values


def _statement(
    connection: Connection,
    asked: RequestParams,
    org: str,
    at: dt.datetime | None,
    columns: Sequence[str] = (),
    **instead: str,
) -> Select[Any]:
    newest = ("-valid_from" if at else "-first_listed_at", "flow_id")
    order = newest if asked.one_of("order", ("newest",)) else ()
    which = asked.one_of("which", WORKFLOWS.filters["which"].known)
    wanted = {"find": asked.text("find"), "cycle": asked.text("cycle"), "which": which, **instead}
    try:
        return workflow_page.listing(connection, org, asked.text("user"), at, order, columns=columns, **wanted)
    except TooManyLists as error:
        raise HTTPException(400, f"More than {LISTS_THEN} lists are of users like that: name one.") from error


def one_workflow(site: Site, request: Request) -> Response:
    asked, now = RequestParams(request), site.now()
    org, flow = asked.id("org"), asked.id("flow")
    at, fmt, table = asked.moment("as_of", now), asked.format(), asked.one_of("table", WORKFLOW_TABLES)
    mine = {"org": WHOLE + org, "flow": WHOLE + flow}
    with short_transaction(site.engine) as connection:
        tables = {
            "states": TableQuery.of(site, HISTORY, **mine)._replace(name="states"),
            "story": TableQuery.of(site, EVENTS, **mine, newest_first=True)._replace(name="story"),
            "seen": TableQuery("seen", workflow_page.seen_by(connection, org, flow, at or now)),
        }
        if not fmt:
            values = _about_workflow(site, connection, org, flow, tables)
            seen = tables["seen"] if at else TableQuery.of(site, FLOWS, **mine)
            values["seen"] = seen.page(connection, SEEN_AT_MOST + 1)
    if fmt:
        return listing_file(site, tables[table or "states"], fmt)
    return html(request, "workflow.html", {**values, "asked": asked, "at": at, "now": now, "org": org, "flow": flow})


def _about_workflow(
    site: Site, connection: Connection, org: str, flow: str, tables: dict[str, TableQuery]
) -> dict[str, Any]:
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
        "latest": max(shown, key=lambda state: (state.user_id != "", state.valid_from)),
        "gaps": workflow_page.gaps_of(connection, org, users),
        "story": tables["story"].page(connection, EVENTS_AT_MOST),
        "said": details_of_flow(connection, flow, org, EVENTS_AT_MOST),
        "most_seen": SEEN_AT_MOST,
        "events": events,
        "beside": detail_sentences(connection, events, site.enos_zone),
        "enos_zone": site.enos_zone,
        "patience": site.coverage_gap,
        "drawn": _DRAWN,
    }
