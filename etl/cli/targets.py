"""The command `targets list`: every target, where it comes from, and since when."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from etl.cli import CommandGroup, console
from etl.cli.application import Application
from etl.cli.options import Given, shared
from etl.config import Schedule, TargetList
from etl.domain.model import Target
from etl.report.targets import KnownTarget, known_targets
from etl.store import Store, StoredRoster
from etl.sync import organisations

targets = CommandGroup("targets", help="The targets: whose lists are asked for.")
_COLUMNS: Final = (
    *("org_id", "user_id", "expression", "source"),
    *("since", "first_observed_at", "missing_since", "retired_at"),
)


class Row(NamedTuple):
    """A target, configured or known to the database.

    ``source``: the schedules that have it, with "(roster)" after those that have it by ``users = "all"``; "" if none
    has. ``since``: for a roster, since when it lists the user; otherwise ``first_observed_at``. ``missing_since``:
    since when the roster lacks the user, if that is not believed.
    """

    org_id: str
    user_id: str
    expression: str
    source: str
    since: dt.datetime | None
    first_observed_at: dt.datetime | None
    missing_since: dt.datetime | None
    retired_at: dt.datetime | None


@targets.command("list")
@shared("org", "user", "limit", "json", "config")
def list_targets(given: Given) -> None:
    """Show all targets, where each comes from (a list, a file, the organisation's roster), and since when."""
    with given.reading(logs=True) as app:
        found = (each for each in _rows(app) if given.org in (None, each.org_id) and given.user in (None, each.user_id))
        shown = islice(found, given.most())
        if given.json:
            console.json_list(each._asdict() for each in shown)
            return
        all_of_them = given.org is None and given.user is None
        empty = "none: add [[targets]] to a schedule" if all_of_them else "none with that --org and --user"
        console.rows("", _COLUMNS, shown, empty)
        left_out = sum(1 for _ in found)
    if left_out:
        console.complain(f"And {left_out} more: --limit 0 shows all.", "dim")


def _rows(app: Application) -> Iterator[Row]:
    """By organisation, user and expression."""
    configured, listed = app.schedules, app.listed_schedules()
    stored_rosters = Store(app.engine, app.stop).rosters(organisations(configured))
    known = {each.target: each for each in known_targets(app.engine)}
    listed_targets = set(TargetList.union([schedule.targets for schedule in listed])) if listed else set()
    for target in sorted(listed_targets | known.keys()):
        yield _row(target, known.get(target), _source(target, configured, listed), stored_rosters)


def _source(target: Target, configured: Sequence[Schedule], listed: Sequence[Schedule]) -> str:
    names = []
    for own, expanded in zip(configured, listed, strict=True):
        if target in own.targets:
            names.append(own.name)
        elif target in expanded.targets:
            names.append(f"{own.name} (roster)")
    return ", ".join(names)


def _row(target: Target, known: KnownTarget | None, source: str, stored_rosters: Mapping[str, StoredRoster]) -> Row:
    stored = stored_rosters.get(target.org_id)
    observed = known.first_observed_at if known else None
    since = missing = None
    if stored is not None and source.endswith("(roster)") and (user := stored.known.get(target.user_id)):
        since, missing = user.listed_since, user.missing_since
    return Row(*target, source, since or observed, observed, missing, known.retired_at if known else None)
