"""Transactions that write, and transactions that read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine

from etl.database import session
from etl.database.damage import require_sound
from etl.database.engine import describe, file_of
from etl.database.errors import cannot_open, translated

STREAMED: Final = {"stream_results": True, "yield_per": 2_000}
"""Execution options for a long result: its rows are fetched some thousand at a time."""


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes: committed at the end of the block, rolled back when it raises.

    On SQLite it holds the write lock from its first moment (BEGIN IMMEDIATE), on PostgreSQL it is READ COMMITTED.
    If the answer to its COMMIT is lost, DatabaseUnreachable is raised although the rows may be there.
    Raises DatabaseDamaged, and writes nothing, if damage has been found, even by another process and meanwhile.
    """
    require_sound(engine)
    with _transaction(engine, "BEGIN IMMEDIATE", session.WRITE) as connection:
        yield connection
        require_sound(engine)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads: all its statements see the same moment. Keep it short on SQLite."""
    with _transaction(engine, "BEGIN", session.READ) as connection:
        yield connection


@contextmanager
def trying(engine: Engine) -> Iterator[Connection]:
    """A transaction of PostgreSQL that may write, and is rolled back; all its statements see the same moment."""
    with _transaction(engine, "BEGIN", session.TRY) as connection:
        yield connection
        connection.rollback()


@contextmanager
def _transaction(engine: Engine, sqlite: str, postgresql: str) -> Iterator[Connection]:
    with translated(engine), engine.connect() as connection:
        begin = sqlite if engine.dialect.name == "sqlite" else postgresql
        with connection.execution_options(flowtrail_begin=begin).begin():
            yield connection


@contextmanager
def creating(engine: Engine) -> Iterator[Connection]:
    """As ``writing``, but first creates a missing SQLite file, for its owner only (0600)."""
    file = file_of(engine.url) if engine.dialect.name == "sqlite" else None
    if file is not None:
        _create(file, engine)
    with writing(engine) as connection:
        yield connection


def _create(file: Path, engine: Engine) -> None:
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise cannot_open(describe(engine.url), str(error.strerror), file) from error
