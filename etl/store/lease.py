"""The lease that says which replica is active, by the database's clock. Correctness never depends on it."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import Connection, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from etl.schema import lease
from etl.store.runs import database_now


def take(connection: Connection, name: str, holder: str, lasting: dt.timedelta) -> bool:
    """Take or renew a lease; False while another holder's has not expired."""
    now = connection.execute(select(database_now(connection))).scalar_one()
    free = or_(lease.c.holder == holder, lease.c.expires_at < now)
    renewed = update(lease).where(lease.c.name == name, free).values(holder=holder, expires_at=now + lasting)
    if connection.execute(renewed).rowcount:
        return True
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    first = dialect.insert(lease).values(name=name, holder=holder, expires_at=now + lasting)
    taken = connection.execute(first.on_conflict_do_nothing().returning(lease.c.name))
    return taken.first() is not None


def release(connection: Connection, name: str, holder: str) -> None:
    """Give a lease back, if it is still the holder's."""
    connection.execute(delete(lease).where(lease.c.name == name, lease.c.holder == holder))


def holder_of(connection: Connection, name: str) -> str | None:
    """Who holds a lease now; None when nobody does."""
    held = select(lease.c.holder).where(lease.c.name == name, lease.c.expires_at >= database_now(connection))
    return connection.execute(held).scalar_one_or_none()
