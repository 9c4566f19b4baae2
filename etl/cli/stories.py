"""The commands about organisations instead of users' lists: events, workflows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click

from etl.cli.empty_results import EmptyResult
from etl.cli.event_table import story_table
from etl.cli.options import Given, kinds_option, shared
from etl.cli.queries import columns_table, needed, print_rows
from etl.domain.kinds import EVENT_KINDS
from etl.domain.model import cycle_code
from etl.report import Report
from etl.system.clock import utc_now


@click.command()
@kinds_option(EVENT_KINDS)
@shared(
    *("since", "until", "org", "user", "flow", "name", "timezone", "limit", "json", "config"),
    user="Only this user's access.",
)
def events(given: Given, kinds: Sequence[str]) -> None:
    """Show what happened in organisations: each event once, however many users saw it."""
    zone = given.zone
    since, until = given.period()
    with given.reading() as app:
        rows = Report(app.engine).events(
            since=since,
            until=until,
            org=given.org,
            user=given.user,
            kind=kinds,
            flow=given.flow,
            name=given.name,
            newest_first=True,
            limit=needed(given),
        )
        empty_result = EmptyResult("such events", given.org, None, utc_now(), zone, narrowed=True, whole_lists=True)

        def table(found: list[Any]) -> None:
            story_table("", found, zone=zone, enos_zone=app.enos_zone)

        print_rows(app, empty_result, rows, table, given)


@click.command()
@shared("org", "flow", "name", "cycle", "as_of", "timezone", "limit", "json", "config")
def workflows(given: Given) -> None:
    """List the workflows of organisations, each once, as they are now or were then."""
    zone = given.zone
    at = given.moment(given.as_of)
    code = cycle_code(given.cycle)
    with given.reading() as app:
        rows: Iterator[Any]
        if at is None:
            most = needed(given)
            rows = Report(app.engine).workflows(org=given.org, flow=given.flow, name=given.name, cycle=code, limit=most)
            columns: tuple[str, ...] = (
                "users",
                "editors",
                "first_listed_at",
                "changed_at",
                "last_listed_at",
                "users_in_gap",
            )
        else:
            rows = Report(app.engine).workflows_as_of(at, org=given.org, flow=given.flow, name=given.name, cycle=code)
            columns = ("valid_from", "valid_to", "from_kind", "proven_for_all")
        columns = ("org_id", "flow_id", "flow_name", "cycle", *columns)
        narrowed = (given.flow, given.name, given.cycle) != (None, None, None)
        found = "such workflows" if narrowed else "workflows"
        empty_result = EmptyResult(
            found, given.org, None, at or utc_now(), zone, narrowed=narrowed, then=at is not None, whole_lists=True
        )
        print_rows(app, empty_result, rows, columns_table(columns, zone), given)
