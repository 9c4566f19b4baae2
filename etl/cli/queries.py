"""The commands that read lists: flows, changes, history."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, Final

import typer

from etl import database
from etl.cli import console, options
from etl.cli.application import Application
from etl.cli.empty_results import SEARCHES_ONLY, EmptyResult, not_observed_then
from etl.cli.event_table import event_table, story_table
from etl.domain.kinds import CHANGE_KINDS
from etl.errors import UsageError
from etl.report import ListChange, ListState, Report, stories
from etl.report.details import (
    FlowDetail,
    any_details,
    detail_sentence,
    details_of_changes,
    details_of_flow,
    schedule_in_words,
    states_with_details,
    with_details,
)
from etl.report.observed_targets import observed_targets
from etl.report.rows import OrgWorkflowEvent
from etl.system.clock import utc_now

_TARGET: Final = ("org_id", "user_id", "expression")
_WORKFLOW: Final = (*_TARGET, "flow_id", "flow_name", "cycle_label", "editable")
_NOW: Final = (*_WORKFLOW, "changed_at", "last_observed_at", "missing_since")
_THEN: Final = (*_WORKFLOW, "coverage", "observed_before", "observed_after")
_TARGETS_THEN: Final = (*_TARGET, "coverage", "observed_before", "observed_after", "flow_count")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(flows)
    app.command()(changes)
    app.command()(history)


def flows(
    context: typer.Context,
    org: options.Org = None,
    user: options.User = None,
    flow: options.Flow = None,
    name: options.Name = None,
    cycle: options.Cycle = None,
    as_of: options.AsOf = None,
    targets: Annotated[
        bool, typer.Option("--targets", help="With --as-of: one row per target, including empty lists.")
    ] = False,
    timezone: options.Zone = "UTC",
    limit: options.Limit = None,
    as_json: options.Json = False,
    config_file: options.Config = None,
) -> None:
    """List the workflows that exist now or existed at a time, and how well that is known."""
    if targets and not as_of:
        raise UsageError("--targets needs --as-of and a time.")
    zone = options.time_zone_named(timezone)
    at = options.moment(as_of, timezone) if as_of else None
    with options.open_application(context, config_file, logs=False) as app:
        report = _report(app)
        columns: tuple[str, ...]
        rows: Iterator[Any]
        if at is None:
            most = needed(limit, as_json)
            columns, rows = _NOW, report.flows(org=org, user=user, flow=flow, name=name, cycle=cycle, limit=most)
        elif targets:
            columns, rows = _TARGETS_THEN, report.targets_as_of(at, org=org, user=user)
        else:
            columns, rows = _THEN, report.flows_as_of(at, org=org, user=user, flow=flow, name=name, cycle=cycle)
        narrowed = (flow, name, cycle) != (None, None, None)
        what = "such workflows" if narrowed else "workflows"
        empty_result = EmptyResult(what, org, user, at or utc_now(), zone, narrowed=narrowed, then=at is not None)
        any_found = print_rows(app, empty_result, rows, columns_table(columns, zone), limit, as_json)
        if any_found and at is not None and not targets:
            lacking = not_observed_then(observed_targets(app.engine, at, org=org, user=user))
            if lacking:
                console.complain(lacking, "yellow")


def changes(
    context: typer.Context,
    since: options.Since = None,
    until: options.Until = None,
    org: options.Org = None,
    user: options.User = None,
    kind: Annotated[list[str] | None, options.kind_option(CHANGE_KINDS)] = None,
    flow: options.Flow = None,
    name: options.Name = None,
    timezone: options.Zone = "UTC",
    limit: options.Limit = None,
    as_json: options.Json = False,
    config_file: options.Config = None,
) -> None:
    """Show the trail: what was added, removed, or changed, and between which two observations."""
    kinds = options.require_kinds(kind, CHANGE_KINDS)
    zone = options.time_zone_named(timezone)
    since_at, until_at = options.period(since, until, timezone)
    with options.open_application(context, config_file, logs=False) as app:
        rows = _report(app).changes(
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
        empty_result = EmptyResult("such changes", org, user, utc_now(), zone, narrowed=True)

        def table(found: list[ListChange]) -> None:
            event_table("", found, zone=zone, details=_detail_sentences(app, found))

        print_rows(app, empty_result, rows, table, limit, as_json, lambda found: with_details(app.engine, found))


def history(
    context: typer.Context,
    flow_id: Annotated[str, typer.Argument(metavar="FLOW_ID")],
    org: options.Org = None,
    user: options.User = None,
    timezone: options.Zone = "UTC",
    limit: options.Limit = None,
    as_json: options.Json = False,
    config_file: options.Config = None,
) -> None:
    """Show one workflow's life, for every user who sees it, and what happened to it in its organisation."""
    zone = options.time_zone_named(timezone)
    with options.open_application(context, config_file, logs=False) as app:
        columns = ("org_id", "user_id", "expression", "flow_name", "cycle", "editable", "valid_from", "valid_to",
                   "from_kind", "last_listed_at")  # fmt: skip
        rows = _report(app).history(flow=flow_id, org=org, user=user)
        empty_result = EmptyResult(f"trace of workflow {flow_id!r}", org, user, utc_now(), zone, narrowed=True)

        def objects(states: Iterator[ListState]) -> Iterator[dict[str, Any]]:
            return states_with_details(app.engine, flow_id, states)

        def table(states: list[ListState]) -> None:
            columns_table(columns, zone)(states)
            if all(state.expression for state in states):
                console.say(SEARCHES_ONLY)

        print_rows(app, empty_result, rows, table, limit, as_json, objects)
        if not as_json:
            _happened(app, flow_id, org, zone, limit)
            _answered(app, flow_id, org, zone, limit)


def _happened(app: Application, flow_id: str, org: str | None, zone: dt.tzinfo, limit: int | None) -> None:
    def table(events: list[OrgWorkflowEvent]) -> None:
        story_table("\nWhat happened to it in its organisation", events, zone=zone, enos_zone=app.enos_zone)

    most = needed(limit, as_json=False)
    print_table(stories.events(app.engine, flow=flow_id, org=org, limit=most), table, limit)


def _answered(app: Application, flow_id: str, org: str | None, zone: dt.tzinfo, limit: int | None) -> None:
    def table(details: list[FlowDetail]) -> None:
        rows = [each._replace(freq=each.freq and schedule_in_words(each.freq)) for each in details]
        console.rows("\nWhat EnOS said when it was asked", FlowDetail._fields, rows, zone=zone)

    print_table(details_of_flow(app.engine, flow_id, org), table, limit)


def _detail_sentences(app: Application, events: Sequence[ListChange]) -> list[str]:
    """What EnOS said about each change, in a sentence; empty if details were never asked for."""
    if not any_details(app.engine):
        return []
    return [
        detail_sentence(detail, event.last_unchanged_at, event.observed_at, app.enos_zone)
        for event, detail in zip(events, details_of_changes(app.engine, events), strict=True)
    ]


def _report(app: Application) -> Report:
    database.require_current(app.engine)
    return Report(app.engine)


def _objects(rows: Iterator[Any]) -> Iterator[dict[str, Any]]:
    return (row._asdict() for row in rows)


def print_rows(
    app: Application,
    empty_result: EmptyResult,
    rows: Iterable[Any],
    show_table: Callable[[list[Any]], None],
    limit: int | None,
    as_json: bool,
    objects: Callable[[Iterator[Any]], Iterator[dict[str, Any]]] = _objects,
) -> bool:
    """Print the rows, or why there are none; return whether there are any."""
    if as_json:
        printed = console.json_list(objects(islice(rows, limit or None)))
        if not printed:
            console.complain(empty_result.why_empty(app.engine), "yellow")
        return printed
    if not print_table(rows, show_table, limit):
        console.say(empty_result.why_empty(app.engine))
        return False
    return True


def print_table(rows: Iterable[Any], show_table: Callable[[list[Any]], None], limit: int | None) -> bool:
    """Print the first rows, and whether there are more; return whether there are any."""
    most = options.SHOWN if limit is None else limit or None
    listed = list(islice(rows, most and most + 1))
    if not listed:
        return False
    show_table(listed[:most])
    if most is not None and len(listed) > most:
        shown = "this one" if most == 1 else f"these {most}"
        console.complain(f"There are more than {shown}: --limit 0 shows all, --json gives every column.", "dim")
    return True


def needed(limit: int | None, as_json: bool) -> int | None:
    """How many rows ``print_rows`` reads (for a table, one more than it shows), so that only these are sorted. None:
    all."""
    if as_json or limit == 0:
        return limit or None
    return (options.SHOWN if limit is None else limit) + 1


def columns_table(names: tuple[str, ...], zone: dt.tzinfo) -> Callable[[list[Any]], None]:
    return lambda rows: console.rows("", names, rows, zone=zone)
