"""One transaction per call, retried if the database went away."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial, wraps
from typing import Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine

from etl.database import reading, writing
from etl.errors import DatabaseUnreachable

P = ParamSpec("P")
T = TypeVar("T")
_PAUSES_SECONDS: Final = (0.2, 1.0, 3.0)


class Transactions:
    """A database that is read and written in short transactions. Safe to use from several threads."""

    def __init__(self, engine: Engine, stop: threading.Event | None = None) -> None:
        self._engine = engine
        self._stop = stop or threading.Event()
        self._turn = threading.Lock() if engine.dialect.name == "sqlite" else contextlib.nullcontext()
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
