"""Targets that are configured no longer: their history stays, and nothing of theirs is called removed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Container
from typing import Final

import msgspec
from sqlalchemy import Connection, bindparam, select, update

from etl.domain.guard import share_of
from etl.domain.model import Target
from etl.schema import target

_STREAMED: Final = {"stream_results": True, "yield_per": 2000}


class Retirement(msgspec.Struct, frozen=True):
    """What was retired, or what was not since it would have been too much at once."""

    retired: tuple[Target, ...] = ()
    refused: tuple[Target, ...] = ()


def retire_others(
    connection: Connection, configured: Container[Target], now: dt.datetime, max_share: float | None
) -> Retirement:
    """Give ``retired_at`` to every target outside ``configured``; to none if they exceed ``max_share`` (None: 1)."""
    columns = (target.c.id, target.c.org_id, target.c.user_id, target.c.expression)
    known = select(*columns).where(target.c.retired_at.is_(None)).order_by(target.c.id)
    gone, count = {}, 0
    with connection.execute(known, execution_options=_STREAMED) as rows:
        for target_id, *key in rows:
            count += 1
            if (each := Target(*key)) not in configured:
                gone[target_id] = each
    if max_share is not None and len(gone) > share_of(max_share, count):
        return Retirement(refused=tuple(gone.values()))
    if gone:
        retire = update(target).where(target.c.id == bindparam("target_id")).values(retired_at=now)
        connection.execute(retire, [{"target_id": target_id} for target_id in gone])
    return Retirement(retired=tuple(gone.values()))
