"""Rows that belong to nothing, and ids that were never assigned: what no replay of a target finds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, Engine, text

from etl.database import reading
from etl.schema import GAPS_IN_NUMBERS
from etl.verify.finding import Finding, shown
from etl.verify.rows import BEFORE_ALL

_READ_BY_ID: Final = ("target", "sync_run")
"""Tables that are read in pieces, each after the last id of the one before: a row with the lowest possible id would be
left out. Both databases number from 1, so any lower id is a finding."""
_IDS_AT_ONCE: Final = 100_000
_HIGHEST: Final = 2**63 - 1
_NUMBERED: Final = ("change_set", "observation")
_OF_TARGETS: Final = ("change_set", "observation", "workflow", "sync_issue", "target_membership", "hold_event")

_OF_NO_TARGET: Final = """
    WITH RECURSIVE parent (id) AS (
        SELECT min(target_id) FROM {table}
        UNION ALL
        SELECT (SELECT min(target_id) FROM {table} WHERE target_id > parent.id) FROM parent WHERE parent.id IS NOT NULL
    )
    SELECT id FROM parent WHERE id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM target t WHERE t.id = parent.id)
"""
"""One step in the index per target, however many rows it has."""
_NEXT_CHANGED: Final = "SELECT min(change_set_id) FROM workflow_change WHERE change_set_id >= :low"
_OF_NO_CHANGE_SET: Final = """
    SELECT DISTINCT c.change_set_id FROM workflow_change c
    WHERE c.change_set_id BETWEEN :low AND :high
    AND NOT EXISTS (SELECT 1 FROM change_set s WHERE s.id = c.change_set_id)
"""
_LAST_GIVEN: Final = """
    SELECT last_value FROM pg_sequences
    WHERE quote_ident(schemaname) || '.' || quote_ident(sequencename) = pg_get_serial_sequence(:table, 'id')
"""
"""Null if none was assigned yet, or if we lack the permission."""


def orphans(engine: Engine) -> Iterator[Finding]:
    """A finding for every missing parent that rows name, and for impossible ids."""
    for table in _OF_TARGETS:
        with reading(engine) as connection:
            for (number,) in connection.execute(text(_OF_NO_TARGET.format(table=table))):
                yield _orphan(table, "target", number)
    yield from _changes_without_change_set(engine)
    for table in _NUMBERED:
        with reading(engine) as connection:
            yield from _impossible_numbers(connection, table)
    for table in _READ_BY_ID:
        with reading(engine) as connection:
            least = connection.execute(text(f"SELECT min(id) FROM {table}")).scalar()  # noqa: S608 - a name of ours
        if isinstance(least, int) and least < 1:
            yield Finding(what=f"{table}.id", expected="numbered from 1", found=f"numbered from {least}")


def _changes_without_change_set(engine: Engine) -> Iterator[Finding]:
    """In short transactions, because a reader of SQLite may keep writers waiting."""
    low: int | None = BEFORE_ALL
    while low is not None:
        with reading(engine) as connection:
            first = connection.execute(text(_NEXT_CHANGED), {"low": low}).scalar()
            high = min(first + _IDS_AT_ONCE, _HIGHEST) if isinstance(first, int) else first
            for (number,) in connection.execute(text(_OF_NO_CHANGE_SET), {"low": first, "high": high}):
                yield _orphan("workflow_change", "change_set", number)
        low = high + 1 if isinstance(high, int) and high < _HIGHEST else None


def _orphan(table: str, parent: str, number: object) -> Finding:
    nothing = f"without rows of {parent} {shown(number)}, which does not exist"
    return Finding(what=table, expected=nothing, found="with some")


def _impossible_numbers(connection: Connection, table: str) -> Iterator[Finding]:
    """SQLite assigns ids without gaps, and no row is ever deleted; PostgreSQL tells the last id that it assigned.

    A file into which `db copy` copied PostgreSQL's ids has gaps, and says so in its header.
    """
    if connection.dialect.name == "sqlite":
        if connection.exec_driver_sql("PRAGMA user_version").scalar() == GAPS_IN_NUMBERS:
            return
        query, gaps = f"SELECT min(id), max(id), count(*) FROM {table}", "without a gap "  # noqa: S608 - a name of ours
    else:
        query, gaps = f"SELECT min(id), max(id), ({_LAST_GIVEN}) FROM {table}", ""  # noqa: S608 - a name of ours
    least, last, given = connection.execute(text(query), {"table": table}).one()
    if last is not None and given is not None and (least < 1 or last > given):
        expected = f"numbered {gaps}from 1 to {given}"
        yield Finding(what=f"{table}.id", expected=expected, found=f"numbered from {least} to {last}")
