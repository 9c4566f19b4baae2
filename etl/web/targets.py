"""The pages of the targets: all of them, and one with its list now or at a moment."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from etl.domain.model import Target
from etl.report import ListWorkflow, ListWorkflowAsOf, TargetAsOf, TargetHealth, columns_of, targets
from etl.report.listings import TARGETS
from etl.report.reading import short_transaction
from etl.report.rows import ListDifference, TargetVersion
from etl.report.targets import KnownTarget, targets_of_user
from etl.web.page import RequestParams, Site, TableQuery, html, list_page, listing_file, rows_file, wanted_format

TICKS: Final = 90
VERSIONS: Final = 20
DIFFERENCES: Final = 200
TABLES: Final = ("list", "versions", "difference")
"""The tables of a target's page; ``?table=`` chooses the one that becomes a file."""


def index(site: Site, request: Request) -> Response:
    asked, now, fmt = RequestParams(request), site.now(), wanted_format(request)
    at = asked.moment("as_of", now)
    if fmt and at:
        wanted = asked.asked_of(TARGETS, now)
        then = targets.coverage_then(site.engine.dialect.name, at, org=wanted["org"], user=wanted["user"])
        return listing_file(site, TableQuery("targets", TargetAsOf, then), fmt)

    def covered(_: Site, connection: Connection, rows: Sequence[TargetHealth], wanted: object) -> dict[str, Any]:
        return {"at": at, "then": targets.coverage_of(connection, [Target(*row[:3]) for row in rows], at) if at else {}}

    return list_page(site, request, listing=TARGETS, template="targets.html", beside=covered)


def one(site: Site, request: Request) -> Response:
    asked, now = RequestParams(request), site.now()
    at, since = asked.moment("as_of", now), asked.moment("since", now)
    fmt, table, paging = wanted_format(request), asked.one_of("table", TABLES), asked.paging()
    with short_transaction(site.engine) as connection:
        others = targets_of_user(connection, asked.id("org"), asked.id("user"))
        known = _chosen(others, asked.text("expression"))
        listing = _listing(connection, known, asked, at)
        versions = TableQuery("versions", TargetVersion, targets.versions(known.id, at))
        changes = targets.difference(connection, known.target, since, at) if since else []
        if not fmt:
            shown = paging.cut(listing.page(connection, *paging.window))
            values = _about(site, connection, known, at, versions.page(connection, VERSIONS + 1))
            values |= {"then": _coverage(connection, known, at), "before": _coverage(connection, known, since)}
    if fmt and table == "difference":
        return rows_file(table, columns_of(ListDifference), changes, fmt)
    if fmt:
        return listing_file(site, versions if table == "versions" else listing, fmt)
    values |= {"asked": asked, "others": others, "known": known, "at": at, "since": since, "now": now, **shown}
    values |= {"changes": changes[:DIFFERENCES], "further": len(changes) - DIFFERENCES}
    return html(request, "target.html", values)


def _chosen(others: Sequence[KnownTarget], expression: str) -> KnownTarget:
    """The target with this search expression; without one, the user's first target, which usually has none either."""
    found = next((each for each in others if each.expression == expression), None)
    if found is None and others and not expression:
        return others[0]
    if found is None:
        raise HTTPException(404, "There is no such target: no schedule ever named this user and organisation.")
    return found


def _listing(connection: Connection, known: KnownTarget, asked: RequestParams, at: dt.datetime | None) -> TableQuery:
    filters = {"find": asked.text("find"), "cycle": asked.text("cycle")}
    if at is None:
        statement = targets.list_now(connection.dialect.name, known.target, **filters)
        return TableQuery("workflows", ListWorkflow, statement)
    return TableQuery("workflows", ListWorkflowAsOf, targets.list_then(connection, known.target, at, **filters))


def _coverage(connection: Connection, known: KnownTarget, at: dt.datetime | None) -> TargetAsOf | None:
    return targets.coverage_of(connection, [known.target], at).get(known.target) if at else None


def _about(
    site: Site, connection: Connection, known: KnownTarget, at: dt.datetime | None, versions: Sequence[TargetVersion]
) -> dict[str, Any]:
    return {
        "health": targets.health_of(connection, known.target),
        "versions": versions[:VERSIONS],
        "older": versions[VERSIONS].observed_at if len(versions) > VERSIONS else None,
        "ticks": targets.ticks(connection, known.id, at or site.now(), TICKS, site.coverage_gap),
    }
