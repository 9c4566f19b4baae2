"""Bulk writes: COPY on PostgreSQL, many rows per statement on SQLite."""

from __future__ import annotations

import datetime as dt
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, islice
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import Connection, Table, TextualSelect, and_, bindparam, column, exists, select, text, update

from etl.domain.model import Outcome
from etl.schema import observation, sync_run, text_of_time


class BulkValues:
    """Rows that a statement gets as one value: arrays on PostgreSQL, JSON on SQLite.

    PostgreSQL needs longer to plan a list of five hundred keys than to answer it, and on both databases a statement per
    row costs more than the row.
    """

    def __init__(self, **types: str) -> None:
        """The columns, each with its PostgreSQL type."""
        self._types = types

    def select(self, dialect: str) -> TextualSelect:
        """A SELECT of the rows, in their order."""
        return text(self.sql(dialect)).columns(*map(column, self._types))

    def sql(self, dialect: str) -> str:
        """The same as SQL text, for use inside another statement."""
        if dialect == "postgresql":
            arrays = ", ".join(f"CAST(:given_{name} AS {type_}[])" for name, type_ in self._types.items())
            return f"SELECT * FROM unnest({arrays}) AS given ({', '.join(self._types)})"  # noqa: S608 - our own names
        values = ", ".join(f"json_extract(value, '$[{n}]') AS {name}" for n, name in enumerate(self._types))
        return f"SELECT {values} FROM json_each(:rows) WHERE true"  # noqa: S608

    def bound(self, connection: Connection, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """The parameters that hold ``rows``."""
        if connection.dialect.name == "postgresql":
            return {f"given_{name}": [row[n] for row in rows] for n, name in enumerate(self._types)}
        times = [n for n, kind in enumerate(self._types.values()) if kind == "timestamptz"]
        return {"rows": msgspec.json.encode(list(_with_texts(rows, times)) if times else rows).decode()}


_SEEN: Final = BulkValues(id="bigint", expected="int", asked_at="timestamptz", at="timestamptz", gap="bigint")


@cache
def _extend(dialect: str) -> Any:
    seen = _SEEN.select(dialect).subquery("seen")
    run = sync_run.alias("run")
    is_open = and_(run.c.id == bindparam("run_id"), run.c.closed_at.is_(None))
    if dialect == "postgresql":
        span = observation.alias("span")
        locked = select(seen).join(span, span.c.id == seen.c.id).join(run, is_open).order_by(span.c.id)
        seen = locked.with_for_update(of=span).suffix_with("FOR KEY SHARE OF run").subquery("locked")
    extended = (
        update(observation)
        .where(observation.c.id == seen.c.id, observation.c.observations == seen.c.expected)
        .values(
            last_asked_at=seen.c.asked_at,
            last_at=seen.c.at,
            observations=observation.c.observations + 1,
            longest_gap_seconds=seen.c.gap,
        )
        .returning(observation.c.target_id)
    )
    return extended if dialect == "postgresql" else extended.where(exists().where(is_open))


_TYPES: Final = {int: "int8", str: "text", bool: "bool", bytes: "bytea", dt.datetime: "timestamptz"}
"""PostgreSQL's types, so that the driver need not inspect each value."""
_VALUES_A_STATEMENT: Final = 3_000
"""On SQLite. One statement per row would cost more than the row: the driver releases the interpreter's lock each
time."""


def execute_many(connection: Connection, statement: Any, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        connection.execute(statement, rows)


def insert_rows(connection: Connection, table: Table, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Insert tuples in the order of ``columns``."""
    names = ", ".join(columns)
    waiting = iter(rows)
    first = list(islice(waiting, 1))
    if not first:
        return
    rows = chain(first, waiting)
    if connection.dialect.name == "postgresql":
        driver = connection.connection.driver_connection
        assert driver is not None  # noqa: S101 - it is checked out
        with driver.cursor() as cursor, cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
            copy.set_types([_TYPES[table.c[name].type.python_type] for name in columns])
            for row in rows:
                copy.write_row(row)
        return
    # FAIL: the transaction is rolled back after a refused row, so SQLite need not keep copies of pages to undo it.
    start = f"INSERT OR FAIL INTO {table.name} ({names}) VALUES "  # noqa: S608
    marks = f"({', '.join('?' * len(columns))})"
    times = [n for n, name in enumerate(columns) if table.c[name].type.python_type is dt.datetime]
    rows = _with_texts(rows, times) if times else rows
    while some := list(islice(rows, _VALUES_A_STATEMENT // len(columns))):
        connection.exec_driver_sql(start + ", ".join([marks] * len(some)), tuple(chain.from_iterable(some)))


def _with_texts(rows: Iterable[Sequence[Any]], places: Sequence[int]) -> Iterator[Sequence[Any]]:
    """The rows with times as SQLite has them, past SQLAlchemy's types."""
    for row in rows:
        values = list(row)
        for place in places:
            if values[place] is not None:
                values[place] = text_of_time(values[place])
        yield values


def extend_spans(connection: Connection, run_id: int, outcomes: Sequence[Outcome]) -> set[int]:
    """Extend the open spans in one statement; return the ids of the targets whose span still was as in their fence.

    The rows are locked by id, so that two processes that extend the same spans cannot deadlock. If the run is closed,
    none is extended; otherwise it cannot be closed until the transaction ends.
    """
    rows = [
        (
            o.fence.span_id,
            o.span.observations - 1,
            o.span.last_asked_at,
            o.span.last_at,
            o.span.longest_gap_seconds,
        )
        for o in outcomes
        if o.span is not None
    ]
    given = {**_SEEN.bound(connection, rows), "run_id": run_id}
    return set(connection.execute(_extend(connection.dialect.name), given).scalars())


def insert_into(connection: Connection, table: Table) -> Any:
    """An INSERT that can say what to do ON CONFLICT, which each database spells in its own way."""
    return importlib.import_module(f"sqlalchemy.dialects.{connection.dialect.name}").insert(table)


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert those of ``rows``, which have different keys, whose key is not there yet, in the order given.

    The tables are append-only: on SQLite a trigger refuses a key that is there, before ON CONFLICT is looked at. There,
    nobody can insert a key that was just not found.
    """
    (key,) = table.primary_key.columns
    known = set(connection.execute(select(key).where(key.in_([row[key.name] for row in rows]))).scalars())
    if new := [row for row in rows if row[key.name] not in known]:
        connection.execute(insert_into(connection, table).on_conflict_do_nothing(), new)


T = TypeVar("T")


def grouped(items: Iterable[T], size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """The items, in groups whose sizes add up to at most ``most``; a larger item is a group of its own."""
    group, room = list[T](), most
    for item in items:
        room -= size(item)
        if group and room < 0:
            yield group
            group, room = [], most - size(item)
        group.append(item)
    if group:
        yield group
