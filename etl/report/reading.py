"""Short reads for what a page shows at once, and streams in constant memory that block no writer."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from functools import cache
from importlib.resources import files
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, Executable

from etl.database import reading
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


@cache
def sql(name: str) -> str:
    """The statement, or the part of one, in the file ``name.sql`` beside this module."""
    return (files("etl.report") / f"{name}.sql").read_text("utf-8")


_PAGE_ROWS: Final = 1000
_IN_MEMORY_BYTES: Final = 16 * 2**20
_LENGTH_BYTES: Final = 4
_FOR_WHOLE_RESULTS: Final = "SET LOCAL cursor_tuple_fraction = 1; SET LOCAL jit = off"
"""By default a cursor is planned for its first tenth, and compiling a query takes longer than most of ours run."""


def stream(engine: Engine, statement: Executable, row_type: type[T]) -> Iterator[T]:
    """The rows of ``statement``, all from one moment, as tuples or NamedTuples. Raises DatabaseError.

    On PostgreSQL a cursor keeps the snapshot and blocks nobody. On SQLite a slow reader would keep writers from
    committing, so the rows are first spooled to a temporary file, and the lock is released.
    """
    pages = _spooled if engine.dialect.name == "sqlite" else _from_cursor
    with closing(pages(engine, statement)) as read:
        for page in read:
            yield from map(getattr(row_type, "_make", row_type), page)


def _from_cursor(engine: Engine, statement: Executable) -> Generator[Any]:
    with reading(engine) as connection:
        connection.exec_driver_sql(_FOR_WHOLE_RESULTS)
        yield from _pages(connection, statement)


def _spooled(engine: Engine, statement: Executable) -> Generator[Any]:
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as spool:
        with disk.temporary_files(), reading(engine) as connection:
            for page in _pages(connection, statement):
                encoded = encode([tuple(row) for row in page])
                spool.write(len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded)
        spool.seek(0)
        while length := spool.read(_LENGTH_BYTES):
            yield decode(spool.read(int.from_bytes(length, "big")))


def _pages(connection: Connection, statement: Executable) -> Iterator[Any]:
    with connection.execute(statement, execution_options={"yield_per": _PAGE_ROWS}) as result:
        yield from result.partitions()
