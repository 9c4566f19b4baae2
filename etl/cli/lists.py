"""The commands that read lists: flows, changes, history of users; events, workflows of organisations."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Final

import click

from etl.cli import console
from etl.cli.application import Application
from etl.cli.options import Given, kinds_option, shared
from etl.cli.tables import SEARCHES_ONLY, EmptyResult, cycle_label, event_table, not_observed_then, story_table
from etl.domain.kinds import CHANGE_KINDS, DELTA_KINDS, EVENT_KINDS
from etl.errors import UsageError
from etl.report import ListChange, ListState, Report
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
from etl.report.listings import STATUSES
from etl.report.rows import OrgWorkflowEvent
from etl.report.runs import IssueCause
from etl.report.targets import observed_targets
from etl.system.clock import utc_now

_USERS_NAMED: Final = 5
_TARGET: Final = ("org_id", "user_id", "expression")
_WORKFLOW: Final = (*_TARGET, "flow_id", "flow_name", "cycle", "editable")
_NOW: Final = (*_WORKFLOW, "changed_at", "last_observed_at", "missing_since")
_THEN: Final = (*_WORKFLOW, "coverage", "observed_before", "observed_after")
_WORKFLOW_NOW: Final = ("users", "editors", "first_listed_at", "changed_at", "last_listed_at", "users_in_gap")
_RUN: Final = ("id", "schedule", "origin", "status", "started_at", "finished_at", "targets", "changed", "unchanged",
               "held", "failed", "stale", "missed")  # fmt: skip
_TARGETS_THEN: Final = (*_TARGET, "coverage", "observed_before", "observed_after", "flow_count")


@click.command()
@click.option("--targets", is_flag=True, help="With --as-of: one row per target, including empty lists.")
@shared("org", "user", "flow", "name", "cycle", "as_of", "timezone", "limit", "json", "config")
def flows(given: Given, targets: bool) -> None:
    """List the workflows that exist now or existed at a time, and how well that is known."""
    if targets and not given.as_of:
        raise UsageError("--targets needs --as-of and a time.")
    zone, asked = given.zone, given.filters()
    at = given.moment(given.as_of)
    with given.reading() as app:
        report = Report(app.engine)
        columns: tuple[str, ...]
        rows: Iterator[Any]
        if at is None:
            columns, rows = _NOW, report.flows(**asked, limit=needed(given))
        elif targets:
            columns, rows = _TARGETS_THEN, report.targets_as_of(at, org=given.org, user=given.user)
        else:
            columns, rows = _THEN, report.flows_as_of(at, **asked)
        narrowed = (given.flow, given.name, given.cycle) != (None, None, None)
        what = "such workflows" if narrowed else "workflows"
        empty_result = EmptyResult(
            what, given.org, given.user, at or utc_now(), zone, narrowed=narrowed, then=at is not None
        )
        any_found = print_rows(app, empty_result, rows, columns_table(columns, zone), given)
        if any_found and at is not None and not targets:
            lacking = not_observed_then(observed_targets(app.engine, at, org=given.org, user=given.user))
            if lacking:
                console.complain(lacking, "yellow")


@click.command()
@click.argument("run_id", type=int, required=False)
@click.option("--schedule", help="Only runs of this schedule.")
@click.option("--status", type=click.Choice(STATUSES), help="Only runs that ended so, or are still running.")
@shared("timezone", "limit", "json", "config")
def runs(given: Given, run_id: int | None, schedule: str | None, status: str | None) -> None:
    """List the runs, the latest first; with RUN_ID, why targets of that run did not go through."""
    with given.reading() as app:
        report = Report(app.engine)
        rows = report.runs(schedule=schedule, status=status, run=run_id, limit=needed(given))
        if run_id is None:
            if given.json:
                console.json_list(_objects(islice(rows, given.most())))
            elif not print_table(rows, columns_table(_RUN, given.zone), given):
                console.say("No such runs." if schedule or status else "No runs: `flowtrail sync` makes one.")
            return
        found = list(rows)
        if not found:
            raise UsageError(f"There is no run {run_id}: `flowtrail runs` lists them.")
        causes = report.causes_of_run(run_id)
    if given.json:
        console.json({**found[0]._asdict(), "causes": [each._asdict() for each in causes]})
        return
    columns_table(_RUN, given.zone)(found)
    console.rows("\nWhat did not go through, by cause", IssueCause._fields, causes, zone=given.zone)


@click.command()
@kinds_option(CHANGE_KINDS)
@click.option("--baselines", is_flag=True, help="Show the first lists, too, which report no change.")
@shared("since", "until", "org", "user", "flow", "name", "timezone", "limit", "json", "config")
def changes(given: Given, kinds: Sequence[str], baselines: bool) -> None:
    """Show the trail: what was added, removed, or changed, and between which two observations."""
    zone = given.zone
    asked = given.filters()
    with given.reading() as app:
        rows = Report(app.engine).changes(
            **asked, kind=kinds or (CHANGE_KINDS if baselines else DELTA_KINDS), newest_first=True, limit=needed(given)
        )
        hint = "" if kinds or baselines else " --baselines shows their first lists."
        empty_result = EmptyResult("such changes", given.org, given.user, utc_now(), zone, narrowed=True, hint=hint)

        def table(found: list[ListChange]) -> None:
            event_table("", found, zone=zone, details=_detail_sentences(app, found))

        print_rows(app, empty_result, rows, table, given, lambda found: with_details(app.engine, found))


@click.command()
@kinds_option(EVENT_KINDS)
@shared(
    *("since", "until", "org", "user", "flow", "name", "timezone", "limit", "json", "config"),
    user="Only this user's access.",
)
def events(given: Given, kinds: Sequence[str]) -> None:
    """Show what happened in organisations: each event once, however many users saw it."""
    zone = given.zone
    asked = given.filters()
    with given.reading() as app:
        rows = Report(app.engine).events(**asked, kind=kinds, newest_first=True, limit=needed(given))
        empty_result = EmptyResult("such events", given.org, None, utc_now(), zone, narrowed=True, whole_lists=True)

        def table(found: list[Any]) -> None:
            story_table("", found, zone=zone, enos_zone=app.enos_zone)

        print_rows(app, empty_result, rows, table, given)


@click.command()
@shared("org", "flow", "name", "cycle", "as_of", "timezone", "limit", "json", "config")
def workflows(given: Given) -> None:
    """List the workflows of organisations, each once, as they are now or were then."""
    zone, asked = given.zone, given.filters()
    at = given.moment(given.as_of)
    with given.reading() as app:
        rows: Iterator[Any]
        if at is None:
            rows = Report(app.engine).workflows(**asked, limit=needed(given))
            columns: tuple[str, ...] = _WORKFLOW_NOW
        else:
            rows = Report(app.engine).workflows_as_of(at, **asked)
            columns = ("valid_from", "valid_to", "from_kind", "proven_for_all")
        columns = ("org_id", "flow_id", "flow_name", "cycle", *columns)
        narrowed = (given.flow, given.name, given.cycle) != (None, None, None)
        found = "such workflows" if narrowed else "workflows"
        empty_result = EmptyResult(
            found, given.org, None, at or utc_now(), zone, narrowed=narrowed, then=at is not None, whole_lists=True
        )
        print_rows(app, empty_result, rows, columns_table(columns, zone), given)


@click.command()
@click.argument("flow_id", metavar="FLOW_ID")
@shared("org", "user", "timezone", "limit", "json", "config")
def history(given: Given, flow_id: str) -> None:
    """Show one workflow's life, users with the same one together, and what happened to it in its organisation."""
    zone = given.zone
    with given.reading() as app:
        columns = ("org_id", "user_id", "expression", "flow_name", "cycle", "editable", "valid_from", "valid_to",
                   "from_kind", "last_listed_at")  # fmt: skip
        rows = Report(app.engine).history(flow=flow_id, org=given.org, user=given.user)
        empty_result = EmptyResult(
            f"trace of workflow {flow_id!r}", given.org, given.user, utc_now(), zone, narrowed=True
        )

        def objects(states: Iterator[ListState]) -> Iterator[dict[str, Any]]:
            return states_with_details(app.engine, flow_id, states)

        def table(states: list[ListState]) -> None:
            columns_table(columns, zone)(same_lives(states))
            if all(state.expression for state in states):
                console.say(SEARCHES_ONLY)

        print_rows(app, empty_result, rows, table, given, objects)
        if not given.json:
            _happened(app, flow_id, given)
            _answered(app, flow_id, given)


def same_lives(states: Sequence[ListState]) -> list[ListState]:
    """One life for all users whose lives are the same to the second, whenever each of them was asked last."""
    lives: dict[Any, list[list[ListState]]] = {}
    for _, of_user in groupby(states, key=itemgetter(0, 1, 2)):
        life = list(of_user)
        same = tuple(
            (each.org_id, *each[2:7], *map(console.cell, (each.valid_from, each.valid_to)), each.from_kind)
            for each in life
        )
        lives.setdefault(same, []).append(life)
    return [
        together[0]._replace(
            user_id=_users([each.user_id for each in together]),
            last_listed_at=max(filter(None, (each.last_listed_at for each in together)), default=None),
        )
        for of_users in lives.values()
        for together in zip(*of_users, strict=True)
    ]


def _users(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _USERS_NAMED} more" if len(ids) > _USERS_NAMED else ""
    return ", ".join(ids[:_USERS_NAMED]) + more


def _happened(app: Application, flow_id: str, given: Given) -> None:
    def table(events: list[OrgWorkflowEvent]) -> None:
        story_table("\nWhat happened to it in its organisation", events, zone=given.zone, enos_zone=app.enos_zone)

    print_table(Report(app.engine).events(flow=flow_id, org=given.org, limit=needed(given)), table, given)


def _answered(app: Application, flow_id: str, given: Given) -> None:
    def table(details: list[FlowDetail]) -> None:
        rows = [each._replace(freq=each.freq and schedule_in_words(each.freq)) for each in details]
        console.rows("\nWhat EnOS said when it was asked", FlowDetail._fields, rows, zone=given.zone)

    print_table(details_of_flow(app.engine, flow_id, given.org), table, given)


def _detail_sentences(app: Application, events: Sequence[ListChange]) -> list[str]:
    """What EnOS said about each change, in a sentence; empty if details were never asked for."""
    if not any_details(app.engine):
        return []
    return [
        detail_sentence(detail, event.last_unchanged_at, event.observed_at, app.enos_zone)
        for event, detail in zip(events, details_of_changes(app.engine, events), strict=True)
    ]


def _objects(rows: Iterator[Any]) -> Iterator[dict[str, Any]]:
    return (row._asdict() for row in rows)


def print_rows(
    app: Application,
    empty_result: EmptyResult,
    rows: Iterable[Any],
    show_table: Callable[[list[Any]], None],
    given: Given,
    objects: Callable[[Iterator[Any]], Iterator[dict[str, Any]]] = _objects,
) -> bool:
    """Print the rows, or why there are none; return whether there are any."""
    if given.json:
        printed = console.json_list(objects(islice(rows, given.most())))
        if not printed:
            console.complain(empty_result.why_empty(app.engine), "yellow")
        return printed
    if not print_table(rows, show_table, given):
        console.say(empty_result.why_empty(app.engine))
        return False
    return True


def print_table(rows: Iterable[Any], show_table: Callable[[list[Any]], None], given: Given) -> bool:
    """Print the first rows, and whether there are more; return whether there are any."""
    most = given.most()
    listed = list(islice(rows, most and most + 1))
    if not listed:
        return False
    show_table(listed[:most])
    if most is not None and len(listed) > most:
        shown = "this one" if most == 1 else f"these {most}"
        console.complain(f"There are more than {shown}: --limit 0 shows all, --json gives every column.", "dim")
    return True


def needed(given: Given) -> int | None:
    """How many rows ``print_rows`` reads (for a table, one more than it shows), so that only these are sorted. None:
    all."""
    most = given.most()
    return most if most is None or given.json else most + 1


def columns_table(names: tuple[str, ...], zone: dt.tzinfo) -> Callable[[list[Any]], None]:
    """Prints these columns; cycles in words."""

    def table(rows: list[Any]) -> None:
        if "cycle" in names:
            rows = [row._replace(cycle=cycle_label(row.cycle)) for row in rows]
        console.rows("", names, rows, zone=zone)

    return table
