"""What receivers have been told: ``sync_run.notified_at``, and ``overdue_notice`` for overdue targets."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from etl.domain.model import Origin, RunStatus, Target
from etl.schema import TARGET_KEY, overdue_notice, sync_run, target


class UnnotifiedRun(NamedTuple):
    """A run that has ended without all receivers being known to have heard of it."""

    id: int
    schedule: str | None
    origin: Origin
    status: RunStatus
    started_at: dt.datetime
    finished_at: dt.datetime


class NotifiableTarget(NamedTuple):
    """A target with its id, and since when receivers know that it is overdue (None: they do not)."""

    id: int
    target: Target
    notified_at: dt.datetime | None


def unnotified_runs(connection: Connection, since: dt.datetime) -> list[UnnotifiedRun]:
    """The runs that finished ``since`` then, in that order, whatever the order of their ids."""
    columns = [sync_run.c[name] for name in UnnotifiedRun._fields]
    untold = (sync_run.c.notified_at.is_(None), sync_run.c.finished_at >= since)
    found = select(*columns).where(*untold).order_by(sync_run.c.finished_at, sync_run.c.id)
    return [UnnotifiedRun(*row) for row in connection.execute(found)]


def mark_notified(connection: Connection, run_id: int, now: dt.datetime) -> bool:
    """Record that every receiver was told of the run; False if another process has done so."""
    mine = update(sync_run).where(sync_run.c.id == run_id, sync_run.c.notified_at.is_(None))
    return connection.execute(mine.values(notified_at=now)).rowcount == 1


def known_targets(connection: Connection) -> list[NotifiableTarget]:
    """Every target that is not retired, and retired ones that receivers know to be overdue."""
    listed = (
        select(target.c.id, *TARGET_KEY, overdue_notice.c.notified_at)
        .join_from(target, overdue_notice, overdue_notice.c.target_id == target.c.id, isouter=True)
        .where(target.c.retired_at.is_(None) | overdue_notice.c.notified_at.is_not(None))
    )
    return [NotifiableTarget(id_, Target(*named), at) for id_, *named, at in connection.execute(listed)]


def mark_overdue(connection: Connection, target_ids: Sequence[int], now: dt.datetime) -> None:
    """Record that receivers know these targets to be overdue."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    rows = [{"target_id": target_id, "notified_at": now} for target_id in sorted(target_ids)]
    connection.execute(dialect.insert(overdue_notice).on_conflict_do_nothing(), rows)


def clear_overdue(connection: Connection, target_ids: Sequence[int]) -> None:
    """Record that these targets are no longer overdue."""
    rows = [{"gone": target_id} for target_id in sorted(target_ids)]
    connection.execute(delete(overdue_notice).where(overdue_notice.c.target_id == bindparam("gone")), rows)
