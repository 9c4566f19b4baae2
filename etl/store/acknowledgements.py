"""Who agreed to what happened in an organisation: written under the lock on the trail's head, so that the seal of a run
covers all that was acknowledged since the seal before, and a quiet run need not look for any.

| an acknowledgement | is |
|---|---|
| numbered | from 1, without gaps, in the order in which they are committed |
| timed | by the database's clock, after the last seal, and never before an earlier one |
| revoked | by another one, once; that covers nothing itself |
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Final

import msgspec
from sqlalchemy import Connection, bindparam, exists, func, insert, select, update

from etl.errors import UsageError
from etl.schema import acknowledgement, trail
from etl.store import seals
from etl.store.runs import database_now

_MOMENT: Final = dt.timedelta(microseconds=1)


class NewAcknowledgement(msgspec.Struct, frozen=True, kw_only=True):
    """What a person agreed to, and why. It covers each event of the workflow, user and kind (None: any) whose
    ``observed_at`` is after ``after`` and whose ``last_unchanged_at`` is before ``until`` (None: whenever)."""

    made_by: str
    org_id: str
    flow_id: str | None = None
    user_id: str | None = None
    kind: str | None = None
    after: dt.datetime | None = None
    until: dt.datetime | None = None
    ticket: str | None = None
    note: str | None = None


class Acknowledged(msgspec.Struct, frozen=True):
    """The numbers that acknowledgements got, and their time."""

    first: int
    last: int
    at: dt.datetime


_LAST: Final = select(func.coalesce(func.max(acknowledgement.c.id), 0))
_NUMBER: Final = bindparam("number", type_=acknowledgement.c.id.type)
_REVOKED: Final = exists().where(acknowledgement.c.revokes == _NUMBER)
_KNOWN: Final = select(acknowledgement.c.org_id, acknowledgement.c.revokes, _REVOKED.label("is_revoked")).where(
    acknowledgement.c.id == _NUMBER
)


def acknowledge(connection: Connection, new: Sequence[NewAcknowledgement], now: dt.datetime) -> Acknowledged:
    """Append these, all or none."""
    return _append(connection, [msgspec.structs.asdict(each) for each in new], now)


def revoke(connection: Connection, number: int, by: str, note: str | None, now: dt.datetime) -> Acknowledged:
    """Append that ``number`` counts no longer. Raises UsageError where it does not count now."""
    seals.locked_head(connection, now)
    known = connection.execute(_KNOWN, {"number": number}).first()
    if known is None:
        raise UsageError(f"There is no acknowledgement {number}: `flowtrail ack list` lists them.")
    if known.revokes is not None:
        raise UsageError(f"{number} revokes {known.revokes}, and stays: acknowledge it again instead.")
    if known.is_revoked:
        raise UsageError(f"Acknowledgement {number} is revoked already.")
    return _append(connection, [{"made_by": by, "note": note, "org_id": known.org_id, "revokes": number}], now)


def _append(connection: Connection, rows: Sequence[dict[str, object]], now: dt.datetime) -> Acknowledged:
    head = seals.locked_head(connection, now)
    last = connection.execute(_LAST).scalar_one()
    clock = connection.execute(select(database_now(connection))).scalar_one()
    at = max(clock, *(before + _MOMENT for before in (head.sealed_at, head.acknowledged_at) if before is not None))
    numbered = [{**row, "id": number, "made_at": at} for number, row in enumerate(rows, last + 1)]
    connection.execute(insert(acknowledgement), numbered)
    connection.execute(update(trail).where(trail.c.id == head.id).values(acknowledged_at=at))
    return Acknowledged(last + 1, last + len(rows), at)


def were_acknowledged(connection: Connection, made: Acknowledged) -> bool:
    """Whether they are there, where the answer to the COMMIT was lost."""
    mine = acknowledgement.c.id.between(made.first, made.last), acknowledgement.c.made_at == made.at
    return connection.execute(select(func.count()).where(*mine)).scalar_one() == made.last - made.first + 1
