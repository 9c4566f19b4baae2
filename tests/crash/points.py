"""The points at which a run can be struck: before and after every SQL statement, HTTP call and COMMIT.

They are installed in SQLAlchemy, psycopg and requests, below the program. A strike is ``{"at": n, "how": ...}``:

| how | what happens at the n-th point |
|---|---|
| kill | the process kills itself with SIGKILL |
| stop | the process sends itself SIGTERM and continues |
| io, busy (SQLite), full, deadlock, shutdown (PostgreSQL) | the statement, COMMIT or call raises such an error |
| pages | not at a point: the database may grow by at most n pages (then SQLite reports it as full) |
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import requests
from requests.adapters import HTTPAdapter
from sqlalchemy import Engine, event
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from etl.sync import fetching

BOARD_BYTES = 256
_COUNT = struct.Struct("<q")
_LABEL_LENGTH = 60


class Counter:
    """Counts the points that a process passes, in shared memory that outlives it, and strikes at one of them."""

    def __init__(self, board: mmap.mmap, strike: dict[str, Any] | None) -> None:
        self._board = board
        self._at = strike["at"] if strike else 0
        self._how = strike["how"] if strike else ""
        self._lock = threading.Lock()
        self._passed = 0

    def before(self, what: str) -> None:
        """Call before an operation. Raises the error if that is how to strike."""
        if self._pass(f"before {what}") and self._how not in ("kill", "stop", "pages"):
            raise _refusal(self._how, what)

    def after(self, what: str) -> None:
        """Call after it."""
        self._pass(f"after {what}")

    def _pass(self, label: str) -> bool:
        with self._lock:
            self._passed += 1
            self._board[: _COUNT.size] = _COUNT.pack(self._passed)
            struck = self._passed == self._at
            if struck or not 0 < self._at < self._passed:
                text = label.encode()[: BOARD_BYTES - 2 * _COUNT.size] + b"\0"
                self._board[_COUNT.size : _COUNT.size + len(text)] = text
            if struck and self._how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()
            if struck and self._how == "stop":
                os.kill(os.getpid(), signal.SIGTERM)
            return struck


def read(board: bytes) -> tuple[int, str]:
    """How many points were passed, and the label of the one that was struck, or else of the last."""
    return _COUNT.unpack_from(board)[0], board[_COUNT.size :].partition(b"\0")[0].decode(errors="replace")


def _refusal(how: str, what: str) -> Exception:
    if what == "HTTP":
        return requests.ConnectionError("injected")
    if "COPY" in what or how in _POSTGRESQL:
        return _POSTGRESQL.get(how, psycopg.errors.IoError)("injected")
    code, said = _SQLITE[how]
    error = sqlite3.OperationalError(said)
    error.sqlite_errorcode = code
    return error


_SQLITE = {
    "io": (sqlite3.SQLITE_IOERR, "disk I/O error"),
    "busy": (sqlite3.SQLITE_BUSY, "database is locked"),
}
_POSTGRESQL = {
    "full": psycopg.errors.DiskFull,
    "deadlock": psycopg.errors.DeadlockDetected,
    "shutdown": psycopg.errors.AdminShutdown,
}


def prepare(board: str | None = None, strike: dict[str, Any] | None = None, flows_a_group: int | None = None) -> None:
    """Install the points in this process, permanently, if there is a file that shall know which it passed.

    ``flows_a_group``: how many workflows are written per transaction, if not as many as usual.
    """
    os.setpgid(0, 0)
    fetching.FLOWS_A_GROUP = flows_a_group or fetching.FLOWS_A_GROUP
    if board is None:
        return
    with open(board, "r+b") as file:
        counter = Counter(mmap.mmap(file.fileno(), BOARD_BYTES), strike)
    _watch_statements(counter)
    for dialect in (PGDialect_psycopg, SQLiteDialect_pysqlite):
        _wrap(dialect, "do_commit", "COMMIT", counter)
    _wrap(HTTPAdapter, "send", "HTTP", counter)
    _watch_copy(counter)
    if strike and strike["how"] == "pages":
        _limit_pages(strike["at"])


def _watch_statements(counter: Counter) -> None:
    def before(cursor: Any, statement: str, *_: Any) -> None:
        counter.before(_head(statement))

    def after(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        counter.after(_head(statement))

    event.listen(Engine, "do_execute", before)
    event.listen(Engine, "do_executemany", before)
    event.listen(Engine, "do_execute_no_params", before)
    event.listen(Engine, "after_cursor_execute", after)


def _wrap(owner: type, name: str, what: str, counter: Counter) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        counter.before(what)
        result = original(*arguments, **named)
        counter.after(what)
        return result

    setattr(owner, name, wrapped)


def _watch_copy(counter: Counter) -> None:
    """COPY bypasses SQLAlchemy."""
    original = psycopg.Cursor.copy

    @contextlib.contextmanager
    def copy(self: Any, statement: Any, *arguments: Any, **named: Any) -> Iterator[Any]:
        counter.before(_head(str(statement)))
        with original(self, statement, *arguments, **named) as copying:
            yield copying
        counter.after(_head(str(statement)))

    psycopg.Cursor.copy = copy


def _limit_pages(more: int) -> None:
    """SQLite refuses to grow the file by more pages than that. The limit is per connection, so each gets it."""
    allowed: list[int] = []

    def limit(connection: sqlite3.Connection, _: object) -> None:
        if not allowed:
            allowed.append(max(1, connection.execute("PRAGMA page_count").fetchone()[0]) + more)
        connection.execute(f"PRAGMA max_page_count = {allowed[0]}")

    event.listen(Engine, "connect", limit)


def _head(statement: str) -> str:
    return " ".join(statement.split())[:_LABEL_LENGTH]
