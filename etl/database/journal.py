"""The journal mode of an SQLite file, and which process prevents a change."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from etl.database.holders import holders

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
