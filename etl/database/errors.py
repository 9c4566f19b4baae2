"""Turns a driver's error into one sentence: the place and the remedy, without passwords or bound values."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlalchemy import URL, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from etl.database.damage import note_damage
from etl.database.engine import code_of, describe, file_of, secrets_of
from etl.database.journal import KeptOpen, holders
from etl.errors import DatabaseDamaged, DatabaseError, DatabaseUnreachable, SchemaMismatch
from etl.printable import printable
from etl.schema import UnreadableTime
from etl.system import descriptors
from etl.system.disk import refusal

NO_TEXT: Final = "bytes that are no text"


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    try:
        yield
    except (DBAPIError, engine.dialect.loaded_dbapi.Error) as error:
        cause = getattr(error, "orig", error)  # there is none if the statement bypassed SQLAlchemy
        first = getattr(cause, "__context__", None)  # what was rolled back, if that failed, too: it says more
        is_driver_s = isinstance(first, DBAPIError | engine.dialect.loaded_dbapi.Error)
        raise _explained(getattr(first, "orig", first) if is_driver_s else cause, engine) from error
    except UnreadableTime as error:
        note_damage(engine, str(error))
        raise DatabaseDamaged(
            f"The database {describe(engine.url)} is damaged: {printable(str(error))}. `flowtrail verify` names its "
            "row; restore a backup, then run `flowtrail db check`."
        ) from error
    except UnicodeDecodeError as error:  # bytes that are not text, which the drivers' own messages quote
        note_damage(engine, NO_TEXT)
        raise _unreadable(engine) from error
    except (UnicodeEncodeError, OverflowError) as error:  # from a driver, before the database has seen the value
        what = "text that is not Unicode" if isinstance(error, UnicodeEncodeError) else "a number that is too large"
        raise DatabaseError(f"The database {describe(engine.url)} cannot take {what}.") from error
    except PoolTimeout as error:
        raise DatabaseUnreachable(
            f"No connection to {describe(engine.url)} became free: there are more threads than connections."
        ) from error


def _explained(error: BaseException | None, engine: Engine) -> DatabaseError:
    explained = explain(error, engine)
    if isinstance(explained, DatabaseDamaged):
        note_damage(engine, NO_TEXT if is_no_text(error) else str(error))
    return explained


def is_no_text(error: BaseException | None) -> bool:
    """Whether a value was read whose bytes are not text. The driver, not SQLite, reports it, and quotes them."""
    return isinstance(error, UnicodeDecodeError) or str(error).startswith("Could not decode to UTF-8")


def _unreadable(engine: Engine) -> DatabaseError:
    if engine.dialect.name == "sqlite":
        return _explain_sqlite(sqlite3.SQLITE_CORRUPT, "", engine.url)
    return DatabaseDamaged(f"The database {describe(engine.url)} is damaged: it has text that is not UTF-8.")


def explain(error: BaseException | None, engine: Engine) -> DatabaseError:
    """The sentence for a driver's error."""
    if isinstance(error, KeptOpen):
        return DatabaseUnreachable(f"The database {describe(engine.url)} {error}.")
    if isinstance(error, sqlite3.Error):
        code = sqlite3.SQLITE_CORRUPT if is_no_text(error) else code_of(error)
        return _explain_sqlite(code, str(error), engine.url)
    driver = engine.dialect.loaded_dbapi
    state = getattr(error, "sqlstate", None)
    if state is None and isinstance(error, driver.OperationalError | driver.InterfaceError):
        state = _NO_CONNECTION
    return _known_as(state, _explain_postgresql(state, _message(error, state, engine.url), engine.url))


def _message(error: BaseException | None, state: str | None, url: URL) -> str:
    if state is not None and state.startswith("22"):
        return type(error).__name__  # the message of a data exception repeats the value
    message = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
    return _without_secrets(message, url)


def _without_secrets(message: str, url: URL) -> str:
    text = " ".join(message.split()).removeprefix("connection failed: ").rstrip(".")
    secrets = set(secrets_of(url))
    for secret in sorted(secrets | {quote(secret, safe="") for secret in secrets}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


_SQLITE: Final[dict[int, tuple[type[DatabaseError], str]]] = {
    sqlite3.SQLITE_BUSY: (DatabaseUnreachable, "is locked by {who}: try again when that is done"),
    sqlite3.SQLITE_FULL: (
        DatabaseError,
        "cannot grow, the disk is full: free some space, there or where temporary files are (TMPDIR)",
    ),
    sqlite3.SQLITE_IOERR: (DatabaseError, "cannot be read or written: look at the disk and at the space left"),
    sqlite3.SQLITE_READONLY: (DatabaseError, "is read-only for this user: grant write permission"),
    sqlite3.SQLITE_NOTADB: (DatabaseError, "is not a SQLite database and was left unchanged: name another file"),
    sqlite3.SQLITE_CORRUPT: (
        DatabaseDamaged,
        "is damaged and was left unchanged: restore a backup, then run `flowtrail db check`",
    ),
}


def _explain_sqlite(code: int, message: str, url: URL) -> DatabaseError:
    file = file_of(url)
    if code == sqlite3.SQLITE_CANTOPEN and file is not None:
        return cannot_open(describe(url), message, file)
    if message.startswith(("no such table", "no such column", "no such view")):
        return SchemaMismatch(f"{describe(url)} lacks a part of the schema ({message}): see `flowtrail db check`.")
    if code == sqlite3.SQLITE_READONLY and file is not None and os.access(file, os.W_OK):
        refused = refusal(file.parent)
        if refused is not None:
            return _cannot_write_beside(describe(url), file.parent, refused)
    kind, what = _SQLITE.get(code, (DatabaseError, f"refused: {message}"))
    who = holders(file) if file is not None and code == sqlite3.SQLITE_BUSY else ""
    return _known_as(code, kind(f"The database {describe(url)} {what.format(who=who) if who else what}."))


_CONDITIONS: Final[dict[int | str | None, str]] = {
    sqlite3.SQLITE_FULL: "database_full",
    "53100": "database_full",
    sqlite3.SQLITE_READONLY: "database_read_only",
    "25006": "database_read_only",
}


def _known_as(code: int | str | None, error: DatabaseError) -> DatabaseError:
    error.condition = _CONDITIONS.get(code, error.condition)
    return error


def cannot_open(name: str, message: str, file: Path) -> DatabaseError:
    if descriptors.none_left():
        return DatabaseUnreachable(
            f"{name} cannot be opened: no file descriptor is left, raise the limit (`ulimit -n`)."
        )
    if file.is_dir():
        return DatabaseError(f"{name} is a directory: name a file in it.")
    if not file.parent.is_dir():
        return DatabaseError(f"{name} cannot be opened: create the directory {file.parent} first.")
    if not file.exists() and os.access(file.parent, os.W_OK | os.X_OK):
        return SchemaMismatch(f"{name} does not exist: `flowtrail db upgrade` creates it.")
    refused = refusal(file.parent) if file.exists() else None
    if refused is not None:
        return _cannot_write_beside(name, file.parent, refused)
    return DatabaseError(f"{name} cannot be opened ({message}): give this user the permission.")


def _cannot_write_beside(name: str, folder: Path, refused: OSError) -> DatabaseError:
    """SQLite says that it cannot open a file if it cannot create the journal next to it."""
    condition, why = _REFUSED_FILES.get(refused.errno or 0, _NOT_ALLOWED)
    error = DatabaseError(f"{name} cannot be written: " + why.format(folder=folder, message=refused.strerror))
    error.condition = condition
    return error


_NOT_ALLOWED: Final = (
    "database_read_only",
    "this user can make no file in {folder} ({message}): give the user that permission.",
)
_REFUSED_FILES: Final = {
    errno.EROFS: ("database_read_only", "the disk of {folder} may only be read: make it writable again."),
    errno.ENOSPC: ("database_full", "the disk of {folder} is full: free some space."),
}


_NO_CONNECTION: Final = "08000"
"""Stands for errors without a connection, for which libpq gives no SQLSTATE."""
_DAMAGED: Final = {"XX001", "XX002"}
_BUSY: Final = {"40001", "40P01", "55P03", "57014"}
_LACKING: Final = {"42P01", "42703", "3F000"}
_AWAY: Final = {"08", "28", "3D", "53", "57"}
_TIMED_OUT: Final = {"25P03", "25P04"}
"""The server ended a session whose transaction took too long."""
_TAKEN: Final = {"42P07", "42710", "42723"}
"""A table, a trigger or a function of the same name exists."""
_REFUSED_PARAMETER: Final = "unsupported startup parameter"


def _explain_postgresql(state: str | None, message: str, url: URL) -> DatabaseError:
    name = describe(url)
    if state in _BUSY:
        return DatabaseUnreachable(f"The database {name} was busy with another transaction: {message}.")
    if _REFUSED_PARAMETER in message:
        return DatabaseError(
            f"The pooler before {name} refused: {message}. Leave `options` and the like out of the URL, and give "
            "defaults to the role instead: ALTER ROLE ... SET ..."
        )
    if state in _TAKEN:
        return DatabaseError(
            f"{name} has something else of the same name ({message}): give Flowtrail a schema of its own, "
            "the first in the search_path of its role."
        )
    if state is not None and (state[:2] in _AWAY or state in _TIMED_OUT):
        return DatabaseUnreachable(f"The database {name} cannot be reached: {message}.")
    if state in _DAMAGED:
        remedy = "REINDEX what it names" if state == "XX002" else "see what PostgreSQL logs, or restore a backup"
        return DatabaseDamaged(f"The database {name} is damaged: {message}: {remedy}.")
    if state in _LACKING:
        return SchemaMismatch(f"{name} lacks a part of the schema ({message}): see `flowtrail db check`.")
    return DatabaseError(f"The database {name} refused: {message}.")
