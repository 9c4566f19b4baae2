"""The journal mode of an SQLite file, and which processes have locks on it or prevent a change."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from etl.printable import printable

WAL_IS_SAFE_FROM: Final = (3, 51, 3)
"""Older SQLite libraries can lose a committed transaction in WAL mode (sqlite.org/wal.html#walresetbug)."""
PATIENCE_SECONDS: Final = 1.0
"""How long another process may keep the file open in the wrong mode: it may be one that is just starting."""


class KeptOpen(sqlite3.OperationalError):
    """Another process has the file open in the wrong journal mode; the message names it, and the remedy."""


def in_our_mode(connect: Callable[[], sqlite3.Connection], file: Path) -> sqlite3.Connection:
    """A connection made by ``connect`` to ``file``, which is in the right journal mode from now on.

    The mode can only be changed while no other process has the file open, so two processes that both want to change it
    must let go in turn. Raises KeptOpen if one does not.
    """
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        connection = connect()
        try:
            if _is_changed(connection):
                return connection
            who = holders(file)
        except sqlite3.Error:
            connection.close()
            raise
        connection.close()
        if time.monotonic() > give_up:
            raise KeptOpen(_sentence(who))
        time.sleep(random.uniform(0.01, 0.1))


def _wanted() -> str:
    return "wal" if sqlite3.sqlite_version_info >= WAL_IS_SAFE_FROM else "delete"


def _is_changed(connection: sqlite3.Connection) -> bool:
    """Whether the file is in the right mode (or read-only, and used as it is); False: it is kept open."""
    wanted = (_wanted(),)
    if connection.execute("PRAGMA journal_mode").fetchone() == wanted:
        return True
    (patience_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        return bool(connection.execute(f"PRAGMA journal_mode = {wanted[0]}").fetchone() == wanted)
    except sqlite3.OperationalError as error:
        code = error.sqlite_errorcode & 0xFF
        if code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY):
            raise
        return code == sqlite3.SQLITE_READONLY
    finally:
        connection.execute(f"PRAGMA busy_timeout = {patience_ms}")


def _sentence(who: str) -> str:
    if _wanted() == "delete":
        why = f"is in WAL mode, which is not safe with SQLite {sqlite3.sqlite_version}, and cannot be taken out of it"
    else:
        why = "cannot be put into WAL mode"
    return f"{why} while {who} has it open: close it there, and try again"


_LOCKS: Final = Path("/proc/locks")
"""On Linux, one lock per line: number, kind, mode, access, process, major:minor:inode, first and last byte."""
_PENDING_BYTE: Final = str(2**30)
"""Of an SQLite file: who has locked it lets nobody begin to read, and waits for those who do."""
_MOST: Final = 3


def holders(file: Path) -> str:
    """The processes that hold a lock on ``file`` or its shared memory, such as "sqlite3 (process 1152)".

    "another process" if the system does not say. This process is left out.
    """
    named = [f"{_name(pid)} (process {pid})" for pid in sorted(set(_processes(file)) - {os.getpid()})]
    more = ["others"] if len(named) > _MOST else []
    return " and ".join(named[:_MOST] + more) or "another process"


def has_waiting_writer(file: Path) -> bool:
    """Whether a transaction waits until all that read ``file`` are done, as without WAL each one does to commit.

    No process can ask SQLite whether another waits for it. Where the system does not say, nobody seems to wait.
    """
    return any(words[3] == "WRITE" and words[6] == _PENDING_BYTE for words in _locks(file))


def _processes(file: Path) -> Iterator[int]:
    return (int(words[4]) for words in _locks(file) if int(words[4]) > 0)


def _locks(file: Path) -> Iterator[list[str]]:
    """The lines of /proc/locks about ``file``, in words."""
    inodes = set(_inodes(file))
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _LOCKS.read_text().splitlines():
            words = line.replace("->", " ").split()
            if words[5].rpartition(":")[2] in inodes:
                yield words


def _inodes(file: Path) -> Iterator[str]:
    for each in (file, file.with_name(file.name + "-shm")):
        with contextlib.suppress(OSError):
            yield str(each.stat().st_ino)


def _name(pid: int) -> str:
    try:
        return printable(Path(f"/proc/{pid}/comm").read_text().strip())
    except (OSError, UnicodeDecodeError):
        return "a program"
