"""Deletes old runs: rows of ``sync_run`` and ``sync_issue`` that nothing needs any more. The trail is not touched."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import CompoundSelect, Connection, Executable, and_, delete, exists, func, or_, select, union

from etl.schema import change_set, sync_issue, sync_run, target

RUNS_AT_ONCE: Final = 500
ISSUES_AT_ONCE: Final = 5_000
"""Rows that a transaction deletes: a writer of SQLite waits for it some 50 ms."""
_ROWS_AT_ONCE: Final = 50_000
"""Rows that a transaction looks through."""
UNNOTIFIED_FOR: Final = dt.timedelta(days=7)
"""How long a run without a notification is kept, whatever the setting."""


class Pruned(NamedTuple):
    """How many rows were, or would be, deleted."""

    runs: int
    issues: int

    def plus(self, other: Pruned) -> Pruned:
        return Pruned(self.runs + other.runs, self.issues + other.issues)


Read = Callable[[Callable[[Connection], Sequence[int]]], Sequence[int]]
"""Runs a function in a reading transaction of its own."""


def prunable(read: Read, before: dt.datetime, now: dt.datetime) -> Iterator[list[int]]:
    """The ids of the runs that may go, a batch at a time; each look is a short transaction of its own.

    A run may go that ended before ``before``, changed nothing, and is neither one of those that are needed, nor news
    that nobody was told within ``UNNOTIFIED_FOR`` of ``now``. One that ended ahead of ``now``, since the clock was
    wrong then, ended before the runs that began after it.
    """
    kept = set(read(partial(_numbers, _NEEDED))) | _with_changes(read)
    after = 0
    while True:
        found = read(partial(_old, before=before, now=now, after=after))
        ids = [run_id for run_id in found if run_id not in kept]
        for start in range(0, len(ids), RUNS_AT_ONCE):
            yield ids[start : start + RUNS_AT_ONCE]
        if len(found) < _ROWS_AT_ONCE:
            return
        after = found[-1]


def _numbers(query: Executable, connection: Connection) -> Sequence[int]:
    return connection.execute(query).scalars().all()


def count_issues(connection: Connection, run_ids: Sequence[int]) -> int:
    """How many rows of ``sync_issue`` belong to the runs."""
    of_runs = select(func.count()).select_from(sync_issue).where(sync_issue.c.run_id.in_(run_ids))
    return connection.execute(of_runs).scalar_one()


def delete_issues(connection: Connection, run_ids: Sequence[int]) -> int:
    """Delete some of the runs' issues; how many: ``ISSUES_AT_ONCE`` until fewer are left."""
    some = select(sync_issue.c.id).where(sync_issue.c.run_id.in_(run_ids)).order_by(sync_issue.c.id)
    return connection.execute(delete(sync_issue).where(sync_issue.c.id.in_(some.limit(ISSUES_AT_ONCE)))).rowcount


def delete_runs(connection: Connection, run_ids: Sequence[int]) -> int:
    """Delete the runs, whose issues have gone; how many there still were."""
    ended = and_(sync_run.c.id.in_(run_ids), sync_run.c.status != "running")
    return connection.execute(delete(sync_run).where(ended)).rowcount


def _old(connection: Connection, *, before: dt.datetime, now: dt.datetime, after: int) -> Sequence[int]:
    """By id: the order in which runs began."""
    ended_at = func.coalesce(sync_run.c.finished_at, sync_run.c.heartbeat_at, type_=sync_run.c.heartbeat_at.type)
    told = or_(sync_run.c.notified_at.is_not(None), sync_run.c.heartbeat_at < now - UNNOTIFIED_FOR)
    old = and_(sync_run.c.status != "running", ended_at < before, told)
    latest = select(func.max(sync_run.c.id)).where(old).scalar_subquery()
    before_that = and_(sync_run.c.status != "running", ended_at > now, sync_run.c.id < latest)
    ended = select(sync_run.c.id).where(sync_run.c.id > after, or_(old, before_that))
    return connection.execute(ended.order_by(sync_run.c.id).limit(_ROWS_AT_ONCE)).scalars().all()


def _with_changes(read: Read) -> set[int]:
    """The runs that change sets name. Their sums could tell as well, but for a run that died before it wrote them."""
    named: set[int] = set()
    (last,) = read(partial(_numbers, select(func.coalesce(func.max(change_set.c.id), 0))))
    for first in range(0, last + 1, _ROWS_AT_ONCE):
        some = change_set.c.id.between(first, first + _ROWS_AT_ONCE - 1)
        runs = select(change_set.c.run_id).where(some).distinct()
        named |= set(read(partial(_numbers, runs)))
    return named


def _needed_runs() -> CompoundSelect[Any]:
    """The runs that something still reads, however old they are.

    Of each schedule the latest of every status, by id and by slot (the latest slot that was served is where the
    service goes on, and what comes after an aborted one is missed), and where nothing was ever served its first; the
    run that says why a target's removals are held.
    """
    latest = select(func.max(sync_run.c.id)).group_by(sync_run.c.schedule, sync_run.c.status)
    slots = (
        select(sync_run.c.schedule, sync_run.c.status, func.max(sync_run.c.scheduled_for).label("slot"))
        .group_by(sync_run.c.schedule, sync_run.c.status)
        .subquery()
    )
    same = (slots.c.schedule == sync_run.c.schedule, slots.c.status == sync_run.c.status)
    at_slot = select(sync_run.c.id).join(slots, and_(*same, slots.c.slot == sync_run.c.scheduled_for))
    other = sync_run.alias()
    served = exists().where(other.c.schedule == sync_run.c.schedule, other.c.status != "aborted")
    firsts = (
        select(sync_run.c.schedule, func.min(sync_run.c.scheduled_for).label("slot"))
        .where(~served)
        .group_by(sync_run.c.schedule)
        .subquery()
    )
    first = select(sync_run.c.id).join(
        firsts, and_(firsts.c.schedule == sync_run.c.schedule, firsts.c.slot == sync_run.c.scheduled_for)
    )
    holds = (
        select(func.max(sync_issue.c.id))
        .join(target, target.c.id == sync_issue.c.target_id)
        .where(target.c.held_since.is_not(None), sync_issue.c.verdict == "held")
        .group_by(sync_issue.c.target_id)
    )
    held = select(sync_issue.c.run_id).where(sync_issue.c.id.in_(holds))
    return union(latest, at_slot, first, held)


_NEEDED: Final = _needed_runs()
