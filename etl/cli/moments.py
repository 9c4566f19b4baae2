"""The commands about moments: diff sets two of them side by side, review asks people about one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

import click
from sqlalchemy import Engine

from etl.cli import console
from etl.cli.export import file_format, origin_of, require_new
from etl.cli.lists import cycle_label, require_names, what_happened, why_empty
from etl.cli.options import FILE, Options, shared
from etl.database import reading
from etl.errors import UsageError
from etl.export import export
from etl.printable import counted
from etl.report import difference
from etl.report.reading import stream
from etl.report.review import AccessReview, access_review
from etl.report.rows import Difference, columns_of
from etl.report.targets import KnownTarget, observed_targets, targets_of_user
from etl.system.clock import utc_now

_MOMENT: Final = ("at", "flow_count", "lists", "observed", "unchanged_across_gap", "between", "unobserved", "not_known",
                  "observed_before")  # fmt: skip
_DIFFERENCE: Final = ("change", "flow_id", "flow_name", "user_id", "old_coverage", "new_coverage")
_SAME: Final = "nothing: the two lists are the same"


@click.command()
@click.argument("old", metavar="FROM", help="The earlier moment, written as for --as-of.")
@click.argument("new", metavar="TO", help="The later one.")
@click.option("--csv", is_flag=True, help="Print CSV instead of a table.")
@shared(
    *("org", "user", "expression", "timezone", "limit", "json", "config"),
    org="The organisation; required.",
    user="The list of this user, instead of the organisation's.",
)
def diff(options: Options, old: str, new: str, csv: bool) -> None:
    """Show what differs between the lists of two moments, whatever happened in between, and how well both are known."""
    begin, end = options.moment(old), options.moment(new)
    org = required_org(options)
    if begin is None or end is None or begin > end:
        raise UsageError("FROM must not be later than TO.")
    if csv and options.json:
        raise UsageError("--csv and --json exclude each other.")
    if options.expression and options.user is None:
        raise UsageError("--expression chooses one of a user's lists: name the user, with --user.")
    with options.reading() as app:
        require_names(app.engine, org=org, user=options.user)
        compared, rows = _compared(app.engine, options, org, begin, end)
        if compared.refusal:
            words, at = compared.refusal
            exact = f" {at.astimezone(options.zone).isoformat(' ')}" if at else ""  # so that it can be typed as it is
            raise UsageError(f"Nothing can be compared: {words}{exact}.")
        if csv:
            export(islice(rows, options.limit or None), columns_of(Difference), "csv", console.sink())
        elif options.json:
            asked = {"org_id": org, "user_id": options.user, "expression": options.expression}
            both = {"from": compared.old._asdict(), "to": compared.new._asdict()}
            opening = console.encoded(asked | both).removesuffix(b"\n}\n") + b',\n  "differences": ['
            found = (row._asdict() for row in islice(rows, options.most()))
            console.json_list(found, opening, b"]\n}\n")
        else:
            console.rows("How well the two are known", _MOMENT, compared[:2], zone=options.zone)
            console.table("\nWhat differs", _DIFFERENCE, _cells(rows), _SAME, zone=options.zone, most=options.most())


@click.command()
@click.option("--output", "-o", type=FILE, required=True, help="The file to write: .csv, or .xlsx for Excel.")
@shared(
    *("org", "as_of", "force", "timezone", "config"),
    org="The organisation; required.",
    as_of="The lists at that time; now if omitted.",
)
def review(options: Options, output: Path) -> None:
    """Write who sees which workflow to a file, with room for a reviewer's decision, and a manifest."""
    org, at = required_org(options), options.moment(options.as_of) or utc_now()
    if output.suffix.lower() not in (".csv", ".xlsx"):
        raise UsageError(f"A review is a .csv or an .xlsx file: name {output} otherwise.")
    require_new(output, force=options.force)
    with options.reading() as app:
        require_names(app.engine, org=org)
        seen = observed_targets(app.engine, at, org=org, whole_lists=True)
        if seen.observed == seen.retired:  # an empty file would look like an answer
            raise UsageError(why_empty(app.engine, options, at=at, whole_lists=True))
        if searches := observed_targets(app.engine, at, org=org).searches:
            left_out = counted(searches, "search", "searches")
            console.complain(f"Left out: {left_out}. A review has whole lists.", "yellow")
        origin = origin_of(app, "review", replace(options, as_of=at.isoformat()))
        count = export(
            access_review(app.engine, org, at),
            columns_of(AccessReview),
            file_format(None, output),
            output,
            origin=origin,
        )
    console.complain(f"{count} rows in {output}.", "green")


def required_org(options: Options) -> str:
    """The organisation that a command is about. Raises UsageError."""
    if options.org is None:
        raise UsageError("Name the organisation: --org ORG.")
    return options.org


def _compared(
    engine: Engine, options: Options, org: str, old: dt.datetime, new: dt.datetime
) -> tuple[difference.Comparison, Iterable[Difference]]:
    with reading(engine) as connection:
        if options.user is None:
            compared = difference.of_organisation(connection, org, old, new)
            return compared, stream(engine, difference.organisation_differences(org, compared), Difference)
        known = _chosen(targets_of_user(connection, org, options.user), options.expression)
        compared = difference.of_target(connection, known, old, new)
        return compared, difference.target_differences(connection, known, compared)


def _chosen(known: Sequence[KnownTarget], expression: str) -> KnownTarget:
    """The list with this search expression; without one, the first, which usually has none either."""
    for each in known:
        if expression in ("", each.expression):
            return each
    raise UsageError(f"This user has no list with the search expression {expression!r}.")


def _cells(rows: Iterable[Difference]) -> Iterator[Sequence[object]]:
    for row in rows:
        yield _what(row), row.flow_id, row.new_name or row.old_name, row.user_id, row.old_coverage, row.new_coverage


def _what(row: Difference) -> str:
    match row.kind:
        case "baseline":
            return f"there since a first look, cycle {cycle_label(row.new_cycle)}"
        case "not_asked":
            return f"its last user was retired, cycle {cycle_label(row.old_cycle)}"
        case _:
            return what_happened(row)
