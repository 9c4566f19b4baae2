"""One finding of damage stops all writing, in every process, until `flowtrail db check` finds the database intact.

| damage | is kept | and ends |
|---|---|---|
| in an SQLite file | next to it, as ``NAME.damaged`` | when `db check` succeeds, or another file has its name |
| the same, in a folder that may only be read | in this process, which writes nothing there | with the process |
| that PostgreSQL reports (XX001, XX002) | in this process | after ``LOOK_AGAIN_SECONDS`` |

PostgreSQL looks after its files itself, and reports damage to everybody who reads it. Each writing transaction checks
here before it begins and again before it commits; for SQLite that is one check whether a file exists.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import secrets
import time
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import Engine

from etl.database.engine import describe, file_of, identity
from etl.errors import DatabaseDamaged, DatabaseError
from etl.printable import printable

SUFFIX: Final = ".damaged"
LOOK_AGAIN_SECONDS: Final = 600.0
_LONGEST: Final = 300
_UNFINISHED: Final = ".flowtrail-part"
"""The suffix of an incomplete copy (see `etl.system.disk`), which its maker removes."""
_REMEDY: Final = "nothing is written to it until `flowtrail db check` finds it intact. Restore a backup, and run that"
_REMEDY_FOR_POSTGRESQL: Final = (
    "this process writes nothing to it for ten minutes. Repair it with PostgreSQL's own tools, or restore a backup"
)


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, when, and in which file."""

    said: str
    found_at: dt.datetime
    file: tuple[int, int] | None = None
    """Device and inode of the file: another file of this name is not this one."""
    told_at: dt.datetime | None = None
    """When all receivers had been notified."""


_kept: Final[dict[str, tuple[Damage, float]]] = {}
"""Findings that only this process knows, by the database's name, and until when (monotonic)."""


def note_damage(engine: Engine, message: str) -> None:
    """Record damage, unless there is a finding already. Never raises: the caller has its own error to report."""
    file = _file(engine)
    if damage_of(engine) is not None or (file is not None and file.name.endswith(_UNFINISHED)):
        return
    finding = Damage(said=printable(message)[:_LONGEST], found_at=dt.datetime.now(dt.UTC), file=identity(file))
    if engine.dialect.name != "sqlite":
        _kept[describe(engine.url)] = finding, time.monotonic() + LOOK_AGAIN_SECONDS
    elif file is not None:
        try:
            _write(file, finding)
        except OSError:
            _kept[describe(engine.url)] = finding, float("inf")


def damage_of(engine: Engine) -> Damage | None:
    """The finding that stops writing to this database, if any."""
    file = _file(engine)
    kept, until = _kept.get(describe(engine.url), (None, 0.0))
    found = kept if time.monotonic() < until else None
    if file is not None:
        found = found or _read(_marker(file))
        if found is not None and found.file not in (None, identity(file)):
            return None
    return found


def require_sound(engine: Engine) -> None:
    """Raise DatabaseDamaged, with the remedy, if damage was found.

    Idle connections are closed, because their caches are of the damaged file.
    """
    found = damage_of(engine)
    if found is not None:
        engine.dispose()
        raise DatabaseDamaged(damage_sentence(engine, found))
    file = _file(engine)
    if file is not None and _marker(file).exists():
        _discard(_marker(file), file)


def damage_sentence(engine: Engine, found: Damage) -> str:
    """What is wrong, and the remedy."""
    when = f"{found.found_at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
    remedy = _REMEDY if engine.dialect.name == "sqlite" else _REMEDY_FOR_POSTGRESQL
    return f"The database {describe(engine.url)} is damaged, as was found at {when} ({found.said}): {remedy}."


def note_whole(engine: Engine) -> None:
    """Remove the finding, once everything has been checked. Raises DatabaseError if it cannot be removed."""
    _kept.pop(describe(engine.url), None)
    file = _file(engine)
    if file is None:
        return
    try:
        _marker(file).unlink(missing_ok=True)
    except OSError as error:
        raise DatabaseError(f"{_marker(file)} cannot be removed ({error.strerror}): remove it.") from error


def note_notified(engine: Engine, now: dt.datetime) -> None:
    """Record that all receivers were notified of the finding, so that no later process notifies them again."""
    found, file = damage_of(engine), _file(engine)
    if found is None:
        return
    notified = msgspec.structs.replace(found, told_at=now)
    name = describe(engine.url)
    if name in _kept:
        _kept[name] = notified, _kept[name][1]
    elif file is not None:
        with contextlib.suppress(OSError):
            _write(file, notified)


def _file(engine: Engine) -> Path | None:
    """The real path: SQLite also keeps a file's companions next to the target of a link."""
    file = file_of(engine.url) if engine.dialect.name == "sqlite" else None
    return None if file is None else Path(os.path.realpath(file))


def _marker(file: Path) -> Path:
    return file.with_name(file.name + SUFFIX)


def _read(marker: Path) -> Damage | None:
    """The finding in a marker; an unreadable marker counts too. Checking that there is none takes no file descriptor,
    so a process without free ones does not take its database for damaged."""
    try:
        marker.lstat()
        return msgspec.json.decode(marker.read_bytes(), type=Damage)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError):
        return Damage(said=f"{marker} cannot be read", found_at=dt.datetime.fromtimestamp(0, dt.UTC))


def _discard(marker: Path, file: Path) -> None:
    """Remove a marker that is of another file, but not one that was just written for this file."""
    aside = marker.with_name(f".{marker.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    with contextlib.suppress(OSError):
        marker.rename(aside)
        found = _read(aside)
        if found is not None and found.file in (None, identity(file)):
            aside.rename(marker)
        else:
            aside.unlink()


def _write(file: Path, finding: Damage) -> None:
    """Write the marker, completely or not at all, readable for everybody who may read the database."""
    marker = _marker(file)
    part = marker.with_name(f".{marker.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    about = file.stat()
    try:
        with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as output:
            output.write(msgspec.json.format(msgspec.json.encode(finding)) + b"\n")
            output.flush()
            os.fsync(output.fileno())
        part.chmod(about.st_mode & 0o666)
        with contextlib.suppress(OSError):
            os.chown(part, about.st_uid, about.st_gid)
        part.replace(marker)
    finally:
        part.unlink(missing_ok=True)
