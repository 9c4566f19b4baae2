"""The commands that take the trail elsewhere: export, report."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from etl import __version__, verify
from etl.cli import console
from etl.cli.application import Application
from etl.cli.lists import require_names
from etl.cli.options import FILE, Options, shared
from etl.cli.status import configured_schedules
from etl.errors import UsageError
from etl.export import FORMATS, Format, Origin, export
from etl.report import listings
from etl.report.asof import flows_as_of
from etl.report.rows import ListWorkflowAsOf, columns_of
from etl.report.summaries import Scope
from etl.system.clock import utc_now

_MOST_DAYS: Final = 3660
_LISTS: Final[dict[str, listings.ListView[Any]]] = {
    "changes": listings.CHANGES,
    "flows": listings.FLOWS,
    "history": listings.HISTORY,
    "org-events": listings.EVENTS,
}
_NUMBERED: Final = ("change_set_id", "flow_id", "kind")
"""The order of the changes that some runs brought: the one in which change sets were numbered."""
_BY_RUN: Final = ("changes", "org-events")
"""What has a time, and a run that brought it."""
_SUFFIXES: Final[dict[str, Format]] = {**{f".{fmt}": fmt for fmt in FORMATS}, ".ndjson": "jsonl"}
_AFTER_SEAL: Final = (
    "changes, org-events: what the runs brought that were sealed after this one; 0 for all. The manifest has the "
    "last_seal to go on from."
)


@click.command()
@click.option("--output", "-o", type=FILE, required=True, help="The file to write.")
@shared(
    *("since", "until", "org", "config"),
    since="The first day (UTC) of plots and changes; 30 days ago if omitted.",
    until="Days (UTC) before then; today is the last if omitted.",
)
def report(options: Options, output: Path) -> None:
    """Write one self-contained HTML page with plots: freshness, changes, holds, coverage, the latest trail."""
    from etl.web.overview import report_html

    scope = _scope(options)
    with options.reading() as app:
        require_names(app.engine, org=options.org)
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


def _scope(options: Options) -> Scope | None:
    """What a report is about; None: the usual. Raises UsageError."""
    if options.since is None and options.until is None and options.org is None:
        return None
    today = utc_now().date()
    since, until = options.moment(options.since), options.moment(options.until)
    last = (until - dt.timedelta(microseconds=1)).date() if until else today
    first = since.date() if since else last - dt.timedelta(days=29)
    if not first <= last <= today:
        raise UsageError(f"A report is about days up to today, in their order, and not from {first} to {last}.")
    if (last - first).days >= _MOST_DAYS:
        raise UsageError(f"A report is about at most {_MOST_DAYS} days: from {first} to {last} are more.")
    return Scope(first, last, options.org or "", everything=False)


@click.command("export")
@click.argument(
    "what",
    type=click.Choice(list(_LISTS)),
    help="The trail, the current list, the validity spans, or organisations' events.",
)
@click.option(
    "--format",
    "asked",
    type=click.Choice(FORMATS),
    show_default="by the suffix of the file, else csv",
    help="CSV for spreadsheets, JSON lines, Parquet, or an Excel workbook.",
)
@click.option("--output", "-o", type=FILE, help="A file; standard output if omitted.")
@click.option("--after-seal", type=click.IntRange(0), help=_AFTER_SEAL)
@click.option("--partition-by", help="'month': changes in a folder, one Parquet file per month.")
@click.option(
    "--keep-texts",
    is_flag=True,
    help="csv, xlsx: texts as they are, also those that look like a formula.",
)
@shared(
    *("force", "since", "until", "as_of", "org", "user", "timezone", "config"),
    since="changes, org-events: from then on.",
    until="changes, org-events: before then.",
    as_of="flows: the list at that time.",
)
def export_rows(
    options: Options,
    what: str,
    asked: Format | None,
    output: Path | None,
    after_seal: int | None,
    partition_by: str | None,
    keep_texts: bool,
) -> None:
    """Write the trail or a list to a file, with a manifest (count, SHA-256, chain heads)."""
    fmt = file_format(asked, output)
    _check(options, what, fmt, output, after_seal, partition_by)
    with options.reading() as app:
        require_names(app.engine, org=options.org, user=options.user)
        seals = None if after_seal is None else listings.seals_after(app.engine, after_seal)
        origin = origin_of(app, what, options, seals)
        row_type, rows = _rows(app, what, options, seals)
        count = export(
            rows,
            columns_of(row_type),
            fmt,
            output or console.sink(),
            origin=origin if output else None,
            by_month_of="observed_at" if partition_by else None,
            keep_texts=keep_texts,
        )
    if output:
        console.complain(f"{count} rows in {output}.", "green")


def file_format(asked: Format | None, output: Path | None) -> Format:
    """The format that was asked for, or that the file's suffix names. Raises UsageError if they differ."""
    named = _SUFFIXES.get(output.suffix.lower()) if output else None
    if asked and named and asked != named:
        raise UsageError(f"{output} would hold {asked}, and its suffix says {named}: name it otherwise.")
    return asked or named or "csv"


def _check(
    options: Options, what: str, fmt: str, output: Path | None, after_seal: int | None, partition_by: str | None
) -> None:
    """Raise UsageError for options that do not go together."""
    between = options.since or options.until
    if between and what not in _BY_RUN:
        raise UsageError("--since and --until belong to `export changes` and `export org-events`.")
    if options.as_of and what != "flows":
        raise UsageError("--as-of belongs to `export flows`.")
    if partition_by not in (None, "month"):
        raise UsageError(f"--partition-by takes only 'month', not {partition_by!r}.")
    if partition_by and (what != "changes" or fmt != "parquet" or output is None):
        raise UsageError("--partition-by month belongs to `export changes --format parquet -o FOLDER`.")
    if after_seal is not None and what not in _BY_RUN:
        raise UsageError("--after-seal belongs to `export changes` and `export org-events`.")
    if after_seal is not None and (between or partition_by):
        raise UsageError("--after-seal goes by runs: leave --since, --until and --partition-by out.")
    if output:
        require_new(output, force=options.force)


def require_new(output: Path, *, force: bool) -> None:
    """Refuse to replace a file, unless that was asked for. Raises UsageError."""
    if output.is_file() and not force:
        raise UsageError(f"{output} exists already: --force replaces it.")


def origin_of(app: Application, what: str, options: Options, seals: listings.Seals | None = None) -> Origin:
    """What the manifest says about the rows."""
    now = utc_now()
    typed = {name: getattr(options, name) for name in ("org", "user", "since", "until", "as_of")}
    filters = {name: value for name, value in typed.items() if value is not None}
    return Origin(
        what=what,
        filter=filters if seals is None else filters | {"after_seal": seals.after},
        taken_at=now,
        flowtrail=__version__,
        chain_heads=verify.heads(app.engine, now),
        last_seal=None if seals is None else seals.last,
    )


def _rows(
    app: Application, what: str, options: Options, seals: listings.Seals | None
) -> tuple[type[tuple[Any, ...]], Iterator[tuple[Any, ...]]]:
    asked, at = options.filters(), options.moment(options.as_of)
    if at is not None:
        return ListWorkflowAsOf, flows_as_of(app.engine, at, **asked)
    listing = _LISTS[what]
    order = _NUMBERED if seals and what == "changes" else ()
    return listing.row_type, listing.rows(app.engine, **asked, seals=seals, order=order)
