"""Connections, transactions and migrations: SQLite and PostgreSQL behave alike from here on.

    engine = connect("sqlite:///flowtrail.db")
    with writing(engine) as connection: ...   # committed at the end, rolled back on any exception
    with reading(engine) as connection: ...   # one consistent snapshot, read only

Driver errors that leave these blocks are a DatabaseError, in one sentence without password or bound values.
"""

from __future__ import annotations

from etl.database.engine import connect, describe
from etl.database.grants import grants
from etl.database.transactions import creating, reading, writing
from etl.database.upgrading import check, current, expected, require_current, upgrade

__all__ = [
    "check",
    "connect",
    "creating",
    "current",
    "describe",
    "expected",
    "grants",
    "reading",
    "require_current",
    "upgrade",
    "writing",
]
