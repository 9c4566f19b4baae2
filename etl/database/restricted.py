"""Evaluates one SELECT that somebody else wrote: it only reads, within a time, and gives a bounded result.

What the statement itself does wrong is RuleFailed; that the database is away, or damaged, is a DatabaseError as always.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine

from etl.database import session
from etl.database.engine import code_of, file_of
from etl.database.errors import translated
from etl.database.journal import has_waiting_writer
from etl.domain.rules import Found
from etl.errors import RuleFailed
from etl.printable import printable
from etl.schema import time_of_text
from etl.schema.columns import UnreadableTime

MOST_ROWS: Final = 10_000
_MOST_ROW_BYTES: Final = 100_000
_MOST_BYTES: Final = 10_000_000
_LARGE_ROW: Final = f"gives a row of more than {_MOST_ROW_BYTES:,} bytes: leave out long columns"
_LARGE: Final = f"gives more than {_MOST_BYTES // 1_000_000} MB: leave out long columns"
_MANY: Final = f"gives more than {MOST_ROWS:,} rows: a rule should find little"
_STEPS: Final = 10_000
"""Instructions of SQLite between two looks at the clock: some tenths of a millisecond."""
_LOOK_SECONDS: Final = 0.02
_NOT_ON_SQLITE: Final = frozenset({"load_extension", "random", "randomblob", "fts3_tokenizer"})
_READS: Final = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})
_DENIED: Final = {
    sqlite3.SQLITE_ATTACH: "reads another database",
    sqlite3.SQLITE_PRAGMA: "has a PRAGMA",
    sqlite3.SQLITE_READ: "reads another database",
}
_LIMITS: Final = {
    sqlite3.SQLITE_LIMIT_LENGTH: _MOST_BYTES,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1000,
}
_OF_THE_DATABASE: Final = frozenset(
    {
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT),
        *(sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PROTOCOL),
    }
)
_OF_THE_STATEMENT: Final = ("0A", "21", "22", "25", "2F", "38", "39", "42", "54", "P0", "53100", "53200", "53400")
"""The beginnings of PostgreSQL's codes for what a statement does wrong, or needs too much of."""
_CANCELLED: Final = "57014"
_VOLATILE: Final = "SELECT proname FROM pg_catalog.pg_proc WHERE proname = ANY(%s) AND provolatile = 'v' LIMIT 1"
_TIMESTAMPTZ: Final = 1184
_LONGEST_NUMBER: Final = 300


class GaveWay(Exception):
    """The statement was ended on SQLite, to begin again later: a writer waited for it, or it was stopped."""


class Query(NamedTuple):
    """A SELECT, the names of the functions that it calls, and how long it may take."""

    sql: str
    functions: Sequence[str]
    seconds: float
    stopped: Callable[[], bool] = lambda: False
    """Whether nobody waits for its result any more."""


def select_only(engine: Engine, query: Query, beside: str) -> tuple[Found, int | None]:
    """What a query finds, and the number that ``beside``, a statement of ours, gives at the same moment.

    Nothing that the statement does outlives it. Raises RuleFailed, GaveWay, DatabaseError.
    """
    evaluate = _on_sqlite if engine.dialect.name == "sqlite" else _on_postgresql
    return evaluate(engine, query, beside)


def _too_long(seconds: float) -> RuleFailed:
    return RuleFailed(f"was ended after {seconds:g} s: make it read less, or raise [rules] timeout")


def _checked(rows: Iterator[list[Any]], size: Callable[[list[Any]], int]) -> list[list[Any]]:
    """All rows, unless they are too many or too large."""
    taken, total = list[list[Any]](), 0
    for row in rows:
        total += (length := size(row))
        if length > _MOST_ROW_BYTES:
            raise RuleFailed(_LARGE_ROW)
        if len(taken) == MOST_ROWS:
            raise RuleFailed(_MANY)
        if total > _MOST_BYTES:
            raise RuleFailed(_LARGE)
        taken.append(row)
    return taken


# ------------------------------------------------------------------------------------------------------------ SQLite


class _Watch:
    """Ends the statement when its time is over, or when a writer waits for it, and says what it was refused."""

    def __init__(self, engine: Engine, query: Query) -> None:
        self._file = file_of(engine.url)
        self._stopped = query.stopped
        self._look_at = 0.0
        self._ends_at = time.monotonic() + query.seconds
        self.denied = ""
        self.gave_way = False

    def step(self) -> bool:
        """Whether to interrupt; called by SQLite every so many instructions."""
        now = time.monotonic()
        if now > self._ends_at:
            return True
        if now > self._look_at and self._file is not None:
            self._look_at = now + _LOOK_SECONDS
            self.gave_way = self._stopped() or has_waiting_writer(self._file)
        return self.gave_way

    def authorize(self, action: int, first: str | None, second: str | None, schema: str | None, _: object) -> int:
        if action in _READS and schema in (None, "main"):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and str(second).lower() not in _NOT_ON_SQLITE:
            return sqlite3.SQLITE_OK
        calls = f"calls {second}(), which does not give the same answer twice or acts on something"
        self.denied = calls if action == sqlite3.SQLITE_FUNCTION else _DENIED.get(action, "does more than read")
        return sqlite3.SQLITE_DENY


def _on_sqlite(engine: Engine, query: Query, beside: str) -> tuple[Found, int | None]:
    with translated(engine):
        pooled = engine.raw_connection()
        raw: Any = pooled.driver_connection
        watch = _Watch(engine, query)
        try:
            for limit, most in _LIMITS.items():
                raw.setlimit(limit, most)
            raw.text_factory = lambda text: text.decode("utf-8", "replace")
            raw.execute("PRAGMA query_only = ON")
            raw.execute("BEGIN")
            number = raw.execute(beside).fetchone()
            raw.set_authorizer(watch.authorize)
            raw.set_progress_handler(watch.step, _STEPS)
            with _blamed_on_sqlite(query, watch):
                cursor = raw.execute(query.sql)
                columns = [column[0] for column in cursor.description]
                rows = _checked(([_of_sqlite(value) for value in row] for row in cursor), _size)
        finally:
            pooled.invalidate()  # closed: nobody else gets a connection with these limits
            pooled.close()
    return Found(columns, rows), number and number[0]


@contextlib.contextmanager
def _blamed_on_sqlite(query: Query, watch: _Watch) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, MemoryError) as error:
        if watch.gave_way:
            raise GaveWay from None
        if code_of(error) == sqlite3.SQLITE_INTERRUPT:
            raise _too_long(query.seconds) from None
        if watch.denied:
            raise RuleFailed(f"{watch.denied}: a rule only reads this database") from None
        if code_of(error) in _OF_THE_DATABASE:
            raise
        raise RuleFailed(f"cannot be evaluated: {printable(str(error))}") from None


def _of_sqlite(value: Any) -> Any:
    """A value as PostgreSQL's JSON has it: bytes in hexadecimal digits, a time of ours with its zone."""
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    return _moment(value) if isinstance(value, str) else value


def _moment(text: str) -> str:
    try:
        at = time_of_text(text) if len(text) == len("2026-03-01 12:00:00.000000") else None
    except UnreadableTime:
        return text
    return text if at is None else at.isoformat().replace("+00:00", "Z")


def _size(row: list[Any]) -> int:
    return sum(len(value.encode()) if isinstance(value, str) else 8 for value in row)


# -------------------------------------------------------------------------------------------------------- PostgreSQL


def _on_postgresql(engine: Engine, query: Query, beside: str) -> tuple[Found, int | None]:
    """The server makes JSON of each row, so that no value is too large or too strange for the driver."""
    with (
        translated(engine),
        engine.connect() as connection,
        connection.execution_options(flowtrail_begin=session.READ).begin() as transaction,
    ):
        raw: Any = connection.connection.driver_connection
        limit = f"{max(1, round(query.seconds * 1000))}ms"
        raw.execute(
            f"SET LOCAL statement_timeout = '{limit}'; SET LOCAL lock_timeout = '{limit}'; SET LOCAL jit = off; "
            "SET LOCAL max_parallel_workers_per_gather = 0"
        )
        number = raw.execute(beside).fetchone()
        volatile = raw.execute(_VOLATILE, [list(query.functions)]).fetchone()
        if volatile:
            raise RuleFailed(f"calls {volatile[0]}(), which does not give the same answer twice or acts on something")
        with _blamed_on_postgresql(engine, query):
            shape = raw.execute(_COLUMNS.format(sql=query.sql).encode()).description
            result = raw.execute(_AS_JSON.format(sql=query.sql, **_BOUNDS).encode())
        columns = [column.name for column in shape]
        times = [n for n, column in enumerate(shape) if column.type_code == _TIMESTAMPTZ]
        rows = [_of_json(made, times) for made, _ in _checked(map(list, result), lambda row: row[1])]
        transaction.rollback()
    return Found(columns, rows), number and number[0]


_BOUNDS: Final = {"row_bytes": _MOST_ROW_BYTES, "bytes": _MOST_BYTES, "rows": MOST_ROWS + 1}
_COLUMNS: Final = "SELECT * FROM (\n{sql}\n) AS found LIMIT 0"
_AS_JSON: Final = """
SELECT CASE WHEN size <= {row_bytes} AND total <= {bytes} THEN made END, size
FROM (SELECT made, octet_length(made) AS size, sum(octet_length(made)) OVER (ROWS UNBOUNDED PRECEDING) AS total
      FROM (SELECT CAST(row_to_json(found) AS text) AS made FROM (
{sql}
) AS found LIMIT {rows}) AS each) AS measured"""


@contextlib.contextmanager
def _blamed_on_postgresql(engine: Engine, query: Query) -> Iterator[None]:
    try:
        yield
    except engine.dialect.loaded_dbapi.Error as error:
        state = error.sqlstate or ""
        said = " ".join((error.diag.message_primary or str(error)).split())
        if state == _CANCELLED and "timeout" in said:
            raise _too_long(query.seconds) from None
        if state == "25006":
            raise RuleFailed("does more than read: a rule only reads this database") from None
        if state == _CANCELLED or state.startswith(_OF_THE_STATEMENT):
            raise RuleFailed(f"cannot be evaluated: {printable(said)}") from None
        raise


def _number(digits: str) -> int | str:
    """Python refuses to read numbers of thousands of digits."""
    return int(digits) if len(digits) < _LONGEST_NUMBER else digits


def _of_json(row: str, times: Sequence[int]) -> list[Any]:
    values = [value for _, value in json.loads(row, object_pairs_hook=list, parse_int=_number)]
    for n in times:
        values[n] = values[n] and values[n].replace("+00:00", "Z")
    return values
