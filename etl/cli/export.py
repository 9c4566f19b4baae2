"""The commands that take the trail elsewhere: export, report."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer

from etl import __version__, database, verify
from etl.cli import console, options
from etl.cli.application import Application
from etl.cli.empty_results import require_names
from etl.cli.status import configured_schedules
from etl.errors import UsageError
from etl.export import Origin, export
from etl.report import ListChange, ListState, ListWorkflow, ListWorkflowAsOf, Report, columns_of, stories
from etl.report.rows import OrgWorkflowEvent
from etl.report.summary_rows import Scope
from etl.system.clock import utc_now

Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="A file; standard output if omitted.", show_default=False)
]


AfterSeal = Annotated[
    int | None,
    typer.Option(
        "--after-seal",
        min=0,
        help="changes, org-events: what the runs brought that were sealed after this one; 0 for all. The manifest "
        "has the last_seal to go on from.",
        show_default=False,
    ),
]


class Format(StrEnum):
    """The formats that `export` writes."""

    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"


FormatOption = Annotated[
    Format | None,
    typer.Option(
        "--format",
        help="CSV for spreadsheets, JSON lines, or Parquet.",
        show_default="by the suffix of the file, else csv",
    ),
]
_MOST_DAYS: Final = 3660
_SUFFIXES: Final = {
    ".csv": Format.csv,
    ".jsonl": Format.jsonl,
    ".ndjson": Format.jsonl,
    ".parquet": Format.parquet,
}


class What(StrEnum):
    """The rows that `export` writes."""

    changes = "changes"
    flows = "flows"
    history = "history"
    org_events = "org-events"


class _Filters(NamedTuple):
    """The filters, as they were typed."""

    org: str | None
    user: str | None
    since: str | None
    until: str | None
    as_of: str | None


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(name="export")(export_rows)
    app.command()(report)


def report(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    since: Annotated[
        str | None, typer.Option("--since", help="The first day (UTC) of plots and changes; 30 days ago if omitted.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Days (UTC) before then; today is the last if omitted.")
    ] = None,
    org: options.Org = None,
    config_file: options.Config = None,
) -> None:
    """Write one self-contained HTML page with plots: freshness, changes, holds, coverage, the latest trail."""
    from etl.web import report_html

    scope = _scope(since, until, org)
    with options.open_application(context, config_file) as app:
        database.require_current(app.engine)
        require_names(app.engine, org=org)
        schedules, broken = configured_schedules(app)
        if broken is not None:
            console.complain(f"Overdue targets are not known: {broken}", "yellow")
        report_html(
            app.engine,
            now=utc_now(),
            file=output,
            coverage_gap=app.settings.coverage_gap,
            schedules=schedules,
            scope=scope,
        )
    console.complain(f"{output} written.", "green")


def _scope(since: str | None, until: str | None, org: str | None) -> Scope | None:
    """What a report is about; None: the usual. Raises UsageError."""
    if since is None and until is None and org is None:
        return None
    today = utc_now().date()
    last = (options.moment(until, "UTC") - dt.timedelta(microseconds=1)).date() if until else today
    first = options.moment(since, "UTC").date() if since else last - dt.timedelta(days=29)
    if not first <= last <= today:
        raise UsageError(f"A report is about days up to today, in their order, and not from {first} to {last}.")
    if (last - first).days >= _MOST_DAYS:
        raise UsageError(f"A report is about at most {_MOST_DAYS} days: from {first} to {last} are more.")
    return Scope(first, last, org or "", everything=False)


def export_rows(
    context: typer.Context,
    what: Annotated[
        What, typer.Argument(help="The trail, the current list, the validity spans, or organisations' events.")
    ],
    fmt: FormatOption = None,
    output: Output = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    since: Annotated[
        str | None, typer.Option("--since", help="changes, org-events: from then on.", show_default=False)
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="changes, org-events: before then.", show_default=False)
    ] = None,
    after_seal: AfterSeal = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", help="flows: the list at that time.", show_default=False)
    ] = None,
    org: options.Org = None,
    user: options.User = None,
    timezone: options.Zone = "UTC",
    partition_by: Annotated[
        str | None,
        typer.Option("--partition-by", help="'month': changes in a folder, one Parquet file per month."),
    ] = None,
    keep_texts: Annotated[
        bool,
        typer.Option("--keep-texts", help="csv: texts as they are, also those that look like a formula; for programs."),
    ] = False,
    config_file: options.Config = None,
) -> None:
    """Write the trail or a list to a file, with a manifest (count, SHA-256, chain heads)."""
    chosen = _format(fmt, output)
    _check_export(what, chosen, output, since or until, as_of, partition_by)
    _check_seal(what, after_seal, since or until, partition_by)
    if output and output.is_file() and not force:
        raise UsageError(f"{output} exists already: --force replaces it.")
    with options.open_application(context, config_file) as app:
        database.require_current(app.engine)
        require_names(app.engine, org=org, user=user)
        filters = _Filters(org, user, since, until, as_of)
        seals = None if after_seal is None else stories.seals_after(app.engine, after_seal)
        origin = _origin(app, what, filters, seals)
        row_type, rows = _rows(app, what, filters, timezone, seals)
        columns, month_of = columns_of(row_type), "observed_at" if partition_by else None
        given = origin if output else None
        to = output or console.sink()
        count = export(rows, columns, chosen.value, to, origin=given, by_month_of=month_of, keep_texts=keep_texts)
    if output:
        console.complain(f"{count} rows in {output}.", "green")


def _format(asked: Format | None, output: Path | None) -> Format:
    """The format that was asked for, or that the file's suffix names. Raises UsageError if they differ."""
    named = _SUFFIXES.get(output.suffix.lower()) if output else None
    if asked and named and asked is not named:
        raise UsageError(f"{output} would hold {asked}, and its suffix says {named}: name it otherwise.")
    return asked or named or Format.csv


def _check_seal(what: What, after_seal: int | None, between: str | None, partition_by: str | None) -> None:
    if after_seal is None:
        return
    if what not in (What.changes, What.org_events):
        raise UsageError("--after-seal belongs to `export changes` and `export org-events`.")
    if between or partition_by:
        raise UsageError("--after-seal goes by runs: leave --since, --until and --partition-by out.")


def _check_export(
    what: What, fmt: Format, output: Path | None, between: str | None, as_of: str | None, partition_by: str | None
) -> None:
    if between and what not in (What.changes, What.org_events):
        raise UsageError("--since and --until belong to `export changes` and `export org-events`.")
    if as_of and what is not What.flows:
        raise UsageError("--as-of belongs to `export flows`.")
    if partition_by is None:
        return
    if partition_by != "month":
        raise UsageError(f"--partition-by takes only 'month', not {partition_by!r}.")
    if what is not What.changes or fmt is not Format.parquet or output is None:
        raise UsageError("--partition-by month belongs to `export changes --format parquet -o FOLDER`.")


def _origin(app: Application, what: What, filters: _Filters, seals: stories.Seals | None) -> Origin:
    """What the manifest says about the rows."""
    now = utc_now()
    given: dict[str, Any] = {name: value for name, value in filters._asdict().items() if value is not None}
    return Origin(
        what=what.value,
        filter=given if seals is None else given | {"after_seal": seals.after},
        taken_at=now,
        flowtrail=__version__,
        chain_heads=verify.heads(app.engine, now),
        last_seal=None if seals is None else seals.last,
    )


def _rows(
    app: Application, what: What, filters: _Filters, timezone: str, seals: stories.Seals | None
) -> tuple[type[tuple[Any, ...]], Iterator[tuple[Any, ...]]]:
    report, org, user = Report(app.engine), filters.org, filters.user
    since, until = options.period(filters.since, filters.until, timezone)
    as_of = options.moment(filters.as_of, timezone) if filters.as_of else None
    if what is What.org_events:
        return OrgWorkflowEvent, stories.events(app.engine, since=since, until=until, seals=seals, org=org, user=user)
    if what is What.changes and seals is not None:
        return ListChange, stories.changes_of(app.engine, seals, org=org, user=user)
    if what is What.changes:
        return ListChange, report.changes(since=since, until=until, org=org, user=user)
    if what is What.history:
        return ListState, report.history(org=org, user=user)
    if as_of is not None:
        return ListWorkflowAsOf, report.flows_as_of(as_of, org=org, user=user)
    return ListWorkflow, report.flows(org=org, user=user)
