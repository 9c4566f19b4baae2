"""Deleting issues of old runs that nothing needs any more. The runs, their seals and the trail stay as they are."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, and_, delete, func, insert, or_, select

from etl.schema import pruned_issues, sync_issue, sync_run, target
from etl.store import seals

ISSUES_AT_ONCE: Final = 5_000
"""Rows deleted per transaction: another writer of SQLite waits some 50 ms for it."""
UNNOTIFIED_FOR: Final = dt.timedelta(days=7)
"""How long a run that receivers were not told of is kept, whatever the setting."""


_latest_hold: Final = (
    select(func.max(sync_issue.c.id))
    .join(target, target.c.id == sync_issue.c.target_id)
    .where(target.c.held_since.is_not(None), sync_issue.c.verdict == "held")
    .group_by(sync_issue.c.target_id)
)
_HOLDS: Final = select(sync_issue.c.run_id).where(sync_issue.c.id.in_(_latest_hold))
"""The runs that say why a target's removals are held."""


class Pruned(NamedTuple):
    """How many runs lost their issues (or would lose them), and how many issues these were."""

    runs: int
    issues: int


def prunable(
    connection: Connection, before: dt.datetime, now: dt.datetime, *, has_receivers: bool
) -> list[tuple[int, int]]:
    """The runs whose issues may be deleted, and how many they have, in the order in which the runs began.

    A run's issues may go if it ended before ``before``, unless they say why removals are held, or the receivers,
    where there are any, have not been told of the run within ``UNNOTIFIED_FOR`` of ``now``. A run that ended ahead
    of ``now``, because the clock was wrong then, counts as ended before the runs that began after it.
    """
    ended_at = func.coalesce(sync_run.c.finished_at, sync_run.c.heartbeat_at, type_=sync_run.c.heartbeat_at.type)
    old = and_(sync_run.c.status != "running", ended_at < before)
    if has_receivers:
        old &= or_(sync_run.c.notified_at.is_not(None), sync_run.c.heartbeat_at < now - UNNOTIFIED_FOR)
    latest = select(func.max(sync_run.c.id)).where(old).scalar_subquery()
    before_that = and_(sync_run.c.status != "running", ended_at > now, sync_run.c.id < latest)
    found = (
        select(sync_run.c.id, func.count())
        .join(sync_issue, sync_issue.c.run_id == sync_run.c.id)
        .where(or_(old, before_that), sync_run.c.id.not_in(_HOLDS))
        .group_by(sync_run.c.id)
        .order_by(sync_run.c.id)
    )
    return [(run_id, issues) for run_id, issues in connection.execute(found)]


def delete_issues(connection: Connection, run_id: int, run_ids: Sequence[int], now: dt.datetime) -> int:
    """Delete all issues of some runs, record that ``run_id`` did so, and return their number. Raises RunClosed."""
    seals.require_open(connection, run_id)
    rows = [{"run_id": run_id, "pruned_run_id": pruned, "at": now} for pruned in run_ids]
    connection.execute(insert(pruned_issues), rows)
    return connection.execute(delete(sync_issue).where(sync_issue.c.run_id.in_(run_ids))).rowcount
