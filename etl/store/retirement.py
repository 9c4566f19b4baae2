"""Targets that are no longer configured: their history stays, and no workflow is recorded as removed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Container, Sequence

import msgspec
from sqlalchemy import Connection, select

from etl.database import STREAMED
from etl.domain.guard import share_of
from etl.domain.model import Target
from etl.schema import TARGET_KEY, target
from etl.store import membership, seals


class Retirement(msgspec.Struct, frozen=True):
    """The targets that were retired, or that were not because they would have been too many at once."""

    retired: tuple[Target, ...] = ()
    refused: tuple[Target, ...] = ()


def others(connection: Connection, configured: Container[Target], max_share: float | None) -> Retirement:
    """The targets outside ``configured``, to be retired unless they exceed ``max_share`` of all (None: no limit)."""
    known = select(*TARGET_KEY).where(target.c.retired_at.is_(None))
    gone, count = list[Target](), 0
    with connection.execute(known.order_by(target.c.id), execution_options=STREAMED) as rows:
        for key in rows:
            count += 1
            if (each := Target(*key)) not in configured:
                gone.append(each)
    if max_share is not None and len(gone) > share_of(max_share, count):
        return Retirement(refused=tuple(gone))
    return Retirement(retired=tuple(gone))


def retire(connection: Connection, run_id: int, targets: Sequence[Target], now: dt.datetime) -> None:
    """Retire ``targets`` in the name of a run. Raises RunClosed."""
    seals.require_open(connection, run_id)
    membership.retire(connection, run_id, targets, now)
