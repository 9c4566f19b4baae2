"""What organisations' lists gained and lost within the guard's window, counted in the transaction that writes it.

| a transaction | does, in this order, after its targets and spans are locked |
|---|---|
| that removes without an approval | locks the organisation's row, adds up what was removed within the window, and gives up (TooManyRemovals) if that is too much; otherwise a row of ``org_turnover`` counts what it adds and removes |
| that removes what a person approved | locks the organisation's row and deletes its counts: the window starts again |
| that only adds | counts it, without a lock |

The row's lock is held until the COMMIT, so of two transactions that remove in one organisation the later one sees what
the earlier one counted. Organisations are locked in the order of their ids, and after everything else.

Times are the database's own (``counted_at``): every replica has the same, whatever a machine's clock says. A count that
lies further ahead than the window was made before the clock was set back, and says nothing about now.
"""  # noqa: E501 - a table

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from sqlalchemy import Connection, case, delete, func, insert, literal, select, text

from etl.domain.guard import Limits, Sum, removals_of_organisation
from etl.domain.model import Outcome
from etl.schema import UtcTime, org_turnover, organisation, target, workflow
from etl.store.bulk import BulkValues
from etl.store.runs import database_now

KEPT: Final = dt.timedelta(days=31)
"""Longer than the longest window that can be set."""
DELETED_AT_ONCE: Final = 5_000


_COUNTS: Final = BulkValues(org_id="text", added="int", removed="int")
_ORGANISATIONS: Final = BulkValues(org_id="text")
_REGISTER: Final = f"INSERT INTO organisation (org_id) {_ORGANISATIONS.sql('postgresql')} ON CONFLICT DO NOTHING"


class Removals(msgspec.Struct, frozen=True):
    """What is known of the removals of the organisations in which a transaction may remove something."""

    window: dt.timedelta
    sums: Mapping[str, Sum]


NO_REMOVALS: Final = Removals(dt.timedelta(0), {})


class TooManyRemovals(Exception):
    """Too much, together with what others have committed meanwhile: hold the removals of these organisations."""

    def __init__(self, sums: Mapping[str, Sum]) -> None:
        super().__init__(f"too much was removed in {', '.join(sorted(sums))}")
        self.sums = sums


def removal_sums(
    connection: Connection, run_id: int | None, org_ids: Collection[str], limits: Limits
) -> dict[str, Sum]:
    """What is known of each organisation's removals before those of a run; read in the caller's transaction."""
    now = connection.execute(select(database_now(connection))).scalar_one()
    listed = select(target.c.org_id, func.sum(target.c.flow_count)).where(target.c.org_id.in_(org_ids))
    listed = listed.where(target.c.user_id != "")  # a directory counts in no sum
    rows = connection.execute(listed.where(target.c.retired_at.is_(None)).group_by(target.c.org_id))
    lists = {org: int(flows) for org, flows in rows}
    return {
        org: removals_of_organisation(max(0, lists.get(org, 0) - added + by_run + by_others), by_others, limits)
        for org, (added, by_run, by_others) in _within(connection, limits.window, now, org_ids, run_id).items()
    }


def listed_workflows(connection: Connection, org_id: str) -> int:
    """How many workflows the lists of an organisation's users have; one that several see counts once."""
    listed = select(func.count(workflow.c.flow_id.distinct())).join(target, target.c.id == workflow.c.target_id)
    of_org = listed.where(target.c.org_id == org_id, target.c.user_id != "", target.c.retired_at.is_(None))
    return int(connection.execute(of_org).scalar_one())


def count(connection: Connection, run_id: int, outcomes: Sequence[Outcome], removals: Removals) -> None:
    """Count what ``outcomes`` add and remove, as the last thing before a COMMIT. Raises TooManyRemovals.

    ``removals`` must have every organisation in which something is removed without an approval. A directory does not
    count.
    """
    outcomes = [outcome for outcome in outcomes if not outcome.fence.target.is_directory]
    turnover = _turnover(outcomes)
    losing = {org for org, changes in turnover.items() if changes["removed"]}
    if undecided := [org for org in losing if org not in removals.sums]:
        raise ValueError(f"nobody decided what is removed in {', '.join(sorted(undecided))}")
    approved = {o.fence.target.org_id for o in outcomes if o.change_set and o.change_set.approved_by is not None}
    if losing or approved:
        lock_organisations(connection, sorted(losing | approved))
    if approved:
        connection.execute(delete(org_turnover).where(org_turnover.c.org_id.in_(approved)))
    if not turnover:
        return
    now = connection.execute(select(database_now(connection))).scalar_one()
    if losing:
        _check(connection, run_id, {org: turnover[org]["removed"] for org in losing}, removals, now)
    counts = _COUNTS.select(connection.dialect.name).subquery("counts").c
    rows = select(counts.org_id, literal(run_id), literal(now, UtcTime()), counts.added, counts.removed)
    columns = ("org_id", "run_id", "counted_at", "added", "removed")
    given = [(org, turnover[org]["added"], turnover[org]["removed"]) for org in sorted(turnover)]
    connection.execute(insert(org_turnover).from_select(columns, rows), _COUNTS.bound(connection, given))


def delete_old(connection: Connection) -> int:
    """Delete counts that no window reaches, at most ``DELETED_AT_ONCE``; return how many."""
    now = connection.execute(select(database_now(connection))).scalar_one()
    old = select(org_turnover.c.id).where(org_turnover.c.counted_at < now - KEPT).order_by(org_turnover.c.id)
    return connection.execute(delete(org_turnover).where(org_turnover.c.id.in_(old.limit(DELETED_AT_ONCE)))).rowcount


def _turnover(outcomes: Iterable[Outcome]) -> dict[str, Counter[str]]:
    """How much is added and removed in each organisation, except by approvals."""
    turnover: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        made = outcome.change_set
        if made is None or made.kind == "baseline" or made.approved_by is not None:
            continue
        counts = made.counts
        if counts["added"] or counts["removed"]:
            of_org = turnover.setdefault(made.target.org_id, Counter(added=0, removed=0))
            of_org.update(added=counts["added"], removed=counts["removed"])
    return turnover


def lock_organisations(connection: Connection, org_ids: Sequence[str]) -> None:
    """Lock the rows of organisations, in the order in which they are given.

    SQLite has one writer at a time, and needs neither the lock nor the row.
    """
    if connection.dialect.name == "sqlite":
        return
    connection.execute(text(_REGISTER), _ORGANISATIONS.bound(connection, [(org_id,) for org_id in org_ids]))
    mine = select(organisation.c.org_id).where(organisation.c.org_id.in_(org_ids))
    connection.execute(mine.order_by(organisation.c.org_id).with_for_update())


def _check(
    connection: Connection, run_id: int, removed: Mapping[str, int], removals: Removals, now: dt.datetime
) -> None:
    """Raise TooManyRemovals if needed. A separate statement after the lock sees everything committed until then."""
    found = _within(connection, removals.window, now, removed, run_id)
    over = {}
    for org, removes in removed.items():
        known, (_, by_run, by_others) = removals.sums[org], found[org]
        of_run = max(known.of_run, by_run + removes)
        summed = msgspec.structs.replace(known, before=by_others, seen=of_run, expected=0)
        if summed.ruling == "hold":
            over[org] = summed
    if over:
        raise TooManyRemovals(over)


def _within(
    connection: Connection, window: dt.timedelta, now: dt.datetime, org_ids: Collection[str], run_id: int | None
) -> Mapping[str, tuple[int, int, int]]:
    """For each organisation, summed over the window: additions, the removals of a run, and those of all others."""
    removed, by_run = org_turnover.c.removed, org_turnover.c.run_id == run_id
    sums = (org_turnover.c.added, case((by_run, removed), else_=0), case((by_run, 0), else_=removed))
    of_window = select(org_turnover.c.org_id, *map(func.sum, sums)).where(
        org_turnover.c.org_id.in_(org_ids),
        org_turnover.c.counted_at > now - window,
        org_turnover.c.counted_at < now + window,
    )
    rows = connection.execute(of_window.group_by(org_turnover.c.org_id))
    found = {org: (int(added), int(by_run), int(by_others)) for org, added, by_run, by_others in rows}
    return {org: found.get(org, (0, 0, 0)) for org in org_ids}
