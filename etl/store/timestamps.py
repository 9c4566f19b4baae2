"""Time stamps of seals: which seal is the last, when one was stamped, and the authority's token."""

from __future__ import annotations

import datetime as dt
from typing import Final, NamedTuple

from sqlalchemy import Connection, select

from etl.domain.seal import signed_bytes
from etl.schema import run_seal, seal_timestamp, trail
from etl.store.bulk import insert_new


class LastSeal(NamedTuple):
    """The last seal, and when a seal was last stamped."""

    seal_id: int
    message: bytes
    """The bytes that are stamped."""
    stamped_seal: int | None
    stamped_at: dt.datetime | None
    """By the authority's clock."""


_LAST: Final = (
    select(run_seal.c.id, run_seal.c.seal, trail.c.trail_id)
    .join_from(run_seal, trail, trail.c.first_seal <= run_seal.c.id)
    .order_by(run_seal.c.id.desc(), trail.c.id.desc())
    .limit(1)
)
_STAMPED: Final = (
    select(seal_timestamp.c.seal_id, seal_timestamp.c.stamped_at).order_by(seal_timestamp.c.seal_id.desc()).limit(1)
)


def last_seal(connection: Connection) -> LastSeal | None:
    """The last seal; None if no run has ended yet."""
    last = connection.execute(_LAST).first()
    if last is None:
        return None
    stamped = connection.execute(_STAMPED).first()
    message = signed_bytes(last.trail_id, last.id, last.seal)
    return LastSeal(last.id, message, *(stamped if stamped is not None else (None, None)))


def keep(connection: Connection, seal_id: int, stamped_at: dt.datetime, token: bytes) -> bool:
    """Store a stamp; False if another process was faster."""
    row = {"seal_id": seal_id, "stamped_at": stamped_at, "token": token}
    insert_new(connection, seal_timestamp, [row])
    return is_kept(connection, seal_id, token)


def is_kept(connection: Connection, seal_id: int, token: bytes) -> bool:
    """Whether this stamp is the stored one."""
    mine = select(seal_timestamp.c.token).where(seal_timestamp.c.seal_id == seal_id)
    found: bytes | None = connection.execute(mine).scalar()
    return found is not None and bytes(found) == token
