"""How many statements a process sends, whatever library it uses: counted where the drivers are called.

``calls`` counts what the driver was asked to do, ``statements`` how often a statement was executed: an executemany
over 500 rows is one call and 500 statements, a COPY is one of both. Transactions and settings are not counted. ``rows``
counts what is fetched.
"""

from __future__ import annotations

import sqlite3
import sqlite3.dbapi2
from collections import Counter
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

UNCOUNTED = {"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "SET", "SHOW", "PRAGMA", "END", ""}


@dataclass(frozen=True)
class Count:
    """By the first words of the statement."""

    calls: Counter[str] = field(default_factory=Counter)
    statements: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    """Only of SQLite and psycopg; by the way in which they were fetched."""

    def saw(self, statement: Any, times: int = 1) -> None:
        words = str(statement).split(None, 12)
        if words and words[0].upper().rstrip(";") not in UNCOUNTED:
            head = " ".join(words[:12])[:100]
            self.calls[head] += 1
            self.statements[head] += times

    def fetching(self, cursor: type) -> dict[str, Callable[..., Any]]:
        """The methods of ``cursor`` that fetch, counted."""

        def counted(name: str) -> Callable[..., Any]:
            fetch = getattr(cursor, name)

            def method(of: Any, *given: Any, **options: Any) -> Any:
                found = fetch(of, *given, **options)
                self.rows[name] += len(found) if name != "fetchone" else found is not None
                return found

            return method

        return {name: counted(name) for name in ("fetchone", "fetchmany", "fetchall")}


def start(database: str) -> Count:
    """Count from now on what is sent to ``database`` ("sqlite" or "postgresql"), by whichever driver there is."""
    count = Count()
    if database == "sqlite":
        _count_sqlite(count)
        return count
    if find_spec("psycopg"):
        _count_psycopg(count)
    if find_spec("psycopg2"):
        _count_psycopg2(count)
    return count


def _times(rows: Any, changed: int) -> int:
    return len(rows) if isinstance(rows, Sized) else max(changed, 1)


def _count_sqlite(count: Count) -> None:
    class Cursor(sqlite3.Cursor):
        def execute(self, statement: str, *values: Any) -> Any:
            count.saw(statement)
            return super().execute(statement, *values)

        def executemany(self, statement: str, rows: Any) -> Any:
            done = super().executemany(statement, rows)
            count.saw(statement, _times(rows, self.rowcount))
            return done

    for name, method in count.fetching(sqlite3.Cursor).items():
        setattr(Cursor, name, method)
    connect = sqlite3.connect

    def counted(*given: Any, factory: type[sqlite3.Connection] = sqlite3.Connection, **options: Any) -> Any:
        class Connection(factory):  # type: ignore[valid-type, misc]
            def cursor(self, factory: Any = Cursor) -> Any:
                return super().cursor(factory)

            def execute(self, *given: Any) -> Any:
                return self.cursor().execute(*given)

            def executemany(self, *given: Any) -> Any:
                return self.cursor().executemany(*given)

        return connect(*given, factory=Connection, **options)

    sqlite3.connect = sqlite3.dbapi2.connect = counted


def _count_psycopg(count: Count) -> None:
    from psycopg import Cursor

    def saw_one(_: Any, statement: Any, *given: Any) -> None:
        count.saw(statement)

    def saw_many(_: Any, statement: Any, rows: Any = (), *given: Any) -> None:
        count.saw(statement, _times(rows, 1))

    for name, saw in (("execute", saw_one), ("executemany", saw_many), ("copy", saw_one)):
        setattr(Cursor, name, _watched(getattr(Cursor, name), saw))
    for name, method in count.fetching(Cursor).items():
        setattr(Cursor, name, method)


def _watched(method: Callable[..., Any], saw: Callable[..., None]) -> Callable[..., Any]:
    def watched(cursor: Any, *given: Any, **options: Any) -> Any:
        saw(cursor, *given)
        return method(cursor, *given, **options)

    return watched


def _count_psycopg2(count: Count) -> None:
    import psycopg2  # type: ignore[import-untyped]
    import psycopg2.extensions  # type: ignore[import-untyped]

    class Cursor(psycopg2.extensions.cursor):  # type: ignore[misc]
        def execute(self, statement: Any, *given: Any, **options: Any) -> Any:
            count.saw(statement.decode() if isinstance(statement, bytes) else statement)
            return super().execute(statement, *given, **options)

        def copy_expert(self, statement: Any, *given: Any, **options: Any) -> Any:
            count.saw(statement)
            return super().copy_expert(statement, *given, **options)

    connect = psycopg2.connect

    def counted(*given: Any, **options: Any) -> Any:
        return connect(*given, **{"cursor_factory": Cursor, **options})

    psycopg2.connect = counted
