"""Whether an SQLite file is whole: what `verify` cannot see, since a query may be led past rows by a damaged index."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine

from etl.database.complaints import explain, translated
from etl.database.engine import code_of
from etl.printable import printable

LIMIT_SECONDS: Final = 30.0
"""Half of what a writer waits for its turn."""
_STEPS: Final = 100_000
"""Of SQLite's machine between two looks at the clock."""
_WHOLE: Final = "ok"
_MOST: Final = 20


class Integrity(NamedTuple):
    """What a check found."""

    damage: tuple[str, ...]
    """A sentence of SQLite each."""
    unfinished: tuple[str, ...]
    """Tables whose check took longer than the limit, and was given up."""


def integrity(engine: Engine, *, limit_seconds: float = LIMIT_SECONDS) -> Integrity:
    """Compare every table of an SQLite file with its indexes, and look at every page that they use.

    It reads all of the file. Where there is no WAL a reader keeps writers from committing, so the tables are checked
    one by one and none for longer than ``limit_seconds``; 0 is without end, and WAL needs no limit. Nothing is
    found on PostgreSQL, which has its own means. Raises DatabaseError where the file cannot be read at all.
    """
    if engine.dialect.name != "sqlite":
        return Integrity((), ())
    damage: list[str] = []
    unfinished: list[str] = []
    with translated(engine), engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        limit = 0.0 if driver.execute("PRAGMA journal_mode").fetchone() == ("wal",) else limit_seconds
        for table in _tables(driver):
            try:
                damage += (printable(f"{table}: {said}") for said in _check(driver, table, limit))
            except sqlite3.DatabaseError as error:
                if code_of(error) == sqlite3.SQLITE_INTERRUPT:
                    unfinished.append(table)
                else:
                    damage.append(f"{table}: {explain(error, engine)}")
    return Integrity(tuple(damage[:_MOST]), tuple(unfinished))


def _tables(driver: sqlite3.Connection) -> list[str]:
    return [name for (name,) in driver.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]


def _check(driver: sqlite3.Connection, table: str, limit_seconds: float) -> Iterator[str]:
    give_up = time.monotonic() + limit_seconds
    if limit_seconds:
        driver.set_progress_handler(lambda: int(time.monotonic() > give_up), _STEPS)
    try:
        quoted = table.replace('"', '""')
        found = driver.execute(f'PRAGMA integrity_check("{quoted}")').fetchall()
    finally:
        driver.set_progress_handler(None, 0)
    return (said for (said,) in found if said != _WHOLE)
