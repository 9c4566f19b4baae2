"""What differs between the lists of two moments, of a user or of an organisation, and how well both are known.

The page and ``flowtrail diff`` read it from here. ``old`` is the earlier moment; what changed exactly at a moment is in
the list as of it.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from typing import Any, NamedTuple

from msgspec.structs import astuple
from sqlalchemy import BindParameter, ColumnElement, Connection, Select, Text, bindparam, func, select, text

from etl.domain.diff import by_id, diff
from etl.domain.model import Flow
from etl.report.asof import targets_statement
from etl.report.listings import STATES
from etl.report.names import WHOLE
from etl.report.reading import sql
from etl.report.rows import Coverage, Difference, TargetAsOf, sql_columns
from etl.report.targets import WHOLE_LISTS, KnownTarget, listing
from etl.schema import UtcTime, change_set, target


def whole_lists(org: str) -> tuple[ColumnElement[bool], ...]:
    """The same of one organisation, for statements that SQLAlchemy writes."""
    return target.c.org_id == org, target.c.user_id != "", target.c.expression == ""


class Moment(NamedTuple):
    """A moment, how many workflows were listed then, and how many lists were known how well."""

    at: dt.datetime
    flow_count: int | None
    lists: int
    observed: int
    unchanged_across_gap: int
    between: int
    unobserved: int
    not_known: int
    """Those that nobody had looked at by then."""
    observed_before: dt.datetime | None
    """Until then each of the known lists had been observed."""

    @property
    def coverage(self) -> Coverage:
        """The weakest of the lists."""
        weak: tuple[Coverage, ...] = ("unobserved", "between", "unchanged_across_gap")
        return "unobserved" if self.not_known else next((each for each in weak if getattr(self, each)), "observed")


class Comparison(NamedTuple):
    """Two moments, and since when anything is known."""

    old: Moment
    new: Moment
    first_look: dt.datetime | None

    @property
    def refusal(self) -> tuple[str, dt.datetime | None] | None:
        """Why the two cannot be compared: words, and the moment that they end with."""
        for each in (self.old, self.new):
            if self.first_look is None:
                return "no list to compare was observed yet", None
            if each.at < self.first_look:
                return "the first look was at", self.first_look
            if each.lists == each.not_known:
                return "nobody asked any more at", each.at
        return None


def of_target(connection: Connection, known: KnownTarget, old: dt.datetime, new: dt.datetime) -> Comparison:
    """Two moments of a target's list."""
    before, after = (_moment(connection, at, known.target._asdict()) for at in (old, new))
    return Comparison(before, after, known.first_observed_at)


def target_differences(connection: Connection, known: KnownTarget, compared: Comparison) -> list[Difference]:
    """The changes that lead from the one list to the other, by workflow and kind."""
    sides = [compared.old, compared.new]
    found = (connection.execute(listing(connection, known.target, side.at)) for side in sides)
    before, after = (by_id(Flow(row.flow_id, row.flow_name, row.cycle, row.editable) for row in rows) for rows in found)
    coverage = [side.coverage for side in sides]
    return [
        Difference(known.org_id, each.flow_id, each.kind, known.user_id, *astuple(each)[2:], *coverage)
        for each in diff(before, after)
    ]


def of_organisation(connection: Connection, org: str, old: dt.datetime, new: dt.datetime) -> Comparison:
    """Two moments of an organisation's list."""
    before, after = (
        _moment(connection, at, {"org_id": org}, WHOLE_LISTS)._replace(
            flow_count=STATES.count(connection, org=WHOLE + org, at=at)
        )
        for at in (old, new)
    )
    return Comparison(before, after, _first_look(connection, org))


def organisation_differences(org: str, compared: Comparison) -> Select[Any]:
    """``Difference``, by workflow, user and kind."""
    lists = (sql("asof_known") + sql("asof_targets")).format(targets=f" AND t.org_id = :org_id AND {WHOLE_LISTS}")
    sides = {"old": compared.old, "new": compared.new}
    statement = sql("difference").format(**{f"{name}_lists": re.sub(r":at\b", f":{name}_at", lists) for name in sides})
    given: list[BindParameter[Any]] = [bindparam("org_id", org, Text)]
    for name, side in sides.items():
        given += [bindparam(f"{name}_at", side.at, UtcTime), bindparam(f"{name}_coverage", side.coverage, Text)]
    found = text(statement).bindparams(*given).columns(*sql_columns(Difference)).subquery("difference")
    return select(found).order_by(found.c.flow_id, func.coalesce(found.c.user_id, ""), found.c.kind)


def _first_look(connection: Connection, org: str) -> dt.datetime | None:
    """When a whole list of the organisation was seen for the first time."""
    of_target = select(func.min(change_set.c.observed_at)).where(change_set.c.target_id == target.c.id)
    of_all = select(func.min(of_target.scalar_subquery())).where(*whole_lists(org))
    found: dt.datetime | None = connection.execute(of_all).scalar()
    return found


def _moment(connection: Connection, at: dt.datetime, filters: dict[str, Any], condition: str = "") -> Moment:
    lists = [TargetAsOf(*row) for row in connection.execute(targets_statement(at, filters, condition))]
    seen = [each.observed_before for each in lists if each.observed_before]
    counts = Counter(each.coverage for each in lists if each.observed_before)
    return Moment(
        at,
        flow_count=lists[0].flow_count if lists else None,
        lists=len(lists),
        observed=counts["observed"],
        unchanged_across_gap=counts["unchanged_across_gap"],
        between=counts["between"],
        unobserved=counts["unobserved"],
        not_known=len(lists) - len(seen),
        observed_before=min(seen, default=None),
    )
