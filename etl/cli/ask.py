"""The commands that only read: status, flows, changes, history."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Annotated, Any, NamedTuple

import typer

from etl import database, vitals
from etl.cli import options, show
from etl.cli.events import event_table
from etl.cli.workbench import Workbench, utc_now
from etl.config import Schedule
from etl.errors import ConfigError, UsageError
from etl.model import CHANGE_KINDS
from etl.moments import parse_moment
from etl.report import Report
from etl.service import LEASE
from etl.slots import time_zone
from etl.store import Store
from etl.vitals import Condition, Overdue, Vitals

_Flow = Annotated[str | None, typer.Option("--flow", help="Only this workflow id.", show_default=False)]
_Name = Annotated[str | None, typer.Option("--name", help="Only names with this in them.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(status)
    app.command()(flows)
    app.command()(changes)
    app.command()(history)


def status(context: typer.Context, as_json: options.Json = False, config_file: options.Config = None) -> None:
    """Show the last runs, the targets with problems, what is held, and what runs next."""
    with options.open_workbench(context, config_file) as bench:
        report = _report(bench)
        active = Store(bench.engine).lease_holder(LEASE)
        runs, problems = list(report.runs(limit=10)), list(report.problems())
        now = utc_now()
        configured, broken = _configured(bench)
        found = None if configured is None else vitals.read(bench.engine, configured, now)
        schedules = _schedules(configured or (), found, now) if found else []
        damage = vitals.damage_of(bench.engine)
    conditions = found.conditions if found else [damage] if damage else []
    if as_json:
        show.json(
            {
                "active": active,
                "conditions": [each._asdict() for each in conditions],
                "freshness": found and _freshness(found),
                "schedules": schedules,
                "overdue": [_named(each) for each in found.overdue] if found else [],
                "runs": [run._asdict() for run in runs],
                "problems": [problem._asdict() for problem in problems],
            }
        )
    else:
        _show_status(active, conditions, found, schedules, runs, problems)
    if broken is not None:
        raise broken


def _configured(bench: Workbench) -> tuple[Sequence[Schedule] | None, ConfigError | None]:
    folder = bench.settings.schedules_dir
    if not folder.exists():
        show.complain(
            f"There is no folder {folder}, so what runs next, and what is overdue, is not known here.", "yellow"
        )
        return None, None
    try:
        return bench.schedules, None
    except ConfigError as error:
        return None, error


def _schedules(configured: Sequence[Schedule], found: Vitals, now: dt.datetime) -> list[dict[str, Any]]:
    return [
        {
            "schedule": each.name,
            "targets": len(each.targets),
            "overdue": found.overdue_by_schedule[each.name],
            "last_success_at": found.last_success_at[each.name],
            "next_run_at": each.slots.next_after(now),
        }
        for each in configured
    ]


def _freshness(found: Vitals) -> dict[str, Any]:
    """What ``/freshness`` says, without the names: the problems have them."""
    counts = {name: getattr(found, name) for name in ("refused", "failing", "held", "held_removals", "never_observed")}
    return {"status": "fresh" if found.fresh else "overdue", "overdue": len(found.overdue), **counts}


def _named(overdue: Overdue) -> dict[str, Any]:
    """One flat object; ``Overdue`` has a target in it."""
    columns = overdue._asdict()
    return {"schedule": columns.pop("schedule"), **columns.pop("target")._asdict(), **columns}


def _show_status(
    active: str | None,
    conditions: Sequence[Condition],
    found: Vitals | None,
    schedules: list[dict[str, Any]],
    runs: list[Any],
    problems: list[Any],
) -> None:
    show.say(f"Service: {f'active on {active}' if active else 'not running'}.", "bold")
    for condition in conditions:
        show.say(f"{condition.sentence} {condition.remedy}", "red")
    if found is not None:
        said = {name: count for name, count in _freshness(found).items() if count and name != "status"}
        counts = "".join(f", {count} {name.replace('_', ' ')}" for name, count in said.items())
        show.say(f"Targets: {found.targets}{counts or ', all of them fresh'}.", "" if found.fresh else "red")
    names = ("schedule", "targets", "overdue", "last_success_at", "next_run_at")
    show.table("\nSchedules", names, ([*each.values()] for each in schedules))
    if found is not None and found.overdue:
        rows = [_named(each) for each in found.overdue[: options.SHOWN]]
        show.table("\nOverdue", [*rows[0]], ([*row.values()] for row in rows))
    _table("\nLast runs", ("id", "schedule", "origin", "status", "started_at", "targets", "changed", "unchanged",
                           "held", "failed", "stale", "missed"), runs)  # fmt: skip
    columns = ("org_id", "user_id", "expression", "last_observed_at", "consecutive_failures", "last_error_code",
               "last_error", "held_removals", "held_since")  # fmt: skip
    _table("\nTargets with problems", columns, problems)


def flows(
    context: typer.Context,
    org: options.Org = None,
    user: options.User = None,
    flow: _Flow = None,
    name: _Name = None,
    cycle: Annotated[
        str | None, typer.Option("--cycle", help="Only this cycle: M, W, D, H, mi, or its name.", show_default=False)
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option("--as-of", help="The list at that time: 2026-03-31, yesterday, '7 days ago'.", show_default=False),
    ] = None,
    targets: Annotated[
        bool, typer.Option("--targets", help="With --as-of: one row a target, empty lists too.")
    ] = False,
    timezone: options.Zone = "UTC",
    limit: options.Limit = None,
    as_json: options.Json = False,
    config_file: options.Config = None,
) -> None:
    """List the workflows that exist now, or existed then, and how well that is known."""
    if targets and not as_of:
        raise UsageError("--targets belongs to --as-of: name the time.")
    with options.open_workbench(context, config_file) as bench:
        report = _report(bench)
        columns: tuple[str, ...] = ("org_id", "user_id", "expression")
        rows: Iterator[Any]
        if as_of is None:
            most = _needed(limit, as_json)
            rows = report.flows(org=org, user=user, flow=flow, name=name, cycle=cycle, limit=most)
            columns += ("flow_id", "flow_name", "cycle_label", "editable", "changed_at", "last_observed_at")
            columns += ("missing_since",)
        elif targets:
            rows = report.targets_as_of(moment(as_of, timezone), org=org, user=user)
            columns += ("coverage", "observed_before", "observed_after", "flow_count")
        else:
            at = moment(as_of, timezone)
            rows = report.flows_as_of(at, org=org, user=user, flow=flow, name=name, cycle=cycle)
            columns += ("flow_id", "flow_name", "cycle_label", "editable", "coverage", "observed_before")
            columns += ("observed_after",)
        _print(rows, _columns(columns, "no workflows"), limit, as_json)


def changes(
    context: typer.Context,
    since: Annotated[
        str | None, typer.Option("--since", help="From then on: 'yesterday', '7 days ago', ISO.", show_default=False)
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Before then.", show_default=False)] = None,
    org: options.Org = None,
    user: options.User = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            help=f"Only this kind, more than once if you like: {', '.join(CHANGE_KINDS)}.",
            autocompletion=lambda: list(CHANGE_KINDS),
        ),
    ] = None,
    flow: _Flow = None,
    name: _Name = None,
    timezone: options.Zone = "UTC",
    limit: options.Limit = None,
    as_json: options.Json = False,
    config_file: options.Config = None,
) -> None:
    """Show the trail: what was added, removed, or changed, and between which two observations."""
    for each in kind or ():
        if each not in CHANGE_KINDS:
            raise UsageError(f"There is no kind {each!r}: choose from {', '.join(CHANGE_KINDS)}.")
    with options.open_workbench(context, config_file) as bench:
        rows = _report(bench).changes(
            since=moment(since, timezone) if since else None,
            until=moment(until, timezone) if until else None,
            org=org,
            user=user,
            kinds=kind or (),
            flow=flow,
            name=name,
            newest_first=not as_json,
            limit=_needed(limit, as_json),
        )
        _print(rows, partial(event_table, ""), limit, as_json)


def history(
    context: typer.Context,
    flow_id: Annotated[str, typer.Argument(metavar="FLOW_ID")],
    org: options.Org = None,
    user: options.User = None,
    limit: options.Limit = None,
    as_json: options.Json = False,
    config_file: options.Config = None,
) -> None:
    """Show one workflow's life, for every user who sees it."""
    with options.open_workbench(context, config_file) as bench:
        columns = ("org_id", "user_id", "expression", "flow_name", "cycle", "editable", "valid_from", "valid_to",
                   "from_kind", "last_seen_at")  # fmt: skip
        rows = _report(bench).history(flow=flow_id, org=org, user=user)
        _print(rows, _columns(columns, "never seen"), limit, as_json)


def _report(bench: Workbench) -> Report:
    database.require_current(bench.engine, create_if_empty_sqlite=False)
    return Report(bench.engine)


def moment(text: str, zone: str) -> dt.datetime:
    """The moment that a person typed. Raises UsageError in one sentence."""
    try:
        return parse_moment(text, utc_now(), time_zone(zone))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _print(rows: Iterable[Any], show_table: Callable[[list[Any]], None], limit: int | None, as_json: bool) -> None:
    if as_json:
        show.json_list(row._asdict() for row in islice(rows, limit or None))
        return
    most = options.SHOWN if limit is None else limit
    listed = list(islice(rows, _needed(limit, as_json)))
    more = bool(most) and len(listed) > most
    show_table(listed[:most] if more else listed)
    if more:
        show.complain(f"There are more than these {most}: --limit 0 shows all, --json gives every column.", "dim")


def _needed(limit: int | None, as_json: bool) -> int | None:
    """So many rows does ``_print`` read, for a table one more than it shows: so many need be sorted. None: all."""
    if as_json or limit == 0:
        return limit or None
    return (options.SHOWN if limit is None else limit) + 1


def _columns(names: tuple[str, ...], empty: str) -> Callable[[list[Any]], None]:
    return lambda rows: _table("", names, rows, empty)


def _table(title: str, columns: tuple[str, ...], rows: Iterable[NamedTuple], empty: str = "none") -> None:
    listed = list(rows)
    used = [c for c in columns if any(getattr(row, c) not in (None, "") for row in listed)] or list(columns)
    show.table(title, used, ([getattr(row, column) for column in used] for row in listed), empty)
