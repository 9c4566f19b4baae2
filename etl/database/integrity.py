"""Whether an SQLite file is intact. `verify` cannot tell: a damaged index may lead a query past rows."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Engine,
    Row,
    Table,
)

from etl.database.damage import note_damage
from etl.database.engine import code_of
from etl.database.errors import NO_TEXT, explain, is_no_text, translated
from etl.database.transactions import reading
from etl.errors import DatabaseDamaged
from etl.printable import printable
from etl.schema import UtcTime, metadata

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
                    for _ in driver.execute(f"SELECT * FROM {_quoted(table)}"):  # noqa: S608 - a table of the file
                        pass
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


WRITTEN_AS: Final = "a time as YYYY-MM-DD HH:MM:SS.ffffff"
_AT_ONCE: Final = 50_000
"""On SQLite a reader blocks writers, so a table is read in pieces."""
_DIGITS: Final = "'????-??-?? ??:??:??.??????'".replace("?", "[0-9]")
_SECONDS: Final = "strftime('%Y-%m-%d %H:%M:%S', substr({0}, 1, 19)) IS substr({0}, 1, 19)"
_WRITTEN: Final = f"{{0}} GLOB {_DIGITS} AND {_SECONDS} AND substr({{0}}, 12, 2) <> '24' AND {{0}} >= '0001'"
"""``0001``: no datetime has the year 0."""

_COLUMNS: Final = "SELECT t.name, c.name FROM sqlite_master t, pragma_table_xinfo(t.name) c WHERE t.type = 'table'"


class Misspelled(NamedTuple):
    """Times of a column that are not written as ``YYYY-MM-DD HH:MM:SS.ffffff``."""

    table: str
    column: str
    row: str
    """The first such row: its key, ``id 4``."""
    found: str
    others: int
    """How many more rows there are."""

    def __str__(self) -> str:
        return f"{self.table}.{self.column} of {self.row} should be {WRITTEN_AS}, but is {self.found_text}"

    @property
    def found_text(self) -> str:
        """What is there instead, on one line."""
        more = f", and {self.others} more are not so either" if self.others else ""
        return f"{printable(self.found)}{more}"


def misspelled_times(engine: Engine, read_on: Callable[[], None] = lambda: None) -> Iterator[Misspelled]:
    """The first misspelled time of each column, and how many follow. Raises DatabaseError if it cannot be read.

    ``read_on`` is called after each piece of a table, outside any transaction.

    SQL compares times as texts, so one that is written in another way is in the wrong place, even where a parser would
    take it for the same moment.
    """
    if engine.dialect.name == "sqlite":
        with reading(engine) as connection:
            there = {tuple(row) for row in connection.exec_driver_sql(_COLUMNS)}
        for table in metadata.sorted_tables:
            names = [each.name for each in table.c if isinstance(each.type, UtcTime)]
            if names and there >= {(table.name, name) for name in (*names, *table.primary_key.columns.keys())}:
                yield from _of_table(engine, table, names, read_on)


def _of_table(engine: Engine, table: Table, names: Sequence[str], read_on: Callable[[], None]) -> Iterator[Misspelled]:
    keys = [each.name for each in table.primary_key]
    key, marks = ", ".join(keys), ", ".join("?" * len(keys))
    wrong = [f"NOT ({_WRITTEN.format(name)})" for name in names]
    shown = ", ".join((*(f"quote({name})" for name in names), *wrong))
    ends = f"SELECT {key} FROM {table.name} WHERE {{}} ORDER BY {key} LIMIT 1 OFFSET {_AT_ONCE - 1}"  # noqa: S608 - ours
    finds = f"SELECT {key}, {shown} FROM {table.name} WHERE ({' OR '.join(wrong)}) AND {{}} ORDER BY {key}"  # noqa: S608
    found: dict[str, Misspelled] = {}
    after: Row[Any] | None = None
    more = True
    while more:
        bounds, given = ("1", ()) if after is None else (f"({key}) > ({marks})", tuple(after))
        with reading(engine) as connection:
            last = connection.exec_driver_sql(ends.format(bounds), given).first()
            if last is not None:
                bounds, given = f"{bounds} AND ({key}) <= ({marks})", (*given, *last)
            for row in connection.exec_driver_sql(finds.format(bounds), given):
                which = ", ".join(f"{name} {value}" for name, value in zip(keys, row, strict=False))
                texts, wrongs = row[len(keys) : -len(names)], row[-len(names) :]
                for name, as_text, is_wrong in zip(names, texts, wrongs, strict=True):
                    if is_wrong and name in found:
                        found[name] = found[name]._replace(others=found[name].others + 1)
                    elif is_wrong:
                        found[name] = Misspelled(table.name, name, printable(which), as_text, 0)
        after, more = last, last is not None
        read_on()
    yield from found.values()
