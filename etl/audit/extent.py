"""What a bundle is about, and what it must contain to prove that: which runs, and which versions of which targets.

| runs | are opened |
|---|---|
| in the time of the bundle | `whole`; with an organisation, only those that asked for and wrote about no other |
| others that made a version of the bundle | `hashes`: only their list of hashes |
| the rest | `no` |

A target begins with the version that was in force when the time began, and ends with the last one sealed in it.
"""

from __future__ import annotations

import datetime as dt
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Column, ColumnElement, Connection, Select, Table, and_, case, exists, func, select, union

from etl.database import STREAMED
from etl.report.runs import Scopes
from etl.schema import (
    TARGET_KEY,
    UtcTime,
    change_set,
    hold_event,
    observation,
    org_event,
    run_seal,
    sync_issue,
    sync_run,
    target,
    target_membership,
    workflow_detail,
)
from etl.store.bulk import BulkValues

_AT_ONCE: Final = 500
"""Targets whose versions are read in one query."""
_NAMES_A_TARGET: Final = (change_set, sync_issue, target_membership, hold_event)
_NAMES_AN_ORGANISATION: Final = (workflow_detail, org_event)


class Extent(NamedTuple):
    """The runs that were sealed at or after ``since`` and before ``until``; None: from the first, to the last."""

    since: dt.datetime | None = None
    until: dt.datetime | None = None
    org_id: str | None = None
    """Only this organisation."""


class Range(NamedTuple):
    """Some versions of a target, both ends included."""

    target_id: int
    first: int
    last: int


class Ranges:
    """The versions of each target, by organisation, user and expression; 24 bytes per target."""

    def __init__(self) -> None:
        self._columns = (array("q"), array("q"), array("q"))

    def __len__(self) -> int:
        return len(self._columns[0])

    def add(self, each: Range) -> None:
        for column, value in zip(self._columns, each, strict=True):
            column.append(value)

    def chunks(self) -> Iterator[Sequence[Range]]:
        """All of them, some at a time."""
        for start in range(0, len(self), _AT_ONCE):
            yield [Range(*row) for row in zip(*(c[start : start + _AT_ONCE] for c in self._columns), strict=True)]


_GIVEN: Final = BulkValues(target_id="bigint", first="int", last="int")


def made_in(given: Any, versions: Table, *, earlier: int = 0) -> ColumnElement[bool]:
    """Which rows of a table are of the versions of given ranges, or of so many versions before the first."""
    between = versions.c.version.between(given.first - earlier, given.last)
    return and_(versions.c.target_id == given.target_id, between)


def rows_in(
    connection: Connection, chunks: Iterable[Sequence[Range]], query: Callable[[Any], Select[Any]]
) -> Iterator[Sequence[Any]]:
    """The rows of a query for some ranges at a time; it is made from their columns."""
    statement = query(_GIVEN.select(connection.dialect.name).subquery("given").c)
    for chunk in chunks:
        given = _GIVEN.bound(connection, [tuple(each) for each in chunk])
        with connection.execute(statement, given, execution_options=STREAMED) as rows:
            yield from rows


class Contents(NamedTuple):
    """What is in a bundle."""

    extent: Extent
    """Its ``until`` may be earlier than what was asked for, if a run has not ended."""
    made_at: dt.datetime
    ranges: Ranges
    whole: frozenset[int]
    """The runs that are opened completely."""
    hashes: frozenset[int]

    def opened(self, run_id: int) -> str:
        """How much of a run is in the bundle."""
        return "whole" if run_id in self.whole else "hashes" if run_id in self.hashes else "no"


def contents(connection: Connection, extent: Extent, now: dt.datetime) -> Contents:
    """Decide what is in a bundle; ``now`` is a moment before the transaction began."""
    extent = extent._replace(until=_before_what_runs(connection, extent))
    ranges = _ranges(connection, extent)
    whole = _whole(connection, extent)
    makers = set(of_versions(connection, ranges, change_set.c.run_id)) - whole
    return Contents(extent, _made_at(connection, now), ranges, frozenset(whole), frozenset(makers))


def _made_at(connection: Connection, now: dt.datetime) -> dt.datetime:
    """The latest time that certainly is before the reading: every older seal is there."""
    latest: list[dt.datetime | None] = [
        connection.execute(select(func.max(column, type_=UtcTime()))).scalar()
        for column in (observation.c.last_at, run_seal.c.sealed_at)
    ]
    return max([now, *(at for at in latest if at is not None)])


def _before_what_runs(connection: Connection, extent: Extent) -> dt.datetime | None:
    """The end of the bundle: before any run began that is not sealed, and before any seal of a later run.

    So nothing in it rests on what such a run writes, even if the clock went back meanwhile.
    """
    began = (func.min(sync_run.c.id), func.min(sync_run.c.started_at, type_=UtcTime()))
    first, at = connection.execute(select(*began).where(~exists().where(run_seal.c.run_id == sync_run.c.id))).one()
    if first is None:
        return extent.until
    later = select(func.min(run_seal.c.sealed_at, type_=UtcTime())).where(run_seal.c.run_id > first)
    ends = (extent.until, at, connection.execute(later).scalar())
    return min((each for each in ends if each is not None), default=None)


# -------------------------------------------------------------------------------------------------------- versions


def _ranges(connection: Connection, extent: Extent) -> Ranges:
    sealed_at, version = run_seal.c.sealed_at, change_set.c.version
    before_end = sealed_at.is_not(None) if extent.until is None else sealed_at < extent.until
    inside = before_end if extent.since is None else and_(before_end, sealed_at >= extent.since)
    query = (
        select(
            target.c.id,
            func.min(case((inside, version))).label("first_inside"),
            func.max(case((before_end, version))).label("last"),
        )
        .join_from(target, change_set, change_set.c.target_id == target.c.id)
        .outerjoin(run_seal, run_seal.c.run_id == change_set.c.run_id)
        .group_by(target.c.id, *TARGET_KEY)
        .order_by(*TARGET_KEY)
    )
    if extent.org_id is not None:
        query = query.where(target.c.org_id == extent.org_id)
    ranges = Ranges()
    with connection.execute(query, execution_options=STREAMED) as rows:
        for target_id, first_inside, last in rows:
            if last is not None:
                first = last if first_inside is None else max(1, first_inside - 1)
                ranges.add(Range(target_id, first, last))
    return ranges


def of_versions(connection: Connection, ranges: Ranges, column: Column[Any]) -> Iterator[Any]:
    """What a column of ``change_set`` has in the versions; may contain repetitions."""

    def made(given: Any) -> Select[Any]:
        return select(column).where(made_in(given, change_set)).distinct()

    return (value for (value,) in rows_in(connection, ranges.chunks(), made))


# ------------------------------------------------------------------------------------------------------------ runs


def _whole(connection: Connection, extent: Extent) -> set[int]:
    query = select(run_seal.c.run_id, sync_run.c.scope).join(sync_run, sync_run.c.id == run_seal.c.run_id)
    if extent.since is not None:
        query = query.where(run_seal.c.sealed_at >= extent.since)
    if extent.until is not None:
        query = query.where(run_seal.c.sealed_at < extent.until)
    rows = connection.execute(query.order_by(run_seal.c.id)).all()
    if extent.org_id is None:
        return {run_id for run_id, _ in rows}
    others, scopes = _of_others(connection, extent.org_id), Scopes()
    mine = {extent.org_id}
    return {
        run_id
        for run_id, scope in rows
        if run_id not in others and scopes.targets_of(connection, scope).org_ids <= mine
    }


def _of_others(connection: Connection, org_id: str) -> set[int]:
    """The runs that wrote something about another organisation."""
    queries: list[Any] = [
        select(table.c.run_id).join(target, target.c.id == table.c.target_id).where(target.c.org_id != org_id)
        for table in _NAMES_A_TARGET
    ]
    queries += [select(table.c.run_id).where(table.c.org_id != org_id) for table in _NAMES_AN_ORGANISATION]
    return set(connection.execute(union(*queries)).scalars())
