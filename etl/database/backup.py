"""Copies the whole database into one file while the service runs; on PostgreSQL, the commands for that."""

from __future__ import annotations

import contextlib
import os
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine

from etl import database
from etl.errors import DatabaseError, FlowtrailError, UsageError
from etl.system.disk import beside, errors_named, part_file, sync, sync_folder

FIRST_PAGES: Final = 2_000
"""Pages read at once (8 MB), for some 20 ms in which no writer can commit."""
_MORE: Final = 4
"""Factor by which they grow after a writer came in between, because SQLite then begins again."""
_AT_ONCE: Final = 2_000_000
"""Above this number of pages (8 GB), all are read at once: a writer waits, but the copy ends."""
_SECURED: Final = ("ssl", "gss", "krb", "channel_binding", "require_auth")

Progress = Callable[[int, int], None]
"""Called with the pages copied and the pages in all."""


class Dump(NamedTuple):
    """The commands for PostgreSQL, ready for a shell; they hold no password."""

    backup: str
    restore: str
    """Restores into a new, empty database, whose name replaces NEW."""


def backup(engine: Engine, file: Path, *, force: bool = False, progress: Progress = lambda done, total: None) -> None:
    """Write the SQLite database as it is at one moment into ``file``, checked, for its owner only (0600).

    The file gets its name only when it is complete and on the disk. Writers are delayed for moments. Raises UsageError
    if the place cannot be used, FlowtrailError if the copy failed or is not sound, DatabaseError.
    """
    file = file.resolve()
    _refuse(engine, file, force=force)
    with errors_named(file), part_file(file) as part:
        _copy(engine, part, progress)
        _check(part, engine)
        _take_name(part, file, force=force)


@contextlib.contextmanager
def snapshot(engine: Engine) -> Iterator[Engine]:
    """The database as it is at one moment, for a block that reads for long; an SQLite file is copied next to itself.

    Without WAL, a long read of the file itself would keep every writer waiting, and make it fail after a minute.
    """
    file = database.file_of(engine.url) if engine.dialect.name == "sqlite" else None
    if file is None:
        yield engine
        return
    with errors_named(file), part_file(file) as part:
        _copy(engine, part, lambda done, total: None)
        copied = database.connect(f"sqlite:///{part}")
        try:
            yield copied
        finally:
            copied.dispose()


def dump_of(engine: Engine, file: Path) -> Dump:
    """What makes a backup of a PostgreSQL database, and what restores it."""
    where, schema = _place(engine)
    only = [f"--schema={schema}"] if schema not in ("public", None) else []
    named = f"--dbname={_named_database(engine)}"
    dump = ["pg_dump", *where, named, *only, "--format=custom", f"--file={file}"]
    back = ["pg_restore", *where, "--dbname=NEW", "--exit-on-error", "--single-transaction", "--no-owner", str(file)]
    make = ["createdb", *where, "--template=template0", "NEW"]
    return Dump(shlex.join(dump), f"{shlex.join(make)} && {shlex.join(back)}")


def _place(engine: Engine) -> tuple[list[str], str | None]:
    """Host, port and user as options of PostgreSQL's tools, and the schema of the tables."""
    with database.reading(engine) as connection:
        schema = connection.exec_driver_sql("SELECT current_schema()").scalar()
        driver: Any = connection.connection.driver_connection
        info = driver.info
        given = {"host": info.host, "port": info.port, "username": info.user}
        return [f"--{name}={value}" for name, value in given.items() if value], schema


def _named_database(engine: Engine) -> str:
    """The database's name, with the URL's parameters for encryption, for which the tools have no options. They ask for
    secrets."""
    from psycopg.conninfo import make_conninfo

    secured = {name: str(value) for name, value in engine.url.query.items() if _is_for_tools(name)}
    return make_conninfo(dbname=engine.url.database, **secured) if secured else str(engine.url.database)


def _is_for_tools(parameter: str) -> bool:
    """Whether the tools need this parameter. ``sslkey`` is the name of a file that they need to be let in."""
    return parameter.startswith(_SECURED) and (parameter == "sslkey" or not database.is_secret(parameter))


def _refuse(engine: Engine, file: Path, *, force: bool) -> None:
    own = database.file_of(engine.url)
    if own is not None and file.exists() and own.exists() and file.samefile(own):
        raise UsageError(f"{file} is the database itself: name another file.")
    if file.is_dir():
        raise UsageError(f"{file} is a folder: name a file in it.")
    if file.exists() and not force:
        raise UsageError(f"{file} already exists and was left unchanged: name another file, or add --force.")
    for other in beside(file):
        if other.exists():
            raise UsageError(f"{other} shows that {file} is or was a database in use: name another file.")


def _copy(engine: Engine, part: Path, progress: Progress) -> None:
    with database.translated(engine), engine.connect() as connection:
        source: Any = connection.connection.driver_connection
        copy = sqlite3.connect(part, isolation_level=None)
        try:
            if source.execute("PRAGMA journal_mode").fetchone() == ("wal",):
                _from_snapshot(source, copy, progress)
            else:
                _in_steps(source, copy, progress)
            copy.execute("PRAGMA journal_mode = delete")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise FlowtrailError(f"The disk of {part.parent} is full: no backup was made.") from error
            raise
        finally:
            copy.close()


def _from_snapshot(source: sqlite3.Connection, copy: sqlite3.Connection, progress: Progress) -> None:
    """With WAL a reader delays nobody, and what it reads stays as it was."""
    source.execute("BEGIN")
    try:
        source.execute("SELECT 1 FROM sqlite_master").fetchone()
        source.backup(copy, pages=FIRST_PAGES, progress=lambda _, left, total: progress(total - left, total))
    finally:
        source.execute("ROLLBACK")


class _Again(Exception):
    """A writer came in between two steps."""


def _in_steps(source: sqlite3.Connection, copy: sqlite3.Connection, progress: Progress) -> None:
    """A few pages at a time; more after each writer that made SQLite begin again, so that it ends."""
    pages = FIRST_PAGES
    while True:
        try:
            return source.backup(copy, pages=pages, progress=_watched(progress))
        except _Again:
            pages = pages * _MORE if pages * _MORE < _AT_ONCE else -1


def _watched(progress: Progress) -> Callable[[int, int, int], None]:
    reached = 0

    def step(status: int, left: int, total: int) -> None:
        nonlocal reached
        if status != sqlite3.SQLITE_OK:
            return  # it waits for a writer, or has come to the end
        if total - left <= reached:
            raise _Again
        reached = total - left
        progress(reached, total)

    return step


def _check(part: Path, original: Engine) -> None:
    """Raise unless the copy is intact and has the schema that this program knows."""
    engine = database.connect(f"sqlite:///{part}")
    try:
        found = database.integrity(engine, limit_seconds=0)
        if found.damage:
            database.integrity(original)  # what is not sound in the copy is not sound there: nobody may write to it
        differences = found.damage or tuple(database.check(engine))
    except DatabaseError as error:
        differences = (str(error),)
    finally:
        engine.dispose()
    if differences:
        raise FlowtrailError(
            f"No backup was made, because the copy is damaged: {'; '.join(differences)}. "
            f"Look at {database.describe(original.url)} with `flowtrail db check`."
        )
    with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copy:
        copy.execute("PRAGMA journal_mode = delete")


def _take_name(part: Path, file: Path, *, force: bool) -> None:
    """Sync to the disk, then rename; a file that has appeared meanwhile is left alone."""
    sync(part)
    if force:
        part.replace(file)
    else:
        try:
            os.link(part, file)
        except FileExistsError:
            raise UsageError(f"{file} already exists and was left unchanged: name another file.") from None
        except OSError:  # a file system without hard links
            part.rename(file)
    sync_folder(file.parent)
