"""The command that says how complete a trail is: coverage."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Final

import click

from etl.cli import console
from etl.cli.empty_results import require_names
from etl.cli.options import SHOWN, Given, shared
from etl.printable import counted
from etl.report.coverage import Coverage, CoveredTarget, Gap, Hold, Membership, Unanswered, coverage
from etl.system.clock import utc_now

_TARGETS: Final = CoveredTarget._fields
_HOLDS: Final = (*Hold._fields[:-2], "workflows")


@click.command("coverage")
@shared("org", "user", "since", "until", "timezone", "json", "config")
def show_coverage(given: Given) -> None:
    """Show how complete the trail is: which targets were to be asked, which answered, and gaps; with the seals."""
    zone = given.zone
    begin, end = given.period()
    with given.reading() as app:
        require_names(app.engine, org=given.org, user=given.user)
        found = coverage(app.engine, utc_now(), since=begin, until=end, org=given.org, user=given.user)
    if given.json:
        console.json(_as_object(found))
    else:
        _show(found, zone)


def _as_object(found: Coverage) -> dict[str, Any]:
    """Its lists as lists of objects, and the seals."""
    lists = {name: value for name, value in found._asdict().items() if isinstance(value, list)}
    rest = {name: value for name, value in found._asdict().items() if name not in lists}
    return rest | {"seals": found.seals} | {name: [each._asdict() for each in value] for name, value in lists.items()}


def _show(found: Coverage, zone: dt.tzinfo) -> None:
    if found.seals is None:
        console.say("No run that has a seal was to ask anybody in that time.")
        return
    _rows("Who was to be asked", _TARGETS, found.targets, zone)
    _rows("\nNot answered", Unanswered._fields, found.unanswered, zone)
    _rows("\nNobody was looking", Gap._fields, found.gaps, zone)
    holds = [(*each[:-2], len({*each.flow_ids, *(doubt[0] for doubt in each.doubted)})) for each in found.holds]
    _rows("\nHolds", _HOLDS, holds, zone)
    _rows("\nCame and went", Membership._fields, found.memberships, zone)
    asked, answered = (sum(getattr(each, name) for each in found.targets) for name in ("asked", "answered"))
    first, last = found.seals
    summary = f"In {counted(found.runs, 'run')}, {counted(len(found.targets), 'target')} had to be asked: "
    summary += f"{answered} of {asked} requests were answered."
    console.say(f"\n{summary} The seals {first} to {last} prove it; `flowtrail verify` proves the seals.", "bold")
    if found.unsealed_runs:
        console.say(f"{found.unsealed_runs} runs are under way: they count once they have a seal.", "yellow")


def _rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], zone: dt.tzinfo) -> None:
    """Print the first rows, without empty columns."""
    shown = rows[:SHOWN]
    used = [n for n in range(len(columns)) if any(row[n] not in (None, "", 0) for row in shown)]
    console.table(title, [columns[n] for n in used], ([row[n] for n in used] for row in shown), zone=zone)
    if len(rows) > len(shown):
        console.complain(f"And {len(rows) - len(shown)} more: --json has all.", "dim")
