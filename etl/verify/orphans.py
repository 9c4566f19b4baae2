"""Rows that belong to nothing, and ids that were never assigned: what no replay of a target finds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, Engine, Select, Table, bindparam, exists, func, select, text

from etl.database import reading
from etl.schema import (
    GAPS_IN_NUMBERS,
    acknowledgement,
    change_set,
    hold_event,
    observation,
    sync_issue,
    sync_run,
    target,
    target_membership,
    workflow,
    workflow_change,
)
from etl.verify.finding import Finding, shown
from etl.verify.rows import BEFORE_ALL

_READ_BY_ID: Final = (acknowledgement, target, sync_run)
"""Tables that are read in pieces, each after the last id of the one before: a row with the lowest possible id would be
left out. Both databases number from 1, so any lower id is a finding."""
_IDS_AT_ONCE: Final = 100_000
_HIGHEST: Final = 2**63 - 1
_NUMBERED: Final = (change_set, observation)
_OF_TARGETS: Final = (change_set, observation, workflow, sync_issue, target_membership, hold_event)
_change: Final = workflow_change.c.change_set_id
_NEXT_CHANGED: Final = select(func.min(_change)).where(_change >= bindparam("low"))
_OF_NO_CHANGE_SET: Final = (
    select(_change)
    .distinct()
    .where(_change.between(bindparam("low"), bindparam("high")), ~exists().where(change_set.c.id == _change))
)
_LAST_GIVEN: Final = text("""
    SELECT last_value FROM pg_sequences
    WHERE quote_ident(schemaname) || '.' || quote_ident(sequencename) = pg_get_serial_sequence(:table, 'id')
""")
"""Null if none was assigned yet, or if we lack the permission."""


@cache
def _of_no_target(table: Table) -> Select[Any]:
    """Numbers of targets that rows name and that are not there: one step in the index per target, however many rows."""
    parent = select(func.min(table.c.target_id).label("id")).cte("parent", recursive=True)
    following = select(func.min(table.c.target_id)).where(table.c.target_id > parent.c.id).correlate(parent)
    parent = parent.union_all(select(following.scalar_subquery()).where(parent.c.id.is_not(None)))
    return select(parent.c.id).where(parent.c.id.is_not(None), ~exists().where(target.c.id == parent.c.id))


def orphans(engine: Engine) -> Iterator[Finding]:
    """A finding for every missing parent that rows name, and for impossible ids."""
    for table in _OF_TARGETS:
        with reading(engine) as connection:
            for (number,) in connection.execute(_of_no_target(table)):
                yield _orphan(table, target, number)
    yield from _changes_without_change_set(engine)
    for table in _NUMBERED:
        with reading(engine) as connection:
            yield from _impossible_numbers(connection, table)
    for table in _READ_BY_ID:
        with reading(engine) as connection:
            least = connection.execute(select(func.min(table.c.id))).scalar()
        if isinstance(least, int) and least < 1:
            yield Finding(what=f"{table.name}.id", expected="numbered from 1", found=f"numbered from {least}")


def _changes_without_change_set(engine: Engine) -> Iterator[Finding]:
    """In short transactions, because a reader of SQLite may keep writers waiting."""
    low: int | None = BEFORE_ALL
    while low is not None:
        with reading(engine) as connection:
            first = connection.execute(_NEXT_CHANGED, {"low": low}).scalar()
            high = min(first + _IDS_AT_ONCE, _HIGHEST) if isinstance(first, int) else first
            for (number,) in connection.execute(_OF_NO_CHANGE_SET, {"low": first, "high": high}):
                yield _orphan(workflow_change, change_set, number)
        low = high + 1 if isinstance(high, int) and high < _HIGHEST else None


def _orphan(table: Table, parent: Table, number: object) -> Finding:
    nothing = f"without rows of {parent.name} {shown(number)}, which does not exist"
    return Finding(what=table.name, expected=nothing, found="with some")


def _impossible_numbers(connection: Connection, table: Table) -> Iterator[Finding]:
    """SQLite assigns ids without gaps, and no row is ever deleted; PostgreSQL tells the last id that it assigned.

    A file into which `db copy` copied PostgreSQL's ids has gaps, and says so in its header.
    """
    on_sqlite = connection.dialect.name == "sqlite"
    if on_sqlite and connection.exec_driver_sql("PRAGMA user_version").scalar() == GAPS_IN_NUMBERS:
        return
    gaps, least_and_last = "without a gap " if on_sqlite else "", select(func.min(table.c.id), func.max(table.c.id))
    least, last = connection.execute(least_and_last).one()
    numbers = select(func.count()).select_from(table) if on_sqlite else _LAST_GIVEN.bindparams(table=table.name)
    given = connection.execute(numbers).scalar()
    if last is not None and given is not None and (least < 1 or last > given):
        expected = f"numbered {gaps}from 1 to {given}"
        yield Finding(what=f"{table.name}.id", expected=expected, found=f"numbered from {least} to {last}")
