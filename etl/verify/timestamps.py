"""Checks the time stamps of seals: each is for its seal, has the time in its row, and, if the caller trusts some
authorities, is by one of them."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator
from typing import Any, Final, Protocol

from sqlalchemy import Engine, Row, bindparam, select

from etl.database import reading
from etl.domain.seal import signed_bytes
from etl.errors import SigningError
from etl.schema import run_seal, seal_timestamp, trail
from etl.verify.finding import Broken, Finding, Verbatim
from etl.verify.rows import BEFORE_ALL, any_time
from etl.verify.sealing import Sealing

_AT_ONCE: Final = 500
_STAMPS: Final = (
    select(seal_timestamp, run_seal.c.run_id, run_seal.c.seal)
    .outerjoin(run_seal, run_seal.c.id == seal_timestamp.c.seal_id)
    .where(seal_timestamp.c.seal_id > bindparam("after"))
    .order_by(seal_timestamp.c.seal_id)
    .limit(_AT_ONCE)
)
_TRAILS: Final = select(trail.c.trail_id, trail.c.first_seal).order_by(trail.c.id)


class Authorities(Protocol):
    """Checks whether a token over some bytes is by a trusted authority."""

    def time_of(self, token: bytes, message: bytes) -> dt.datetime:
        """When the token was made. Raises SigningError if it is not by one of them."""


def timestamps(
    engine: Engine, *, since: int = 0, sealing: Sealing | None = None, authorities: Authorities | None = None
) -> Iterator[Finding]:
    """What is wrong with the time stamps of the seals after number ``since``. Raises DatabaseError.

    Without ``authorities``, only the seal and the time of a token are checked, not who made it.
    """
    sealing = sealing if sealing is not None else Sealing()
    after, more = since or BEFORE_ALL, True
    while more:
        with reading(engine) as connection, any_time(connection):
            rows = connection.execute(_STAMPS, {"after": after}).all()
            trails = connection.execute(_TRAILS).all()
        more = len(rows) == _AT_ONCE
        for row in rows:
            after = row.seal_id
            trail_ids = [trail_id for trail_id, first_seal in trails if first_seal <= row.seal_id]
            try:
                _require(row, trail_ids[-1] if trail_ids else "", authorities)
            except Broken as broken:
                yield broken.of_run(row.run_id, row.seal_id)
            sealing.stamped += 1
            sealing.last_stamp = (row.seal_id, row.stamped_at)


def _require(row: Row[Any], trail_id: str, authorities: Authorities | None) -> None:
    place = f"seal_timestamp {row.seal_id}"
    if row.seal is None:
        raise Broken(f"{place}.seal_id", Verbatim("a seal"), Verbatim(f"{row.seal_id}, which is not there"))
    message, token = signed_bytes(trail_id, row.seal_id, row.seal), bytes(row.token)
    if hashlib.sha256(message).digest() not in token:
        raise Broken(f"{place}.token", Verbatim(f"a time stamp of '{row.seal}'"), Verbatim("of something else"))
    if authorities is None:
        if f"{row.stamped_at.astimezone(dt.UTC):%Y%m%d%H%M%S}".encode() not in token:
            raise Broken(f"{place}.stamped_at", Verbatim("the time in its token"), row.stamped_at)
        return
    try:
        stamped_at = authorities.time_of(token, message)
    except SigningError as error:
        raise Broken(f"{place}.token", Verbatim("of an authority that is trusted"), Verbatim(f"not: {error}")) from None
    if stamped_at != row.stamped_at:
        raise Broken(f"{place}.stamped_at", stamped_at, row.stamped_at)
