"""The commands about organisations instead of users' lists: events, workflows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from etl import database
from etl.cli import options
from etl.cli.empty_results import EmptyResult
from etl.cli.event_table import story_table
from etl.cli.queries import columns_table, needed, print_rows
from etl.domain.kinds import EVENT_KINDS
from etl.domain.model import cycle_code
from etl.report import stories
from etl.system.clock import utc_now


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(events)
    app.command()(workflows)


def events(
    context: typer.Context,
    since: options.Since = None,
    until: options.Until = None,
    org: options.Org = None,
    user: Annotated[str | None, typer.Option("--user", help="Only this user's access.", show_default=False)] = None,
    kind: Annotated[list[str] | None, options.kind_option(EVENT_KINDS)] = None,
    flow: options.Flow = None,
    name: options.Name = None,
    timezone: options.Zone = "UTC",
    limit: options.Limit = None,
    as_json: options.Json = False,
    config_file: options.Config = None,
) -> None:
    """Show what happened in organisations: each event once, however many users saw it."""
    kinds = options.require_kinds(kind, EVENT_KINDS)
    zone = options.time_zone_named(timezone)
    since_at, until_at = options.period(since, until, timezone)
    with options.open_application(context, config_file, logs=False) as app:
        database.require_current(app.engine)
        rows = stories.events(
            app.engine,
            since=since_at,
            until=until_at,
            org=org,
            user=user,
            kinds=kinds,
            flow=flow,
            name=name,
            newest_first=True,
            limit=needed(limit, as_json),
        )
        empty_result = EmptyResult("such events", org, None, utc_now(), zone, narrowed=True, whole_lists=True)

        def table(found: list[Any]) -> None:
            story_table("", found, zone=zone, enos_zone=app.enos_zone)

        print_rows(app, empty_result, rows, table, limit, as_json)


def workflows(
    context: typer.Context,
    org: options.Org = None,
    flow: options.Flow = None,
    name: options.Name = None,
    cycle: options.Cycle = None,
    as_of: options.AsOf = None,
    timezone: options.Zone = "UTC",
    limit: options.Limit = None,
    as_json: options.Json = False,
    config_file: options.Config = None,
) -> None:
    """List the workflows of organisations, each once, as they are now or were then."""
    zone = options.time_zone_named(timezone)
    at = options.moment(as_of, timezone) if as_of else None
    code = cycle_code(cycle)
    with options.open_application(context, config_file, logs=False) as app:
        database.require_current(app.engine)
        rows: Iterator[Any]
        if at is None:
            most = needed(limit, as_json)
            rows = stories.workflows(app.engine, org=org, flow=flow, name=name, cycle=code, limit=most)
            columns: tuple[str, ...] = (
                "users",
                "editors",
                "first_listed_at",
                "changed_at",
                "last_listed_at",
                "users_in_gap",
            )
        else:
            rows = stories.workflows_as_of(app.engine, at, org=org, flow=flow, name=name, cycle=code)
            columns = ("valid_from", "valid_to", "from_kind", "proven_for_all")
        columns = ("org_id", "flow_id", "flow_name", "cycle", *columns)
        narrowed = (flow, name, cycle) != (None, None, None)
        found = "such workflows" if narrowed else "workflows"
        empty_result = EmptyResult(
            found, org, None, at or utc_now(), zone, narrowed=narrowed, then=at is not None, whole_lists=True
        )
        print_rows(app, empty_result, rows, columns_table(columns, zone), limit, as_json)
