"""Transactions that write, and transactions that read, once or until they succeed."""

from __future__ import annotations

import datetime as dt
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from sqlalchemy import Connection, Engine

from etl.database import session
from etl.database.damage import require_sound
from etl.database.engine import describe, file_of
from etl.database.errors import cannot_open, translated
from etl.errors import DatabaseDamaged, DatabaseUnreachable

P = ParamSpec("P")
T = TypeVar("T")
_PAUSES_SECONDS: Final = (0.2, 1.0, 3.0)
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
        try:
            require_sound(engine)
        except DatabaseDamaged:
            connection.invalidate()  # the pool that would close it is gone
            raise


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
        try:
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise cannot_open(describe(engine.url), str(error.strerror), file) from error
    with writing(engine) as connection:
        yield connection


_TIMESTAMPTZ: Final = 1184
"""Its oid."""
_LAST_DAY: Final = dt.datetime(9999, 12, 31, tzinfo=dt.UTC)


@contextmanager
def any_time(connection: Connection) -> Iterator[None]:
    """On PostgreSQL, read a time that no datetime can represent as the last day of the calendar, not as an error."""
    if connection.dialect.name == "sqlite":
        yield
        return
    adapters = cast("Any", connection.connection.driver_connection).adapters
    usual = adapters.get_loader(_TIMESTAMPTZ, 0)

    class Tolerant:
        """Wraps the driver's own, which cannot be subclassed when it is compiled."""

        format = usual.format

        def __init__(self, oid: int, context: Any = None) -> None:
            self._usual = usual(oid, context)

        def load(self, data: Any) -> dt.datetime:
            try:
                return cast("dt.datetime", self._usual.load(data))
            except Exception as error:  # psycopg.DataError, which only the driver's owner may import
                if "timestamp too" not in str(error):
                    raise
                return _LAST_DAY

    adapters.register_loader(_TIMESTAMPTZ, Tolerant)
    try:
        yield
    finally:
        adapters.register_loader(_TIMESTAMPTZ, usual)


class Transactions:
    """A database that is read and written in short transactions. Safe to use from several threads."""

    def __init__(self, engine: Engine, stop: threading.Event | None = None) -> None:
        self._engine = engine
        self._stop = stop or threading.Event()
        self._turn = threading.Lock() if engine.dialect.name == "sqlite" else nullcontext()
        """SQLite takes one writer at a time: waiting here is cheaper than retrying when it is busy."""

    def _retried(self, attempt: Callable[[], T]) -> T:
        for pause in _PAUSES_SECONDS:
            try:
                return attempt()
            except DatabaseUnreachable:
                if self._stop.wait(pause):
                    raise
        return attempt()

    def _read(self, work: Callable[[Connection], T]) -> T:
        def attempt() -> T:
            with reading(self._engine) as connection:
                return work(connection)

        return self._retried(attempt)

    def _write(
        self, work: Callable[[Connection], T], was_committed: Callable[[T, Connection], bool] | None = None
    ) -> T:
        """Run ``work`` in one transaction, and again if the database went away. A lost COMMIT is looked up by
        ``was_committed``, which gets what ``work`` returned."""

        def attempt() -> T:
            result: list[T] = []
            try:
                with self._turn, writing(self._engine) as connection:
                    result.append(work(connection))
            except DatabaseUnreachable:
                if result and was_committed is not None and self._read(partial(was_committed, result[0])):
                    return result[0]
                raise
            return result[0]

        return self._retried(attempt)


def reads(work: Callable[Concatenate[Connection, P], T]) -> Callable[Concatenate[Transactions, P], T]:
    """A method that calls ``work`` in a transaction that only reads."""

    @wraps(work)
    def method(of: Transactions, /, *args: P.args, **named: P.kwargs) -> T:
        return of._read(lambda connection: work(connection, *args, **named))

    return method


def writes(work: Callable[Concatenate[Connection, P], T]) -> Callable[Concatenate[Transactions, P], T]:
    """A method that calls ``work`` in one transaction, and again if the database went away, even where only the answer
    to the COMMIT was lost."""

    @wraps(work)
    def method(of: Transactions, /, *args: P.args, **named: P.kwargs) -> T:
        return of._write(lambda connection: work(connection, *args, **named))

    return method
