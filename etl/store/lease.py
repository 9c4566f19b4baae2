"""What the service keeps for itself: the lease that says which replica is active, and its checks of the trail.

Correctness never depends on the lease.

| it ends, by the database's clock | is | because |
|---|---|---|
| before now | free | its holder has not renewed it |
| from now on, at most ``LASTS`` later | held | |
| later than that | free | nobody can have taken it now: the clock was ahead then, and has gone back |
"""

from __future__ import annotations

import datetime as dt
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, not_, or_, select, update

from etl.schema import lease, verification
from etl.store.bulk import insert_into
from etl.store.runs import database_now

LASTS: Final = dt.timedelta(seconds=20)
"""How long a lease is held after it was taken or renewed."""


def take_lease(connection: Connection, name: str, holder: str) -> bool:
    """Take or renew a lease; False while it is held by another.

    The clock is read once the row is locked: by an earlier reading, a lease taken meanwhile would seem to lie ahead.
    So a row that does not exist is made first, and a row that another has made meanwhile is locked like any other.
    """
    first = insert_into(connection, lease).values(name=name, holder=holder, expires_at=_now(connection) + LASTS)
    if connection.execute(first.on_conflict_do_nothing().returning(lease.c.name)).first() is not None:
        return True
    connection.execute(select(lease.c.name).where(lease.c.name == name).with_for_update())
    now = _now(connection)
    mine_or_free = or_(lease.c.holder == holder, not_(_held(now)))
    renewed = update(lease).where(lease.c.name == name, mine_or_free).values(holder=holder, expires_at=now + LASTS)
    return connection.execute(renewed).rowcount == 1


def release_lease(connection: Connection, name: str, holder: str) -> None:
    """Give a lease back, if it is still the holder's."""
    connection.execute(delete(lease).where(lease.c.name == name, lease.c.holder == holder))


def lease_holder(connection: Connection, name: str) -> str | None:
    """Who holds a lease now; None when nobody does."""
    held = select(lease.c.holder).where(lease.c.name == name, _held(_now(connection)))
    return connection.execute(held).scalar_one_or_none()


def _now(connection: Connection) -> dt.datetime:
    return connection.execute(select(database_now(connection))).scalar_one()


def _held(now: dt.datetime) -> ColumnElement[bool]:
    return lease.c.expires_at.between(now, now + LASTS)


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


def verified(connection: Connection) -> list[Verified]:
    """The last check of each kind."""
    return [Verified(*row) for row in connection.execute(select(*_COLUMNS))]


def keep_verified(connection: Connection, done: Verified) -> None:
    """Store a check in place of the last one of its kind."""
    values = done._asdict()
    row = insert_into(connection, verification).values(values)
    connection.execute(row.on_conflict_do_update(index_elements=["kind"], set_=values))
