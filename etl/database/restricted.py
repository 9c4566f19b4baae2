"""Evaluates one SELECT that somebody else wrote: it only reads, within a time, and gives a bounded result.

What the statement itself does wrong is RuleFailed; that the database is away, or damaged, is a DatabaseError as always.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from select import select
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine

from etl.database import session
from etl.database.engine import file_of
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
_LARGE_ROW: Final = f"makes a row or a value of more than {_MOST_ROW_BYTES:,} bytes: leave out long columns"
_LARGE: Final = f"gives more than {_MOST_BYTES // 1_000_000} MB: leave out long columns"
_MANY: Final = f"gives more than {MOST_ROWS:,} rows: a rule should find little"
_BOUNDS: Final = {
    "row_bytes": _MOST_ROW_BYTES,
    "bytes": _MOST_BYTES,
    "rows": MOST_ROWS,
    "large_row": _LARGE_ROW,
    "large": _LARGE,
    "many": _MANY,
}
_PATIENCE_SECONDS: Final = 5.0
"""How long the reader waits for a lock."""
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_LOOK_SECONDS: Final = 0.02
"""How often to see whether a writer waits on SQLite."""
_READER: Final = Path(__file__).with_name("sqlite_reader.py")
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


Select = Callable[[Query, str], tuple[Found, int | None]]
"""What a query finds, and the number that another statement, one of ours, gives at the same moment.

Nothing that the query does outlives it. Raises RuleFailed, GaveWay, DatabaseError.
"""


@contextlib.contextmanager
def selecting(engine: Engine) -> Iterator[Select]:
    """Evaluates queries within the block, one at a time. The engine has to be one for this alone."""
    if engine.dialect.name != "sqlite":
        try:
            yield partial(_on_postgresql, engine)
        finally:
            engine.dispose()  # a lock that a function took behind a view would last as long as the session
        return
    with contextlib.closing(_SqliteReader(engine)) as reader:
        yield reader.select


def _too_long(seconds: float) -> RuleFailed:
    return RuleFailed(f"was ended after {seconds:g} s: make it read less, or raise [rules] timeout")


# ------------------------------------------------------------------------------------------------------------ SQLite


class _SqliteReader:
    """A process that reads, begun when it is needed, and killed where it is not to go on."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._file = file_of(engine.url)
        self._process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End the process, and with it whatever it does, and its lock."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            with process:  # closes its pipes, and waits
                pass

    def select(self, query: Query, beside: str) -> tuple[Found, int | None]:
        if self._file is None:
            raise RuleFailed("cannot be evaluated: a database in memory cannot be read by a process of its own")
        asked = {"file": str(self._file), "sql": query.sql, "beside": beside, "patience": _PATIENCE_SECONDS, **_BOUNDS}
        with translated(self._engine):
            try:
                found = json.loads(self._answer(asked, query, self._file))
            except BaseException:
                self.close()
                raise
            if "code" in found:
                raise _as_driver_error(found["error"], found["code"])
        if "error" in found:
            raise RuleFailed(printable(found["error"]))
        rows = [[_moment(value) if isinstance(value, str) else value for value in row] for row in found["rows"]]
        return Found(found["columns"], rows), found["number"]

    def _answer(self, asked: dict[str, Any], query: Query, file: Path) -> bytes:
        process, ends_at = self._running(), time.monotonic() + query.seconds
        answer, said = process.stdout, bytearray()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            process.stdin.flush()
        while not said.endswith(b"\n"):
            if select([answer], [], [], _LOOK_SECONDS)[0]:
                said += (part := os.read(answer.fileno(), 2**20))
                if not part:
                    raise RuleFailed("cannot be evaluated: the process that did came to an end")
            elif query.stopped() or has_waiting_writer(file):
                raise GaveWay
            elif time.monotonic() > ends_at:
                raise _too_long(query.seconds)
        return bytes(said)

    def _running(self) -> Any:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603 - our own script
                (sys.executable, "-I", "-S", _READER),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        return self._process


def _as_driver_error(message: str, code: int) -> sqlite3.Error:
    kind = sqlite3.DatabaseError if code & 0xFF in _DAMAGED else sqlite3.OperationalError
    error = kind(message)
    error.sqlite_errorcode = code
    return error


def _moment(text: str) -> str:
    try:
        at = time_of_text(text) if len(text) == len("2026-03-01 12:00:00.000000") else None
    except UnreadableTime:
        return text
    return text if at is None else at.isoformat().replace("+00:00", "Z")


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
        rows = [_of_json(made, times) for made in _checked(result)]
        transaction.rollback()
    return Found(columns, rows), number and number[0]


_COLUMNS: Final = "SELECT * FROM (\n{sql}\n) AS found LIMIT 0"
_AS_JSON: Final = """
SELECT CASE WHEN size <= {row_bytes} AND total <= {bytes} THEN made END, size
FROM (SELECT made, octet_length(made) AS size, sum(octet_length(made)) OVER (ROWS UNBOUNDED PRECEDING) AS total
      FROM (SELECT CAST(row_to_json(found) AS text) AS made FROM (
{sql}
) AS found LIMIT {rows} + 1) AS each) AS measured"""


def _checked(rows: Iterator[tuple[Any, int]]) -> list[Any]:
    """The first column of all rows, unless they are too many or, by the second, too large."""
    taken, total = list[Any](), 0
    for made, length in rows:
        total += length
        if length > _MOST_ROW_BYTES:
            raise RuleFailed(_LARGE_ROW)
        if len(taken) == MOST_ROWS:
            raise RuleFailed(_MANY)
        if total > _MOST_BYTES:
            raise RuleFailed(_LARGE)
        taken.append(made)
    return taken


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
