"""Engines: how a connection is opened on either database, and how each transaction begins."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import URL, Connection, Dialect, Engine, QueuePool, StaticPool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, InvalidatePoolError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from etl.database import session
from etl.database.journal import holders, in_our_mode
from etl.errors import ConfigError, DatabaseError, Problem
from etl.log import get_logger

BUSY_TIMEOUT_SECONDS: Final = 60.0
_POOL_TIMEOUT_SECONDS: Final = 30.0
LOCK_SAID_AFTER_SECONDS: Final = 5.0
_TO_WRITE: Final = "BEGIN IMMEDIATE"

OLDEST_SQLITE: Final = (3, 37, 0)
"""The first version with STRICT tables."""

_DEFAULTS: Final[dict[str, Any]] = {
    "application_name": "flowtrail",
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    "options": "",
}
"""Parameters of libpq, unless the URL sets them. ``options`` are empty because a pooler accepts none, and libpq would
take them from the environment."""
_ALWAYS: Final[dict[str, Any]] = {"client_encoding": "UTF8", "autocommit": True}
"""We send every BEGIN ourselves: see ``session``."""
_SETTINGS: Final = "flowtrail_settings"


def connect(url: str, *, pool_size: int = 5, patience_seconds: float = BUSY_TIMEOUT_SECONDS) -> Engine:
    """An engine that opens at most ``pool_size`` connections, when they are needed; several threads may use it.

    ``patience_seconds``: how long a transaction waits for a locked SQLite file, and a thread for a connection (30 s at
    most). Raises ConfigError for a URL that cannot be used. Nothing is opened or created yet.
    """
    parsed = _parse(url)
    if parsed.drivername == "sqlite":
        return _sqlite(parsed, pool_size, patience_seconds)
    return _postgresql(parsed, pool_size, patience_seconds)


def _postgresql(url: URL, pool_size: int, patience_seconds: float) -> Engine:
    engine = create_engine(
        url,
        pool_size=pool_size,
        pool_timeout=min(patience_seconds, _POOL_TIMEOUT_SECONDS),
        max_overflow=0,
        pool_pre_ping=True,
        use_native_hstore=False,  # otherwise each first connection looks for it, in a transaction
        hide_parameters=True,
        connect_args=_connection_parameters(url),
    )

    def opened(dialect: Dialect, record: Any, given: Any, parameters: dict[str, Any]) -> Any:
        connection = dialect.connect(*given, **parameters)
        record.info[_SETTINGS] = _settled(connection, url, prepares="prepare_threshold" in parameters)
        return connection

    event.listen(engine, "do_connect", opened)
    event.listen(engine, "begin", _begin_postgresql)
    return engine


def _settled(connection: Any, url: URL, *, prepares: bool) -> str:
    """The statement that follows each BEGIN on a new connection. ``prepares``: the URL sets prepare_threshold."""
    from etl.database.cursor import StreamCursor

    try:
        found = session.inspect(connection, url, describe(url))
    except BaseException:
        connection.close()
        raise
    connection.server_cursor_factory = StreamCursor
    if found.pooled and not prepares:
        connection.prepare_threshold = None  # the next transaction may be in another session
    return found.settings


def _begin_postgresql(connection: Connection) -> None:
    begin = connection.get_execution_options().get("flowtrail_begin", session.WRITE)
    connection.exec_driver_sql(f"{begin}; {connection.info[_SETTINGS]}".replace("%", "%%"))


def _connection_parameters(url: URL) -> dict[str, Any]:
    parameters = {name: value for name, value in _DEFAULTS.items() if name not in url.query} | _ALWAYS
    if "prepare_threshold" in url.query:
        parameters["prepare_threshold"] = _threshold(str(url.query["prepare_threshold"]))
    return parameters


def _threshold(value: str) -> int | None:
    """After so many times a statement is prepared; "none", never. Not before its first time: a BEGIN with its settings
    is two statements, which cannot be prepared."""
    if value.lower() == "none":
        return None
    if not value.isdecimal():
        raise _unusable("has a prepare_threshold that is neither a number nor none")
    return max(1, int(value))


_SECRET: Final = re.compile("pass|secret|key", re.IGNORECASE)
"""Matches the names of libpq's parameters for passwords, secrets and keys, and for files with them."""
_FILES: Final = frozenset({"passfile", "sslkey", "sslkeylogfile"})


def describe(url: str | URL) -> str:
    """The URL with all secrets masked, for messages and logs."""
    parsed = _parse(url) if isinstance(url, str) else url
    masked = parsed.update_query_dict({name: "***" for name in parsed.query if is_secret(name)})
    return masked.render_as_string(hide_password=True).replace(quote("***"), "***")


def secrets_of(url: URL) -> Iterator[str]:
    """What ``describe`` masks, except the names of files, which libpq's messages need."""
    given = [value for name, value in url.query.items() if is_secret(name) and name not in _FILES]
    for value in (url.password, *given):
        if value:
            yield from (value,) if isinstance(value, str) else value


def is_secret(parameter: str) -> bool:
    """Whether the value of this parameter of libpq is not to be shown."""
    return _SECRET.search(parameter) is not None


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise _unusable("is not a URL: write sqlite:///file.db or postgresql+psycopg://...") from None
    if parsed.drivername == "sqlite":
        if parsed.query:
            raise _unusable("has options behind '?': SQLite takes none here")
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise _unusable(f"needs SQLite 3.37 or newer, and this Python brings {sqlite3.sqlite_version}: use another")
        return parsed
    if parsed.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise _unusable(f"names {parsed.drivername!r}: Flowtrail supports sqlite and postgresql+psycopg")
    if url.count("@") > 1:
        raise _unusable("has more than one '@': write the one in the password as %40")
    if find_spec("psycopg") is None:
        raise _unusable("needs the driver for PostgreSQL: pip install 'flowtrail[postgres]'")
    return parsed.set(drivername="postgresql+psycopg")


def _unusable(why: str) -> ConfigError:
    return ConfigError([Problem("[database] url", why)])


def _sqlite(url: URL, pool_size: int, patience_seconds: float) -> Engine:
    file = file_of(url)
    pool: dict[str, Any] = {"poolclass": StaticPool}
    if file is not None:
        pool = {"poolclass": QueuePool, "pool_size": pool_size, "max_overflow": 0}
        pool["pool_timeout"] = min(patience_seconds, _POOL_TIMEOUT_SECONDS)
    engine = create_engine(url, creator=lambda: _open(file, patience_seconds), hide_parameters=True, **pool)
    event.listen(engine, "begin", _SqliteBegin(file, patience_seconds))
    if file is not None:
        event.listen(engine, "connect", lambda _, record: record.info.update(file=identity(file)))
        event.listen(engine, "checkout", lambda _, record, __: _require_same_file(record, file))
    return engine


def _require_same_file(record: ConnectionPoolEntry, file: Path) -> None:
    """Drop a connection whose file was replaced, as by a backup: what it wrote would be lost."""
    if record.info.get("file") != identity(file):
        raise InvalidatePoolError(f"{file} is another file now")


def identity(file: Path | None) -> tuple[int, int] | None:
    """Device and inode of a file, whatever its name; None if it does not exist, or is a database in memory."""
    try:
        found = file.stat() if file is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)


def file_of(url: URL) -> Path | None:
    """The file of an SQLite URL; None if it is in memory."""
    return None if url.database in {None, "", ":memory:"} else Path(str(url.database)).absolute()


class _SqliteBegin:
    """The driver's own lazy BEGIN loses updates: two transactions that read and then write overwrite each other.

    A transaction that waits for the write lock says so after ``LOCK_SAID_AFTER_SECONDS``; of several, the first.
    """

    def __init__(self, file: Path | None, patience_seconds: float) -> None:
        self._file = file
        self._patience_seconds = patience_seconds
        self._said_at: float | None = None

    def __call__(self, connection: Connection) -> None:
        begin = connection.get_execution_options().get("flowtrail_begin", _TO_WRITE)
        if begin == _TO_WRITE and self._file is not None and self._patience_seconds > LOCK_SAID_AFTER_SECONDS:
            with _patience(connection, LOCK_SAID_AFTER_SECONDS, self._patience_seconds):
                try:
                    connection.exec_driver_sql(begin)
                except OperationalError as error:
                    if code_of(error.orig) != sqlite3.SQLITE_BUSY:
                        raise
                else:
                    return
            self._say(self._file)
        connection.exec_driver_sql(begin)

    def _say(self, file: Path) -> None:
        now = time.monotonic()
        if self._said_at is None or now - self._said_at > self._patience_seconds:
            self._said_at = now

            get_logger("etl.database").warning(
                "database_locked",
                file=str(file),
                by=holders(file),
                waited_seconds=LOCK_SAID_AFTER_SECONDS,
                remedy=f"it is tried for {self._patience_seconds:g} s in all: end what holds the lock",
            )


@contextmanager
def _patience(connection: Connection, seconds: float, otherwise: float) -> Iterator[None]:
    """Wait this long for locks within the block. An interrupt in it closes the connection."""
    raw = connection.connection.cursor()
    raw.execute(f"PRAGMA busy_timeout = {seconds * 1000:.0f}")
    try:
        yield
    finally:
        if not connection.invalidated:
            raw.execute(f"PRAGMA busy_timeout = {otherwise * 1000:.0f}")
            raw.close()


class _PatientConnection(sqlite3.Connection):
    """Retries COMMIT: without WAL a reader can block it, and the transaction stays open for another try."""

    def commit(self) -> None:
        give_up = time.monotonic() + BUSY_TIMEOUT_SECONDS
        while True:
            try:
                return super().commit()
            except sqlite3.OperationalError as error:
                if code_of(error) != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                    raise


def _open(file: Path | None, patience_seconds: float) -> sqlite3.Connection:
    connected = partial(_connected, file, patience_seconds)
    return connected() if file is None else _in_utf8(in_our_mode(connected, file), file)


def _connected(file: Path | None, patience_seconds: float) -> sqlite3.Connection:
    """Open with ``mode=rw``: a missing file is an error; only ``creating`` makes one."""
    connection = sqlite3.connect(
        ":memory:" if file is None else f"file://{quote(str(file))}?mode=rw",
        uri=file is not None,
        timeout=patience_seconds,
        isolation_level=None,
        check_same_thread=False,
        factory=_PatientConnection,
    )
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _in_utf8(connection: sqlite3.Connection, file: Path) -> sqlite3.Connection:
    """Require UTF-8: in UTF-16, ids would be sorted in another order."""
    try:
        (encoding,) = connection.execute("PRAGMA encoding").fetchone()
        if encoding != "UTF-8":
            raise DatabaseError(f"{file} is encoded in {encoding}, and Flowtrail needs UTF-8: name another file.")
    except BaseException:
        connection.close()
        raise
    return connection


def code_of(error: BaseException | None) -> int:
    """The primary result code of SQLite."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
