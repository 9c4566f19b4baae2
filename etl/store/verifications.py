"""When the service last checked the trail, and what it found."""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from etl.schema import verification


class Verified(NamedTuple):
    """A check that came to its end.

    ``kind``: "trail", from the last verified seal on, or "full": everything, and every page of an SQLite file.
    """

    kind: str
    began_at: dt.datetime
    ended_at: dt.datetime
    targets: int
    change_sets: int
    last_seal: int
    """The number of the last seal that it read; 0 where there was none."""
    findings: int
    finding: str
    """The first finding."""


_COLUMNS = tuple(verification.c[name] for name in Verified._fields)


def latest(connection: Connection) -> list[Verified]:
    """The last check of each kind."""
    return [Verified(*row) for row in connection.execute(select(*_COLUMNS))]


def keep(connection: Connection, done: Verified) -> None:
    """Store a check in place of the last one of its kind."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    values = done._asdict()
    connection.execute(
        dialect.insert(verification).values(values).on_conflict_do_update(index_elements=["kind"], set_=values)
    )
