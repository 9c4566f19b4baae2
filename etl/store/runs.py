"""The rows of ``sync_run``: how a run began, its heartbeat, and what it has written."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    and_,
    bindparam,
    cast,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)

from etl.domain.chain import encode
from etl.domain.kinds import CHANGE_KINDS, ChangeKind
from etl.domain.model import Issue, Origin, Target, Verdict
from etl.schema import (
    OWN_SLOT,
    TARGET_KEY,
    UtcTime,
    change_set,
    observation,
    sync_issue,
    sync_run,
    target,
    target_membership,
)
from etl.store import membership
from etl.store.bulk import insert_into

ABANDONED_AFTER: Final = dt.timedelta(minutes=2)
"""A run with an older heartbeat is abandoned: its process has died."""

_TICK: Final = dt.timedelta(microseconds=1)
_ONE_SLOT: Final = dt.timedelta(milliseconds=100)
"""The shortest interval of a schedule: a time closer to a slot belongs to that slot."""

_UNDER_WAY: Final = (sync_run.c.status == "running", sync_run.c.finished_at.is_(None))
"""The second is what an index finds."""

Marks = tuple[int | None, ...]
"""Only useful to compare with earlier marks."""


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run before it starts."""

    origin: Origin
    host: str
    pid: int
    targets: int
    schedule: str | None = None
    scheduled_for: dt.datetime | None = None
    missed_slots: int = 0
    lists: membership.Lists = {}
    """All the targets of its schedules; empty for a run whose targets were given by name."""
    gaps: Mapping[str, dt.timedelta] = {}
    """The coverage gaps of its schedules."""
    asked_as: Mapping[str, str] = {}
    """By organisation whose directory its schedules list: the user as whom EnOS is asked for it."""
    org_id: str | None = None
    """Set if it only asks for this organisation's targets."""
    user_id: str | None = None


class Due(NamedTuple):
    """What earlier runs of a schedule say when a slot is due."""

    served: dt.datetime | None
    """As ``served_until``."""
    before: dt.datetime | None
    """The nearest earlier slot that was served, whenever that was."""
    free: dt.datetime
    """The slot, or the first moment after it that no run has. (A run from when the clock was wrong may have the
    slot.)"""


class Written(NamedTuple):
    """What a run has written of a target."""

    verdict: Verdict
    changes: Mapping[ChangeKind, int]
    issue: Issue | None


def database_now(connection: Connection) -> ColumnElement[dt.datetime]:
    """The current time of the database's clock, which all replicas share."""
    if connection.dialect.name == "postgresql":
        return func.clock_timestamp(type_=UtcTime())
    return literal_column("(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')", UtcTime())


def begin(connection: Connection, run: NewRun, now: dt.datetime, digest: str, asked: Sequence[Target]) -> int | None:
    """Insert the row of a run that starts, and record its lists; None if another run has its slot already.

    ``digest`` is the digest of the targets to ask; ``asked`` are these targets for a run that got them by name.
    """
    row = {name: getattr(run, name) for name in _OF_NEW_RUN} | {"status": "running", "started_at": now}
    if run.origin == "maintenance":
        row["notified_at"] = now  # receivers are not notified of it
    row |= {"heartbeat_at": database_now(connection), "scope": _scope(run, asked), "targets_digest": digest}
    statement = insert_into(connection, sync_run).values(row).on_conflict_do_nothing().returning(sync_run.c.id)
    run_id: int | None = connection.execute(statement).scalar()
    if run_id is not None and run.lists and not _is_recorded(connection, run_id, run):
        membership.record(connection, run_id, run.lists, now, run.gaps)
        connection.execute(update(sync_run).where(sync_run.c.id == run_id).values(scope=_scope(run, ())))
    if run_id is not None and run.asked_as:
        membership.keep_asked_as(connection, run.asked_as)
    return run_id


_OF_NEW_RUN: Final = tuple(name for name in NewRun.__struct_fields__ if name in sync_run.c)
_LATEST_MEMBERSHIP: Final = select(func.coalesce(func.max(target_membership.c.id), 0)).scalar_subquery()
_RUNS_BEFORE: Final = 100


def _is_recorded(connection: Connection, run_id: int, run: NewRun) -> bool:
    """Whether this run of one whole schedule asks what another one asked, with the same coverage gap."""
    if len(run.lists) > 1 or run.org_id is not None or run.user_id is not None:
        return False
    (name,) = run.lists
    before = (
        select(sync_run.c.scope, sync_run.c.targets_digest)
        .where(sync_run.c.schedule == run.schedule, sync_run.c.id < run_id)
        .order_by(sync_run.c.id.desc())
        .limit(_RUNS_BEFORE)
        .subquery()
    ).c
    repeats_one = exists().where(
        sync_run.c.id == run_id,
        before.scope == sync_run.c.scope,  # it ends with the latest membership id: none was recorded since
        before.targets_digest == sync_run.c.targets_digest,
    )
    return membership.gap_of(connection, name, repeats_one) == membership.seconds_of(run.gaps, name)


def _scope(run: NewRun, asked: Sequence[Target]) -> ColumnElement[str]:
    """The scope of a run: what it is to ask, and the highest membership id that it sees."""
    named = {"schedules": sorted(run.lists), "org_id": run.org_id, "user_id": run.user_id}
    by_name = not run.lists and run.origin != "maintenance"
    scope: dict[str, Any] = {"targets": sorted(asked)} if by_name else named
    begins = encode(scope)[:-1].decode() + ',"membership_id":'
    return literal(begins, Text()) + cast(_LATEST_MEMBERSHIP, Text()) + "}"


def was_begun(connection: Connection, run_id: int | None, run: NewRun, now: dt.datetime) -> bool:
    """Whether the row that ``begin`` made was committed."""
    mine = select(sync_run.c.id).where(
        sync_run.c.id == run_id,
        sync_run.c.host == run.host,
        sync_run.c.pid == run.pid,
        sync_run.c.started_at == now,
    )
    return connection.execute(mine).first() is not None


def is_running(connection: Connection, run_id: int, host: str, pid: int) -> bool:
    """Whether this run of that process is under way in this database."""
    mine = (sync_run.c.id == run_id, sync_run.c.host == host, sync_run.c.pid == pid, sync_run.c.status == "running")
    return connection.execute(select(sync_run.c.id).where(*mine)).first() is not None


def written_by(connection: Connection, run_id: int, targets: Sequence[Target]) -> dict[Target, Written]:
    """What a run has written for ``targets``: change sets and issues, if they are the latest of their target."""
    rows = connection.execute(_WRITTEN, {"run_id": run_id, "targets": targets})
    return {Target(*row[:3]): _written(row) for row in rows}


def observed_by(connection: Connection, run_id: int, began_at: dt.datetime, targets: Sequence[Target]) -> set[Target]:
    """The ``targets`` whose open span was extended since a run began; none if another run may have done that."""
    others = select(sync_run.c.id).where(
        sync_run.c.id != run_id, or_(sync_run.c.finished_at.is_(None), sync_run.c.finished_at >= began_at)
    )
    if not targets or connection.execute(others.limit(1)).first() is not None:
        return set()
    rows = connection.execute(_OBSERVED, {"began_at": began_at, "targets": targets})
    return {Target(*row) for row in rows}


_OBSERVED: Final = (
    select(*TARGET_KEY)
    .join(observation, observation.c.id == target.c.observation_id)
    .where(
        tuple_(*TARGET_KEY).in_(bindparam("targets", expanding=True)),
        observation.c.last_at >= bindparam("began_at", type_=UtcTime()),
    )
)
_latest_issue: Final = (
    select(func.max(sync_issue.c.id)).where(sync_issue.c.target_id == target.c.id).correlate(target).scalar_subquery()
)
_WRITTEN: Final = (
    select(
        *TARGET_KEY,
        *(change_set.c[kind] for kind in CHANGE_KINDS),
        *(sync_issue.c.verdict, sync_issue.c.error_code, sync_issue.c.message),
        *(sync_issue.c.attempts, sync_issue.c.missing),
    )
    .outerjoin_from(
        target,
        change_set,
        and_(
            change_set.c.target_id == target.c.id,
            change_set.c.version == target.c.version,
            change_set.c.run_id == bindparam("run_id"),
        ),
    )
    .outerjoin(sync_issue, and_(sync_issue.c.id == _latest_issue, sync_issue.c.run_id == bindparam("run_id")))
    .where(
        tuple_(*TARGET_KEY).in_(bindparam("targets", expanding=True)),
        or_(change_set.c.id.is_not(None), sync_issue.c.id.is_not(None)),
    )
)


def _written(row: Sequence[Any]) -> Written:
    counts, (verdict, *issue) = row[3:-5], row[-5:]
    changes = {kind: count for kind, count in zip(CHANGE_KINDS, counts, strict=True) if count}
    return Written(verdict or "changed", changes, Issue(*issue) if verdict else None)


def beat(connection: Connection, run_id: int) -> None:
    """Renew the heartbeat of a run that has not ended."""
    lives = update(sync_run).where(sync_run.c.id == run_id, sync_run.c.status == "running")
    connection.execute(lives.values(heartbeat_at=database_now(connection)))


def close_abandoned(connection: Connection, now: dt.datetime) -> list[int]:
    """Close the runs whose heartbeat has stopped, and find those that died after they were closed; return their ids.

    A heartbeat ahead of the database's clock was written before the clock went back. It does not say when that was, so
    it is replaced by now: a live run writes another one in time. A run that a transaction is writing for at this moment
    is left for the next time.
    """
    beats = select(sync_run.c.id, sync_run.c.heartbeat_at, database_now(connection)).where(*_UNDER_WAY)
    rows = connection.execute(beats).all()
    if ahead := [run_id for run_id, beat_at, now_there in rows if beat_at > now_there]:
        corrected = update(sync_run).where(sync_run.c.id.in_(ahead), sync_run.c.heartbeat_at > database_now(connection))
        connection.execute(corrected.values(heartbeat_at=database_now(connection)))
    late = {run_id: beat_at for run_id, beat_at, now_there in rows if beat_at < now_there - ABANDONED_AFTER}
    if not late:
        return []
    silent = tuple_(sync_run.c.id, sync_run.c.heartbeat_at).in_(late.items())
    dead = select(sync_run.c.id).where(*_UNDER_WAY, silent)
    found = sorted(connection.execute(dead.with_for_update(skip_locked=True)).scalars())
    if found:
        closed = func.coalesce(sync_run.c.closed_at, now, type_=UtcTime())
        connection.execute(update(sync_run).where(sync_run.c.id.in_(found)).values(closed_at=closed))
    return found


def marks(connection: Connection) -> Marks:
    """A value that changes whenever any run begins, writes or ends."""
    running = select(sync_run.c.id).where(*_UNDER_WAY).order_by(sync_run.c.id)
    last = (connection.execute(select(func.max(table.c.id))).scalar() for table in (change_set, sync_run))
    return (*last, *connection.execute(running).scalars())


def served_until(connection: Connection, schedule: str) -> dt.datetime | None:
    """The slot of the latest run of a schedule, which served it or is serving it. Aborted runs serve none.

    The latest run is the one that began last, not the one with the latest slot, because the clock may have gone back.
    None if the schedule never ran; just before its first slot if every run was aborted.
    """
    of_schedule = select(sync_run.c.scheduled_for).where(
        sync_run.c.schedule == schedule, sync_run.c.scheduled_for.is_not(None)
    )
    latest = of_schedule.where(OWN_SLOT).order_by(sync_run.c.id.desc()).limit(1)
    slot: dt.datetime | None = connection.execute(latest).scalar_one_or_none()
    if slot is not None:
        return slot
    first = connection.execute(of_schedule.order_by(sync_run.c.scheduled_for).limit(1)).scalar_one_or_none()
    return None if first is None else first - _TICK


def due(connection: Connection, schedule: str, slot: dt.datetime) -> Due:
    """What a run for ``slot`` must know about earlier runs."""
    served = select(func.max(sync_run.c.scheduled_for)).where(OWN_SLOT)
    earlier = served.where(sync_run.c.schedule == schedule, sync_run.c.scheduled_for < slot)
    taken: dt.datetime | None = connection.execute(served.where(_of_slot(schedule, slot))).scalar_one()
    return Due(
        served=served_until(connection, schedule),
        before=connection.execute(earlier).scalar_one(),
        free=slot if taken is None else taken + _TICK,
    )


def was_aborted(connection: Connection, schedule: str, slot: dt.datetime) -> bool:
    """Whether a run for exactly this slot was aborted."""
    aborted = select(sync_run.c.id).where(_of_slot(schedule, slot), sync_run.c.status == "aborted")
    return connection.execute(aborted.limit(1)).first() is not None


def _of_slot(schedule: str, slot: dt.datetime) -> ColumnElement[bool]:
    until = slot + _ONE_SLOT - _TICK
    return and_(sync_run.c.schedule == schedule, sync_run.c.scheduled_for.between(slot, until))
