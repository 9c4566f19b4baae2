"""Whether an SQLite file is intact. `verify` cannot tell: a damaged index may lead a query past rows."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    Table,
    column,
    func,
    literal_column,
    not_,
    or_,
    select,
    text,
    tuple_,
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

_COLUMNS: Final = "SELECT name FROM pragma_table_xinfo(:table)"


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
        for table in metadata.sorted_tables:
            with reading(engine) as connection:
                there = set(connection.execute(text(_COLUMNS), {"table": table.name}).scalars())
            names = [each.name for each in table.c if isinstance(each.type, UtcTime)]
            if names and there >= {*names, *table.primary_key.columns.keys()}:
                yield from _of_table(engine, table, names, read_on)


def _of_table(engine: Engine, table: Table, names: Sequence[str], read_on: Callable[[], None]) -> Iterator[Misspelled]:
    found: dict[str, Misspelled] = {}
    after: Row[Any] | None = None
    more = True
    while more:
        with reading(engine) as connection:
            last = _end_of_piece(connection, table, after)
            for name, row in _in_piece(connection, table, names, after, last):
                known = found.get(name)
                found[name] = _first(table, name, row) if known is None else known._replace(others=known.others + 1)
        after, more = last, last is not None
        read_on()
    yield from found.values()


def _end_of_piece(connection: Connection, table: Table, after: Row[Any] | None) -> Row[Any] | None:
    """The key of the last row of the next piece; None if what is left is less than a piece."""
    key = tuple(table.primary_key)
    query = select(*key).order_by(*key).offset(_AT_ONCE - 1).limit(1)
    return connection.execute(query if after is None else query.where(tuple_(*key) > tuple(after))).first()


def _in_piece(
    connection: Connection, table: Table, names: Sequence[str], after: Row[Any] | None, last: Row[Any] | None
) -> Iterator[tuple[str, Row[Any]]]:
    key = tuple(table.primary_key)
    wrong: dict[str, ColumnElement[bool]] = {name: not_(literal_column(f"({_WRITTEN.format(name)})")) for name in names}
    texts = (func.quote(column(name)).label(f"text_of_{name}") for name in names)
    query = select(*key, *texts, *(each.label(f"wrong_{name}") for name, each in wrong.items()))
    query = query.select_from(table).where(or_(*wrong.values())).order_by(*key)
    for edge, beyond in ((after, False), (last, True)):
        if edge is not None:
            query = query.where(tuple_(*key) <= tuple(edge) if beyond else tuple_(*key) > tuple(edge))
    for row in connection.execute(query):
        yield from ((name, row) for name in names if row._mapping[f"wrong_{name}"])


def _first(table: Table, name: str, row: Row[Any]) -> Misspelled:
    key = ", ".join(f"{each.name} {row._mapping[each.name]}" for each in table.primary_key)
    return Misspelled(table.name, name, printable(key), row._mapping[f"text_of_{name}"], 0)
