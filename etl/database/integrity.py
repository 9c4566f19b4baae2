"""Whether an SQLite file is intact. `verify` cannot tell: a damaged index may lead a query past rows."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine

from etl.database.damage import note_damage
from etl.database.engine import code_of
from etl.database.errors import NO_TEXT, explain, is_no_text, translated
from etl.database.times import misspelled_times
from etl.errors import DatabaseDamaged
from etl.printable import printable

LIMIT_SECONDS: Final = 30.0
"""Half of the time that a writer waits for its turn."""
_STEPS: Final = 100_000
"""Instructions of SQLite's virtual machine between two looks at the clock."""
_FINE: Final = "ok"
_MOST: Final = 20


class Integrity(NamedTuple):
    """The result of a check."""

    damage: tuple[str, ...]
    """One sentence of SQLite each."""
    unfinished: tuple[str, ...]
    """Tables whose check took longer than the limit and was stopped."""


WHOLE: Final = Integrity((), ())
"""Everything was checked, and nothing found."""


def integrity(engine: Engine, *, limit_seconds: float = LIMIT_SECONDS, everything: bool = False) -> Integrity:
    """Compare every table of an SQLite file with its indexes, and check every page that they use.

    It reads the whole file. Without WAL a reader keeps writers from committing, so the tables are checked one by one,
    and none for longer than ``limit_seconds`` (0: no limit; with WAL there is none either). ``everything``: also every
    value, how times are written, and every unused page, without a limit. Damage stops all writing. On PostgreSQL,
    which has its own means, nothing is checked. Raises DatabaseError if the file cannot be read at all.
    """
    if engine.dialect.name != "sqlite":
        return WHOLE
    damage: list[str] = []
    unfinished: list[str] = []
    with translated(engine), engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        limit = 0.0 if driver.execute("PRAGMA journal_mode").fetchone() == ("wal",) else limit_seconds
        for table in _tables(driver):
            try:
                damage += (printable(f"{table}: {problem}") for problem in _check(driver, table, limit))
                if everything:
                    _read_all(driver, table)
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if code_of(error) == sqlite3.SQLITE_INTERRUPT:
                    unfinished.append(table)
                else:
                    damage.append(f"{table}: {_message(error, engine)}")
        if everything and not damage:
            damage += (printable(each) for (each,) in driver.execute("PRAGMA integrity_check") if each != _FINE)
    if everything and not damage:
        damage += map(str, misspelled_times(engine))
    if damage:
        note_damage(engine, damage[0])
    return Integrity(tuple(damage[:_MOST]), tuple(unfinished))


def _message(error: Exception, engine: Engine) -> str:
    """SQLite's message for damage; for any other error, the sentence with the remedy."""
    if is_no_text(error):
        return NO_TEXT
    explained = explain(error, engine)
    return printable(str(error) if isinstance(explained, DatabaseDamaged) else str(explained))


def _read_all(driver: sqlite3.Connection, table: str) -> None:
    for _ in driver.execute(f"SELECT * FROM {_quoted(table)}"):  # noqa: S608 - the name of a table of the file
        pass


def _quoted(table: str) -> str:
    return '"' + table.replace('"', '""') + '"'


def _tables(driver: sqlite3.Connection) -> list[str]:
    """All tables, and the one in which SQLite keeps their definitions."""
    found = driver.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    return ["sqlite_master", *(name for (name,) in found)]


def _check(driver: sqlite3.Connection, table: str, limit_seconds: float) -> Iterator[str]:
    give_up = time.monotonic() + limit_seconds
    if limit_seconds:
        driver.set_progress_handler(lambda: int(time.monotonic() > give_up), _STEPS)
    try:
        found = driver.execute(f"PRAGMA integrity_check({_quoted(table)})").fetchall()
    finally:
        driver.set_progress_handler(None, 0)
    return (problem for (problem,) in found if problem != _FINE)
