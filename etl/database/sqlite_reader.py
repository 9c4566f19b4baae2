"""Evaluates statements on an SQLite file in a process of its own, which ``etl.database.restricted`` may always kill.

SQLite cannot be interrupted within a function, or while it prepares a statement, and all that time keeps a run from its
commit. This is run as a script, and imports nothing of ours, so that it starts in some hundredths of a second. For each
line of its standard input, a JSON object, it writes a line: what was found, or ``error``, with SQLite's ``code`` if the
database is at fault. It ends when its input does.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sqlite3
import sys
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, Final
from urllib.parse import quote

_MOST_MEMORY: Final = 2**30
_MOST_TEMPORARY: Final = 2**30
"""Bytes of a file that SQLite makes to sort."""
_NOT_CALLED: Final = frozenset({"load_extension", "random", "randomblob", "fts3_tokenizer"})
_READS: Final = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})
_DENIED: Final = {
    sqlite3.SQLITE_ATTACH: "reads another database",
    sqlite3.SQLITE_PRAGMA: "has a PRAGMA",
    sqlite3.SQLITE_READ: "reads another database",
}
_OF_THE_DATABASE: Final = frozenset(
    {
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT),
        *(sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PROTOCOL),
    }
)
_IOERR_WRITE: Final = sqlite3.SQLITE_IOERR | (3 << 8)
_MUCH: Final = "needs more than 1 GiB of memory or of temporary files: make it read less"


class _Failed(Exception):
    """What the statement does wrong."""


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    denied: list[str] = []
    try:
        return _evaluate(asked, denied)
    except _Failed as failed:
        return {"error": str(failed)}
    except MemoryError:
        return {"error": _MUCH}
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if denied:
            return {"error": f"{denied[0]}: a rule only reads this database"}
        if code in (_IOERR_WRITE, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM):  # it only writes temporary files
            return {"error": _MUCH}
        if code & 0xFF == sqlite3.SQLITE_TOOBIG:
            return {"error": asked["large_row"]}
        if code & 0xFF in _OF_THE_DATABASE:
            return {"error": str(error), "code": code}
        return {"error": f"cannot be evaluated: {error}"}


def _evaluate(asked: dict[str, Any], denied: list[str]) -> dict[str, Any]:
    uri = f"file://{quote(asked['file'])}?mode=rw"  # rw: what a killed writer left is rolled back first
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=asked["patience"])) as raw:
        raw.text_factory = lambda text: text.decode("utf-8", "replace")
        raw.execute("PRAGMA query_only = ON")
        raw.execute("BEGIN")
        number = raw.execute(asked["beside"]).fetchone()
        raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, asked["row_bytes"])
        raw.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        raw.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000)
        raw.set_authorizer(_authorizer(denied))
        with _limited():
            cursor = raw.execute(asked["sql"])
            columns = [column[0] for column in cursor.description]
            return {"columns": columns, "rows": list(_checked(cursor, asked)), "number": number and number[0]}


def _authorizer(denied: list[str]) -> Any:
    def authorize(action: int, first: str | None, second: str | None, schema: str | None, _: object) -> int:
        if action in _READS and schema in (None, "main"):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and str(second).lower() not in _NOT_CALLED:
            return sqlite3.SQLITE_OK
        calls = f"calls {second}(), which does not give the same answer twice or acts on something"
        denied.append(calls if action == sqlite3.SQLITE_FUNCTION else _DENIED.get(action, "does more than read"))
        return sqlite3.SQLITE_DENY

    return authorize


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Nothing before the statement is: what a killed writer left may be larger."""
    limits = ((resource.RLIMIT_AS, _MOST_MEMORY), (resource.RLIMIT_FSIZE, _MOST_TEMPORARY))
    before = [(kind, resource.getrlimit(kind)) for kind, _ in limits]
    for kind, most in limits:
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        yield
    finally:
        for kind, both in before:
            resource.setrlimit(kind, both)


def _checked(rows: Any, asked: dict[str, Any]) -> Iterator[list[Any]]:
    """All rows, unless they are too many or too large; bytes as PostgreSQL's JSON has them."""
    total = 0
    for count, row in enumerate(rows):
        values = [f"\\x{value.hex()}" if isinstance(value, bytes) else value for value in row]
        total += (length := sum(len(value.encode()) if isinstance(value, str) else 8 for value in values))
        if length > asked["row_bytes"]:
            raise _Failed(asked["large_row"])
        if count == asked["rows"]:
            raise _Failed(asked["many"])
        if total > asked["bytes"]:
            raise _Failed(asked["large"])
        yield values


def main() -> None:
    asked = SimpleQueue[bytes]()

    def read() -> None:
        for line in sys.stdin.buffer:
            asked.put(line)
        os._exit(0)  # whoever asked is gone: its reader must not hold up a run

    threading.Thread(target=read, daemon=True).start()
    os.nice(5)
    while True:
        answer = _answer(json.loads(asked.get()))
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
