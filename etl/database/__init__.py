"""Connections, transactions and migrations: SQLite and PostgreSQL behave alike from here on.

    engine = connect("sqlite:///flowtrail.db")
    with writing(engine) as connection: ...   # committed at the end, rolled back on any exception
    with reading(engine) as connection: ...   # one consistent snapshot, read only

Driver errors that leave these blocks are a DatabaseError, in one sentence without password or bound values.
"""

from __future__ import annotations

from etl.database.damage import (
    Damage,
    damage_of,
    damage_sentence,
    note_damage,
    note_notified,
    note_whole,
    require_sound,
)
from etl.database.engine import connect, describe, file_of, is_secret
from etl.database.errors import translated
from etl.database.grants import grants
from etl.database.integrity import LIMIT_SECONDS, WHOLE, Integrity, Misspelled, integrity, misspelled_times
from etl.database.migrate import check, current, expected, is_empty_sqlite, require_current, upgrade
from etl.database.transactions import STREAMED, any_time, creating, reading, writing

__all__ = [
    "LIMIT_SECONDS",
    "STREAMED",
    "WHOLE",
    "Damage",
    "Integrity",
    "Misspelled",
    "any_time",
    "check",
    "connect",
    "creating",
    "current",
    "damage_of",
    "damage_sentence",
    "describe",
    "expected",
    "file_of",
    "grants",
    "integrity",
    "is_empty_sqlite",
    "is_secret",
    "misspelled_times",
    "note_damage",
    "note_notified",
    "note_whole",
    "reading",
    "require_current",
    "require_sound",
    "translated",
    "upgrade",
    "writing",
]
