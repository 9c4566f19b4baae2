"""The rows of ``sync_run``: evidence that a run began, that it still lives, and how it ended."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, func, literal_column, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from etl.model import Origin, RunStatus
from etl.schema import UtcTime, change_set, sync_run

ABANDONED_AFTER: Final = dt.timedelta(minutes=2)
"""A running run whose heartbeat is older than this has died."""


Marks = tuple[int | None, ...]
"""To be compared with an earlier one only."""


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run before it starts."""

    origin: Origin
    host: str
    pid: int
    targets: int
    schedule: str | None = None
    scheduled_for: dt.datetime | None = None
    missed: int = 0


def database_now(connection: Connection) -> ColumnElement[dt.datetime]:
    """This moment by the database's clock, which all replicas share."""
    if connection.dialect.name == "postgresql":
        return func.clock_timestamp(type_=UtcTime())
    return literal_column("(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')", UtcTime())


def begin(connection: Connection, run: NewRun, now: dt.datetime) -> int | None:
    """Insert the row of a run that starts; None where its slot is another run's already."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    row = {**msgspec.structs.asdict(run), "status": "running", "started_at": now}
    statement = dialect.insert(sync_run).values(**row, heartbeat_at=database_now(connection))
    return connection.execute(statement.on_conflict_do_nothing().returning(sync_run.c.id)).scalar_one_or_none()


def is_there(connection: Connection, run_id: int | None, run: NewRun, now: dt.datetime) -> bool:
    """Whether the row that ``begin`` made was committed."""
    mine = select(sync_run.c.id).where(
        sync_run.c.id == run_id,
        sync_run.c.host == run.host,
        sync_run.c.pid == run.pid,
        sync_run.c.started_at == now,
    )
    return connection.execute(mine).first() is not None


def beat(connection: Connection, run_id: int) -> None:
    connection.execute(update(sync_run).where(sync_run.c.id == run_id).values(heartbeat_at=database_now(connection)))


def finish(connection: Connection, run_id: int, status: RunStatus, sums: Mapping[str, Any], now: dt.datetime) -> bool:
    """Write how a run ended; False where somebody has declared it dead meanwhile, which stays.

    What it wrote after that is news once more, though receivers may have been told of the dead run already.
    """
    mine = or_(sync_run.c.status == "running", and_(sync_run.c.status == status, sync_run.c.finished_at == now))
    ended = update(sync_run).where(sync_run.c.id == run_id, mine)
    done = connection.execute(
        ended.values(status=status, finished_at=now, heartbeat_at=database_now(connection), **sums)
    )
    if not done.rowcount:
        connection.execute(update(sync_run).where(sync_run.c.id == run_id).values(notified_at=None))
    return done.rowcount == 1


def abort_abandoned(connection: Connection, now: dt.datetime) -> list[int]:
    """Declare dead the runs that beat no more; return their ids."""
    limit = connection.execute(select(database_now(connection))).scalar_one() - ABANDONED_AFTER
    dead = (
        update(sync_run)
        .where(sync_run.c.status == "running", sync_run.c.heartbeat_at < limit)
        .values(status="aborted", finished_at=now)
        .returning(sync_run.c.id)
    )
    return sorted(connection.execute(dead).scalars())


def marks(connection: Connection) -> Marks:
    """What moves whenever a run begins, writes or ends, whoever's it is."""
    running = select(sync_run.c.id).where(sync_run.c.status == "running").order_by(sync_run.c.id)
    last = (connection.execute(select(func.max(table.c.id))).scalar() for table in (change_set, sync_run))
    return (*last, *connection.execute(running).scalars())


def served_until(connection: Connection, schedule: str) -> dt.datetime | None:
    """The latest slot of a schedule that a run served or is serving: an aborted run served none.

    None where the schedule never ran; just before its first slot where every run was aborted.
    """
    of_schedule = select(func.max(sync_run.c.scheduled_for)).where(sync_run.c.schedule == schedule)
    slot: dt.datetime | None = connection.execute(of_schedule.where(sync_run.c.status != "aborted")).scalar_one()
    if slot is not None:
        return slot
    first = select(func.min(sync_run.c.scheduled_for)).where(sync_run.c.schedule == schedule)
    aborted: dt.datetime | None = connection.execute(first).scalar_one()
    return None if aborted is None else aborted - dt.timedelta(microseconds=1)


def was_aborted(connection: Connection, schedule: str, slot: dt.datetime) -> bool:
    """Whether a run for just this slot was aborted."""
    aborted = select(sync_run.c.id).where(
        sync_run.c.schedule == schedule, sync_run.c.scheduled_for == slot, sync_run.c.status == "aborted"
    )
    return connection.execute(aborted.limit(1)).first() is not None
