"""Deleting issues of old runs that nothing needs any more. The runs, their seals and the trail stay as they are."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import Connection, and_, delete, exists, func, insert, or_, select

from etl.schema import pruned_issues, sync_issue, sync_run, target
from etl.store import seals
from etl.store.bulk import grouped

ISSUES_AT_ONCE: Final = 5_000
"""Rows deleted per transaction: another writer of SQLite waits some 50 ms for it."""
_ROWS_AT_ONCE: Final = 50_000
"""Rows read per transaction."""
UNNOTIFIED_FOR: Final = dt.timedelta(days=7)
"""How long a run that receivers were not told of is kept, whatever the setting."""


class Pruned(NamedTuple):
    """How many runs lost their issues (or would lose them), and how many issues these were."""

    runs: int
    issues: int

    def plus(self, other: Pruned) -> Pruned:
        return Pruned(self.runs + other.runs, self.issues + other.issues)


class PrunableRuns(NamedTuple):
    """Runs whose issues are deleted in one transaction."""

    run_ids: Sequence[int]
    issues: int


T = TypeVar("T")
Read = Callable[[Callable[[Connection], T]], T]
"""Runs a function in a reading transaction of its own."""


def prunable(read: Read[Any], before: dt.datetime, now: dt.datetime, *, has_receivers: bool) -> Iterator[PrunableRuns]:
    """The runs whose issues may be deleted, one transaction's worth at a time; each look is a short transaction.

    A run's issues may go if it ended before ``before``, unless they say why removals are held, or the receivers,
    where there are any, have not been told of the run within ``UNNOTIFIED_FOR`` of ``now``. A run that ended ahead
    of ``now``, because the clock was wrong then, counts as ended before the runs that began after it.
    """
    kept = set(read(lambda connection: connection.execute(_HOLDS).scalars().all()))
    unnotified_since = now - UNNOTIFIED_FOR if has_receivers else None
    after = 0
    while True:
        found = read(partial(_old, before=before, now=now, unnotified_since=unnotified_since, after=after))
        for runs in grouped((run for run in found if run.id not in kept), attrgetter("issues"), ISSUES_AT_ONCE):
            yield PrunableRuns([run.id for run in runs], sum(run.issues for run in runs))
        if len(found) < _ROWS_AT_ONCE:
            return
        after = found[-1].id


def delete_issues(connection: Connection, run_id: int, run_ids: Sequence[int], now: dt.datetime) -> int:
    """Delete all issues of some runs, record that ``run_id`` did so, and return their number. Raises RunClosed."""
    seals.require_open(connection, run_id)
    rows = [{"run_id": run_id, "pruned_run_id": pruned, "at": now} for pruned in run_ids]
    connection.execute(insert(pruned_issues), rows)
    return connection.execute(delete(sync_issue).where(sync_issue.c.run_id.in_(run_ids))).rowcount


def _old(
    connection: Connection, *, before: dt.datetime, now: dt.datetime, unnotified_since: dt.datetime | None, after: int
) -> Sequence[Any]:
    """Runs with the number of their issues, by id, which is the order in which runs began."""
    ended_at = func.coalesce(sync_run.c.finished_at, sync_run.c.heartbeat_at, type_=sync_run.c.heartbeat_at.type)
    old = and_(sync_run.c.status != "running", ended_at < before)
    if unnotified_since is not None:
        old = and_(old, or_(sync_run.c.notified_at.is_not(None), sync_run.c.heartbeat_at < unnotified_since))
    latest = select(func.max(sync_run.c.id)).where(old).scalar_subquery()
    before_that = and_(sync_run.c.status != "running", ended_at > now, sync_run.c.id < latest)
    issues = select(func.count()).where(sync_issue.c.run_id == sync_run.c.id).correlate(sync_run).scalar_subquery()
    has_some = exists().where(sync_issue.c.run_id == sync_run.c.id)
    ended = select(sync_run.c.id, issues.label("issues")).where(sync_run.c.id > after, or_(old, before_that), has_some)
    return connection.execute(ended.order_by(sync_run.c.id).limit(_ROWS_AT_ONCE)).all()


_latest_hold: Final = (
    select(func.max(sync_issue.c.id))
    .join(target, target.c.id == sync_issue.c.target_id)
    .where(target.c.held_since.is_not(None), sync_issue.c.verdict == "held")
    .group_by(sync_issue.c.target_id)
)
_HOLDS: Final = select(sync_issue.c.run_id).where(sync_issue.c.id.in_(_latest_hold))
"""The runs that say why a target's removals are held."""
