"""The bulk paths: COPY on PostgreSQL, a hundred rows a statement on SQLite."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Table, text

from etl.model import Outcome

_EXTEND_POSTGRESQL: Final = text(
    """
    UPDATE observation AS o
       SET last_asked_at = seen.asked_at, last_at = seen.at, observations = o.observations + 1,
           longest_gap_seconds = seen.gap
      FROM (SELECT seen.*
              FROM unnest(CAST(:ids AS bigint[]), CAST(:expected AS int[]), CAST(:asked AS timestamptz[]),
                          CAST(:at AS timestamptz[]), CAST(:gaps AS bigint[])) AS seen (id, expected, asked_at, at, gap)
              JOIN observation AS span ON span.id = seen.id
             ORDER BY span.id
               FOR UPDATE OF span) AS seen
     WHERE o.id = seen.id AND o.observations = seen.expected
    RETURNING o.target_id
    """
)
_EXTEND_SQLITE: Final = text(
    """
    UPDATE observation
       SET last_asked_at = seen.asked_at, last_at = seen.at, observations = observation.observations + 1,
           longest_gap_seconds = seen.gap
      FROM (SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS expected,
                   json_extract(value, '$[2]') AS asked_at, json_extract(value, '$[3]') AS at,
                   json_extract(value, '$[4]') AS gap
              FROM json_each(:spans)) AS seen
     WHERE observation.id = seen.id AND observation.observations = seen.expected
    RETURNING target_id
    """
)
_TYPES: Final = {int: "int8", str: "text", bool: "bool", dt.datetime: "timestamptz"}
"""PostgreSQL's, so that the driver need not look at each value."""
_ROWS_A_STATEMENT: Final = 100
"""On SQLite, where a statement a row costs more than its row: the driver gives up the interpreter's lock each time."""


def insert_rows(connection: Connection, table: Table, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Insert tuples in the order of ``columns``; times are datetimes on PostgreSQL, `stamp`s on SQLite."""
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
    start, marks = f"INSERT INTO {table.name} ({names}) VALUES ", f"({', '.join('?' * len(columns))})"  # noqa: S608
    while some := list(islice(rows, _ROWS_A_STATEMENT)):
        connection.exec_driver_sql(start + ", ".join([marks] * len(some)), tuple(chain.from_iterable(some)))


def stamp(connection: Connection, instant: dt.datetime) -> Any:
    """A time as the driver takes it, without SQLAlchemy's types: once a target, not once a row."""
    if connection.dialect.name == "postgresql":
        return instant
    return instant.astimezone(dt.UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def extend_spans(connection: Connection, outcomes: Sequence[Outcome]) -> set[int]:
    """Extend the open spans in one statement; return the ids of the targets whose span was as their fence says.

    Their rows are locked by id: two processes that extend the same spans must not wait for each other.
    """
    spans = [(o.fence.span_id, o.span) for o in outcomes if o.span is not None]
    if connection.dialect.name == "postgresql":
        arrays = {
            "ids": [span_id for span_id, _ in spans],
            "expected": [span.observations - 1 for _, span in spans],
            "asked": [span.last_asked_at for _, span in spans],
            "at": [span.last_at for _, span in spans],
            "gaps": [span.longest_gap_seconds for _, span in spans],
        }
        return set(connection.execute(_EXTEND_POSTGRESQL, arrays).scalars())
    rows = [
        (
            span_id,
            span.observations - 1,
            stamp(connection, span.last_asked_at),
            stamp(connection, span.last_at),
            span.longest_gap_seconds,
        )
        for span_id, span in spans
    ]
    return set(connection.execute(_EXTEND_SQLITE, {"spans": msgspec.json.encode(rows).decode()}).scalars())
