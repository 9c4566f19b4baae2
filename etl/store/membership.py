"""Which targets a schedule lists, as history: joined, left, retired and resumed.

| what a run finds | what it records |
|---|---|
| a schedule lists a target that is no member of it | `joined`, with the schedule's coverage gap |
| a schedule has another coverage gap than its members joined with | `joined`, for each of them |
| a member is no longer in its schedule's list | `left` |
| a target is in no schedule any more | `left`, for each schedule that it was a member of, and `retired` |
| a schedule is gone or has another name | `left`, for each of its members that another schedule lists |
| a retired target is in a list again, or is asked again | `resumed` |

Of one target, no event is dated before an earlier one, even where the clock went back: so their order is proven by the
times, which the seals of their runs cover. And no target retires before its last answer that was written: it would
count as the first one after its return.

A target has the longest coverage gap of the schedules that it is a member of; one that is no member keeps what it had.
All members of a schedule have the same one.

Writers take turns, so that ids are committed in order: a run that has seen event N has seen every event before it.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Select,
    Text,
    bindparam,
    case,
    func,
    insert,
    literal,
    null,
    select,
    text,
    tuple_,
    update,
)

from etl.config.targets import TargetList
from etl.database import STREAMED
from etl.domain.guard import share_of
from etl.domain.model import USUAL_COVERAGE_GAP, Target
from etl.schema import TARGET_KEY, UtcTime, change_set, observation, target, target_membership
from etl.store import seals
from etl.store.bulk import BulkValues, insert_into

T = TypeVar("T")
Lists = Mapping[str, Sequence[Target]]
"""All the targets of each schedule, by its name."""

_AT_ONCE: Final = 5_000
_IN_TURN: Final = "SELECT pg_advisory_xact_lock(hashtext(current_schema() || '.target_membership'))"
GIVEN: Final = BulkValues(org_id="text", user_id="text", expression="text")
_ASKED_AS: Final = BulkValues(org_id="text", user_id="text")

_last: Final = target_membership.alias("last")
_IS_MEMBER: Final = (target_membership.c.kind == "joined") & (
    target_membership.c.id
    == select(func.max(_last.c.id))
    .where(_last.c.schedule == target_membership.c.schedule, _last.c.target_id == target_membership.c.target_id)
    .scalar_subquery()
)


def _last_of(at: Column[Any], *conditions: ColumnElement[bool]) -> ColumnElement[dt.datetime]:
    of_target = select(func.max(at, type_=UtcTime())).where(at.table.c.target_id == target.c.id, *conditions)
    return of_target.correlate(target).scalar_subquery()


_LATEST_AT: Final = _last_of(_last.c.at)
_LAST_SPAN_AT: Final = _last_of(observation.c.last_at, observation.c.version == target.c.version)
_LAST_VERSION_AT: Final = _last_of(change_set.c.observed_at)
_MEMBERS: Final = (
    select(*TARGET_KEY)
    .join(target_membership, target_membership.c.target_id == target.c.id)
    .where(target_membership.c.schedule == bindparam("schedule"), _IS_MEMBER)
    .order_by(target.c.id)
)
_GAP: Final = (
    select(target_membership.c.coverage_gap_seconds)
    .where(target_membership.c.schedule == bindparam("schedule"), _IS_MEMBER)
    .limit(1)
)
LONGEST_GAP: Final = (
    select(func.max(target_membership.c.coverage_gap_seconds))
    .where(target_membership.c.target_id == target.c.id, _IS_MEMBER)
    .correlate(target)
    .scalar_subquery()
)
"""Of the schedules that a target is a member of; null for one that is no member."""
_RETIRED: Final = select(*TARGET_KEY).where(target.c.retired_at.is_not(None)).order_by(target.c.id)


def is_given(dialect: str) -> ColumnElement[bool]:
    """The condition that a target is one of those that ``GIVEN`` binds."""
    return tuple_(*TARGET_KEY).in_(GIVEN.select(dialect))


def gap_of(connection: Connection, schedule: str, *conditions: ColumnElement[bool]) -> int | None:
    """The coverage gap of a schedule's members in seconds; None where it has no member, or a condition is not met."""
    gap: int | None = connection.execute(_GAP.where(*conditions), {"schedule": schedule}).scalar()
    return gap


def seconds_of(gaps: Mapping[str, dt.timedelta], schedule: str) -> int:
    """The coverage gap of a schedule in whole seconds; a part of one counts as one."""
    return math.ceil(gaps.get(schedule, USUAL_COVERAGE_GAP).total_seconds())


def register(connection: Connection, targets: Iterable[Target]) -> None:
    """Make rows for those of the targets that have none."""
    rows = insert_into(connection, target).from_select(TARGET_KEY, GIVEN.select(connection.dialect.name))
    new = rows.on_conflict_do_nothing(index_elements=TARGET_KEY)
    connection.execute(new, GIVEN.bound(connection, sorted(targets)))


def keep_asked_as(connection: Connection, asked_as: Mapping[str, str]) -> None:
    """Keep as whom EnOS is asked for the directories of these organisations."""
    given = _ASKED_AS.select(connection.dialect.name).subquery("given").c
    other = target.c.asked_as.is_(None) | (target.c.asked_as != given.user_id)
    kept = update(target).where(target.c.org_id == given.org_id, target.c.user_id == "", other)
    rows = sorted(asked_as.items())
    connection.execute(kept.values(asked_as=given.user_id), _ASKED_AS.bound(connection, rows))


def record(
    connection: Connection, run_id: int, lists: Lists, now: dt.datetime, gaps: Mapping[str, dt.timedelta]
) -> None:
    """Record what differs between ``lists`` and the members of these schedules; new targets get their rows.

    ``gaps`` are the coverage gaps of the schedules.
    """
    wait_for_turn(connection)
    listed = {name: each if isinstance(each, TargetList) else frozenset(each) for name, each in lists.items()}
    for name, targets in lists.items():
        members = TargetList(_targets(connection, _MEMBERS, schedule=name))
        gap = seconds_of(gaps, name)
        is_as_before = gap_of(connection, name) in (None, gap)
        joining = (each for each in targets if not (is_as_before and each in members))
        _move(connection, run_id, joining, "joined", now, name, gap)
        leaving = (each for each in members if each not in listed[name])
        _move(connection, run_id, leaving, "left", now, name)
    back = [each for each in _targets(connection, _RETIRED) if any(each in targets for targets in listed.values())]
    resume(connection, run_id, back, now)


def resume(connection: Connection, run_id: int, targets: Sequence[Target], now: dt.datetime) -> None:
    """Call retired targets back; the caller must have waited for its turn (``wait_for_turn``)."""
    for some in _chunks(targets):
        mine, given = _are(connection, some)
        back = update(target).where(mine, target.c.retired_at.is_not(None))
        back = back.values(retired_at=None, away_since=target.c.retired_at)
        found = [Target(*key) for key in connection.execute(back.returning(*TARGET_KEY), given)]
        _record(connection, run_id, found, "resumed", _at(now))


def retire(connection: Connection, run_id: int, targets: Sequence[Target], now: dt.datetime) -> None:
    """Retire targets: they leave each schedule that has them, and are no longer asked for. The answer to a request that
    is under way becomes stale. Raises RunClosed."""
    seals.require_open(connection, run_id)
    wait_for_turn(connection)
    for some in _chunks(targets):
        mine, given = _are(connection, some)
        mine &= target.c.retired_at.is_(None)
        leaving = (
            select(
                *(target_membership.c.target_id, literal(run_id), target_membership.c.schedule),
                *(literal("left"), _at(now), null()),
            )
            .join(target, target.c.id == target_membership.c.target_id)
            .where(mine, _IS_MEMBER)
            .order_by(target_membership.c.target_id, target_membership.c.schedule)
        )
        connection.execute(insert(target_membership).from_select(_COLUMNS, leaving), given)
        gone = update(target).where(mine).values(retired_at=_leaving_at(now), fence=target.c.fence + 1)
        found = [Target(*key) for key in connection.execute(gone.returning(*TARGET_KEY), given)]
        _record(connection, run_id, found, "retired", target.c.retired_at)


def of_ended_schedules(
    connection: Connection, schedules: Container[str], configured: Container[Target]
) -> dict[str, list[Target]]:
    """The members of each schedule that is not among ``schedules`` any more, as far as they are still configured."""
    named = select(target_membership.c.schedule).where(target_membership.c.schedule.is_not(None)).distinct()
    ended = sorted(name for name in connection.execute(named).scalars() if name not in schedules)
    members = {name: list(_targets(connection, _MEMBERS, schedule=name)) for name in ended}
    kept = {name: [each for each in some if each in configured] for name, some in members.items()}
    return {name: some for name, some in kept.items() if some}


def leave_ended_schedules(
    connection: Connection, run_id: int, schedules: Container[str], configured: Container[Target], now: dt.datetime
) -> None:
    """Record that these members have left, so that no coverage gap outlasts its schedule. Raises RunClosed."""
    seals.require_open(connection, run_id)
    wait_for_turn(connection)
    for name, members in of_ended_schedules(connection, schedules, configured).items():
        _move(connection, run_id, members, "left", now, name)


def wait_for_turn(connection: Connection) -> None:
    """Wait until no other transaction records; SQLite has only one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(_IN_TURN))


_COLUMNS: Final = ("target_id", "run_id", "schedule", "kind", "at", "coverage_gap_seconds")


def _record(
    connection: Connection,
    run_id: int,
    targets: Sequence[Target],
    kind: str,
    at: ColumnElement[dt.datetime],
    schedule: str | None = None,
    gap: int | None = None,
) -> None:
    mine, given = _are(connection, targets)
    same = (literal(run_id), literal(schedule, Text()), literal(kind), at, literal(gap, BigInteger()))
    rows = select(target.c.id, *same).where(mine).order_by(*TARGET_KEY)
    connection.execute(insert(target_membership).from_select(_COLUMNS, rows), given)


def _move(
    connection: Connection,
    run_id: int,
    targets: Iterable[Target],
    kind: str,
    now: dt.datetime,
    schedule: str,
    gap: int | None = None,
) -> None:
    """Let targets join or leave a schedule, and bring their coverage gaps up to date; rows are locked in id order."""
    for some in _chunks(targets):
        if kind == "joined":
            register(connection, some)
        _record(connection, run_id, some, kind, _at(now), schedule, gap)
        mine, given = _are(connection, some)
        other = select(target.c.id).where(mine, target.c.coverage_gap_seconds != LONGEST_GAP)
        found = connection.execute(other.order_by(target.c.id).with_for_update(of=target), given).scalars().all()
        if found:
            which = update(target).where(target.c.id.in_(found))
            connection.execute(which.values(coverage_gap_seconds=LONGEST_GAP))


def _are(connection: Connection, targets: Sequence[Target]) -> tuple[ColumnElement[bool], Mapping[str, Any]]:
    return is_given(connection.dialect.name), GIVEN.bound(connection, targets)


def _at(now: dt.datetime) -> ColumnElement[dt.datetime]:
    """When something happens to a target: now, or at its latest event if the clock went back."""
    return _latest(now, _LATEST_AT)


def _leaving_at(now: dt.datetime) -> ColumnElement[dt.datetime]:
    """When a target retires: as ``_at``, and not before its last answer, which a run may have written since ``now``."""
    return _latest(now, _LATEST_AT, _LAST_SPAN_AT, _LAST_VERSION_AT, target.c.held_at)


def _latest(now: dt.datetime, *others: ColumnElement[Any]) -> ColumnElement[dt.datetime]:
    latest: ColumnElement[dt.datetime] = literal(now, UtcTime())
    for other in others:
        latest = case((latest < other, other), else_=latest)
    return latest


def _targets(connection: Connection, query: Select[Any], **given: Any) -> Iterator[Target]:
    with connection.execute(query, given, execution_options=STREAMED) as rows:
        for key in rows:
            yield Target(*key)


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    waiting = iter(items)
    while some := list(islice(waiting, _AT_ONCE)):
        yield some


class Retirement(msgspec.Struct, frozen=True):
    """The targets that were retired, or that were not because they would have been too many at once."""

    retired: tuple[Target, ...] = ()
    refused: tuple[Target, ...] = ()


def others(connection: Connection, configured: Container[Target], max_share: float | None) -> Retirement:
    """The targets outside ``configured``, to be retired unless they exceed ``max_share`` of all (None: no limit)."""
    known = select(*TARGET_KEY).where(target.c.retired_at.is_(None))
    gone, count = list[Target](), 0
    for each in _targets(connection, known.order_by(target.c.id)):
        count += 1
        if each not in configured:
            gone.append(each)
    if max_share is not None and len(gone) > share_of(max_share, count):
        return Retirement(refused=tuple(gone))
    return Retirement(retired=tuple(gone))
