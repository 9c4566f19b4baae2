"""Targets that are configured no longer: their history stays, and nothing of theirs is called removed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Set

import msgspec
from sqlalchemy import Connection, bindparam, select, update

from etl.guard import share_of
from etl.model import Target
from etl.schema import target


class Retirement(msgspec.Struct, frozen=True):
    """What was retired, or what was not since it would have been too much at once."""

    retired: tuple[Target, ...] = ()
    refused: tuple[Target, ...] = ()


def retire_others(
    connection: Connection, configured: Set[Target], now: dt.datetime, max_share: float | None
) -> Retirement:
    """Give ``retired_at`` to every target outside ``configured``; to none if they exceed ``max_share`` (None: 1)."""
    columns = (target.c.id, target.c.org_id, target.c.user_id, target.c.expression)
    rows = connection.execute(select(*columns).where(target.c.retired_at.is_(None)).order_by(target.c.id)).all()
    gone = {row.id: Target(row.org_id, row.user_id, row.expression) for row in rows}
    gone = {target_id: each for target_id, each in gone.items() if each not in configured}
    if max_share is not None and len(gone) > share_of(max_share, len(rows)):
        return Retirement(refused=tuple(gone.values()))
    if gone:
        retire = update(target).where(target.c.id == bindparam("target_id")).values(retired_at=now)
        connection.execute(retire, [{"target_id": target_id} for target_id in gone])
    return Retirement(retired=tuple(gone.values()))
