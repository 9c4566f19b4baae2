"""Short reads for what a page shows at once, and streams in constant memory that block no writer."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, Executable, Select, TextClause, bindparam, text

from etl.database import reading
from etl.report.rows import sql_columns
from etl.schema import UtcTime
from etl.system import disk

T = TypeVar("T", bound=tuple[Any, ...])


@contextmanager
def short_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads. PostgreSQL stops a statement after 30 s, does not compile queries, which would
    take longer than most of ours run, and looks rows up by index where it would read a whole table instead: a page asks
    for few of them, and they are in memory."""
    with reading(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(
                "SET LOCAL jit = off; SET LOCAL statement_timeout = '30s'; SET LOCAL random_page_cost = 1.1"
            )
        yield connection


def fetch(connection: Connection, row_type: type[T], sql: str, **parameters: Any) -> list[T]:
    """The rows of ``sql``, whose columns are the fields of ``row_type`` in order."""
    found = connection.execute(with_times(sql, parameters).columns(*sql_columns(row_type)), parameters)
    return [row_type(*row) for row in found]


def page(
    connection: Connection,
    row_type: type[T],
    select: Select[Any],
    limit: int,
    offset: int = 0,
    parameters: Mapping[str, Any] | None = None,
) -> list[T]:
    """At most ``limit`` rows of ``select`` after the first ``offset``."""
    return [row_type(*row) for row in connection.execute(select.limit(limit).offset(offset), parameters or {})]


def with_times(sql: str, parameters: Mapping[str, Any]) -> TextClause:
    """The statement, with times among its parameters bound as each database stores them."""
    times = [name for name, value in parameters.items() if isinstance(value, dt.datetime)]
    return text(sql).bindparams(*(bindparam(name, type_=UtcTime()) for name in times))


_PAGE_ROWS: Final = 1000
_IN_MEMORY_BYTES: Final = 16 * 2**20
_LENGTH_BYTES: Final = 4
_FOR_WHOLE_RESULTS: Final = "SET LOCAL cursor_tuple_fraction = 1; SET LOCAL jit = off"
"""By default a cursor is planned for its first tenth, and compiling a query takes longer than most of ours run."""


def stream(
    engine: Engine, statement: Executable, row_type: type[T], parameters: Mapping[str, Any] | None = None
) -> Iterator[T]:
    """The rows of ``statement``, all from one moment. Raises DatabaseError.

    On PostgreSQL a cursor keeps the snapshot and blocks nobody. On SQLite a slow reader would keep writers from
    committing, so the rows are first spooled to a temporary file, and the lock is released.
    """
    pages = _spooled if engine.dialect.name == "sqlite" else _from_cursor
    with closing(pages(engine, statement, parameters or {})) as read:
        for page in read:
            yield from map(row_type._make, page)  # type: ignore[attr-defined]  # every row type is a NamedTuple


def _from_cursor(engine: Engine, statement: Executable, parameters: Mapping[str, Any]) -> Generator[Any]:
    with reading(engine) as connection:
        connection.exec_driver_sql(_FOR_WHOLE_RESULTS)
        yield from _pages(connection, statement, parameters)


def _spooled(engine: Engine, statement: Executable, parameters: Mapping[str, Any]) -> Generator[Any]:
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as spool:
        with disk.temporary_files(), reading(engine) as connection:
            for page in _pages(connection, statement, parameters):
                encoded = encode([tuple(row) for row in page])
                spool.write(len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded)
        spool.seek(0)
        while length := spool.read(_LENGTH_BYTES):
            yield decode(spool.read(int.from_bytes(length, "big")))


def _pages(connection: Connection, statement: Executable, parameters: Mapping[str, Any]) -> Iterator[Any]:
    with connection.execute(statement, parameters, execution_options={"yield_per": _PAGE_ROWS}) as result:
        yield from result.partitions()
