"""Copies one database into another, row by row and with every id: from SQLite to PostgreSQL, or back."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Column, Connection, Engine, Table, func, select, text

from etl import database
from etl.errors import FlowtrailError, UsageError
from etl.schema import GAPS_IN_NUMBERS, change_set, metadata, observation, sync_run
from etl.store import seals
from etl.store.bulk import insert_rows

_OF_A_SERVICE: Final = ("lease", "condition", "verification")
"""These belong to a service at its place, and are not copied."""
TABLES: Final = [table for name, table in metadata.tables.items() if name not in _OF_A_SERVICE]
_NUMBERS: Final = [table.autoincrement_column for table in TABLES if table.autoincrement_column is not None]
"""The ids that the database assigns."""
_ROWS_AT_ONCE: Final = 10_000

Row = Sequence[Any]
Progress = Callable[[int, int], None]
"""Called with the rows done and the rows in all; each row is written and then read again."""


class Copied(NamedTuple):
    """A table, and how many rows it now has in both databases."""

    table: str
    rows: int


def copy(
    source: Engine, destination: Engine, *, may_be_written: bool = False, progress: Progress = lambda done, total: None
) -> list[Copied]:
    """Copy every row of ``source`` as it is at one moment, in one transaction, and compare before it is committed.

    Both have the current schema. ``destination`` must be empty, and is empty again if anything fails at any moment.
    Rows are streamed. A ``source`` that was written to meanwhile is an error too, unless ``may_be_written``.
    Raises UsageError, FlowtrailError if the copy differs, DatabaseError.
    """
    with database.reading(source) as there, database.writing(destination) as here:
        _require_empty(here)
        counts = {table: _count(there, table) for table in TABLES}
        done, steps = 0, 2 * sum(counts.values())

        def move(rows: int) -> None:
            nonlocal done
            done += rows
            progress(done, steps)

        for connection in (there, here):
            _never_time_out(connection)
        for table in TABLES:
            if _digest_of(there, table, move, here) != _digest_of(here, table, move):
                raise FlowtrailError(
                    f"The rows of {table.name} are not the same in both databases: nothing was copied."
                )
        _number_on(there, here)
        if (head := seals.stored_head(here)) is not None:
            seals.begin_trail(here, dt.datetime.now(dt.UTC), head)
        if not may_be_written:
            _require_unmoved(source, there)
    return [Copied(table.name, counts[table]) for table in TABLES]


def _require_empty(here: Connection) -> None:
    """Raise if it has rows; lock it until the end. (An SQLite file is locked by the transaction itself.)"""
    if here.dialect.name == "postgresql":
        here.execute(text("LOCK TABLE target, sync_run IN EXCLUSIVE MODE"))
    for table in TABLES:
        if here.execute(select(table).limit(1)).first() is not None:
            name = database.describe(here.engine.url)
            raise UsageError(f"{name} has rows in {table.name}: a copy needs an empty database.")


def _never_time_out(connection: Connection) -> None:
    """Switch off the timeouts for idle transactions: while one database works, the other one waits in its own."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))


def _count(there: Connection, table: Table) -> int:
    return there.execute(select(func.count()).select_from(table)).scalar_one()


def _digest_of(
    connection: Connection, table: Table, move: Callable[[int], None], destination: Connection | None = None
) -> bytes:
    """The digest of all rows by key, which are copied to ``destination``, if there is one.

    The order is the same on both databases: text is compared byte by byte.
    """
    digest = hashlib.sha256()
    ordered = select(table).order_by(*table.primary_key.columns)
    with connection.execute(ordered, execution_options={"yield_per": _ROWS_AT_ONCE}) as result:
        for rows in result.partitions():
            digest.update(_encoded(rows))
            if destination is not None:
                insert_rows(destination, table, table.columns.keys(), rows)
            move(len(rows))
    return digest.digest()


def _encoded(rows: Sequence[Row]) -> bytes:
    """The rows as bytes that do not depend on the size of a partition; times in UTC to the microsecond."""
    return "".join(f"{tuple(row)!r}\n" for row in rows).encode("utf-8", "surrogatepass")


def _number_on(there: Connection, here: Connection) -> None:
    """The next row gets the number that it would have got: one is never given twice, not even that of a pruned run."""
    for number in _NUMBERS:
        last = max(_last_given(there, number), _last_given(here, number))
        if here.dialect.name == "postgresql":
            values = {"table": number.table.name, "key": number.name, "last": max(last, 1), "given": last > 0}
            here.execute(text("SELECT setval(pg_get_serial_sequence(:table, :key), :last, :given)"), values)
        elif number is sync_run.c.id:
            here.execute(text("DELETE FROM sqlite_sequence WHERE name = 'sync_run'"))
            here.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES ('sync_run', :last)"), {"last": last})
    if here.dialect.name == "sqlite" and any(_has_gaps(here, table) for table in (change_set, observation)):
        here.exec_driver_sql(f"PRAGMA user_version = {GAPS_IN_NUMBERS}")


def _has_gaps(here: Connection, table: Table) -> bool:
    rows, last = here.execute(select(func.count(), func.max(table.c.id))).one()
    return bool(rows != (last or 0))


def _last_given(connection: Connection, number: Column[int]) -> int:
    highest: int = connection.execute(select(func.coalesce(func.max(number), 0))).scalar_one()
    if connection.dialect.name == "postgresql":
        query = """
            SELECT last_value FROM pg_sequences
            WHERE quote_ident(schemaname) || '.' || quote_ident(sequencename) = pg_get_serial_sequence(:table, :key)
        """
    elif number is sync_run.c.id:
        query = "SELECT seq FROM sqlite_sequence WHERE name = :table AND :key = 'id'"
    else:
        return highest
    return max(highest, connection.execute(text(query), {"table": number.table.name, "key": number.name}).scalar() or 0)


def _require_unmoved(source: Engine, there: Connection) -> None:
    """Raise if a later look differs: a run that began, lived or ended meanwhile has changed it."""
    with database.reading(source) as later:
        if _marks(later) != _marks(there):
            raise FlowtrailError(
                f"{database.describe(source.url)} was written to meanwhile, so nothing was copied: "
                "stop what writes to it, and copy again."
            )


def _marks(connection: Connection) -> Row:
    lives = select(func.max(sync_run.c.id), func.max(sync_run.c.heartbeat_at), func.count()).select_from(sync_run)
    return tuple(connection.execute(lives).one())
