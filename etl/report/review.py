"""Who sees which workflow of an organisation, for a person who confirms it or has it taken away."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from heapq import merge
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine

from etl.database import reading
from etl.domain.kinds import LABELS
from etl.report.asof import cheaper_way, flows_statement, targets_statement
from etl.report.reading import stream
from etl.report.rows import COVERAGE_LABELS, TargetAsOf
from etl.report.targets import WHOLE_LISTS

NOT_KNOWN: Final = "not known"


class AccessReview(NamedTuple):
    """A workflow that a user's list had at a moment; without a workflow, a list that was empty or not known."""

    org_id: str
    user_id: str
    flow_id: str | None
    flow_name: str | None
    cycle_label: str | None
    editable: bool | None
    first_listed_at: dt.datetime | None
    known: str
    last_observed_at: dt.datetime | None
    last_change: str | None
    changed_at: dt.datetime | None
    ticket: str | None
    reviewer: str | None = None
    decision: str | None = None


class _Listed(NamedTuple):
    """One kind of the last change of a workflow that a list had."""

    org_id: str
    user_id: str
    flow_id: str
    flow_name: str | None
    cycle_label: str | None
    editable: bool | None
    first_listed_at: dt.datetime
    coverage: str
    observed_before: dt.datetime
    observed_after: dt.datetime | None
    kind: str
    changed_at: dt.datetime
    ticket: str | None


def access_review(engine: Engine, org: str, at: dt.datetime) -> Iterator[AccessReview]:
    """By user and workflow, in constant memory. Every user who was asked then has a row. Raises DatabaseError."""
    with reading(engine) as connection:
        lists = connection.execute(targets_statement(at, {"org_id": org}, WHOLE_LISTS))
        empty = [_of_list(each) for each in (TargetAsOf(*row) for row in lists) if not each.flow_count]
        way = cheaper_way(connection, at)
    asked: dict[str, Any] = {"condition": WHOLE_LISTS, "rows": "asof_review", "row_type": _Listed}
    listed = stream(engine, flows_statement(way, at, {"org_id": org}, **asked), _Listed)
    return merge(empty, map(_of_workflow, groupby(listed, itemgetter(1, 2))), key=attrgetter("user_id"))


def _of_list(each: TargetAsOf) -> AccessReview:
    nothing = (None,) * 5
    return AccessReview(each.org_id, each.user_id, *nothing, _known(each), each.observed_before, None, None, None)


def _of_workflow(found: tuple[Any, Iterator[_Listed]]) -> AccessReview:
    rows = list(found[1])
    row = rows[0]
    kinds = ", ".join(LABELS[each.kind].one for each in rows)
    tickets = ", ".join(dict.fromkeys(each.ticket for each in rows if each.ticket))
    return AccessReview(*row[:7], _known(row), row.observed_before, kinds, row.changed_at, tickets or None)


def _known(then: TargetAsOf | _Listed) -> str:
    if then.observed_before is None:
        return NOT_KNOWN
    if then.coverage == "unobserved" and then.observed_after is None:
        return "as last observed"
    return COVERAGE_LABELS[then.coverage]
