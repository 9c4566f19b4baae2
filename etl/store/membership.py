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
    ColumnElement,
    Connection,
    Select,
    TextClause,
    bindparam,
    case,
    func,
    insert,
    literal,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from etl.config.targets import TargetList
from etl.database import STREAMED
from etl.domain.guard import share_of
from etl.domain.model import USUAL_COVERAGE_GAP, Target
from etl.schema import TARGET_KEY, UtcTime, change_set, observation, target, target_membership
from etl.store import seals
from etl.store.bulk import BulkValues

T = TypeVar("T")
Lists = Mapping[str, Sequence[Target]]
"""All the targets of each schedule, by its name."""

_AT_ONCE: Final = 5_000
_IN_TURN: Final = "SELECT pg_advisory_xact_lock(hashtext(current_schema() || '.target_membership'))"
_NUMBERS: Final = BulkValues(target_id="bigint")
_WANTED: Final = BulkValues(org_id="text", user_id="text", expression="text")
_DIALECTS: Final = (postgresql, sqlite)
REGISTER: Final = {
    module.dialect.name: module.insert(target)
    .from_select(TARGET_KEY, _WANTED.select(module.dialect.name))
    .on_conflict_do_nothing(index_elements=TARGET_KEY)
    for module in _DIALECTS
}
"""Makes rows for targets that have none."""

_last: Final = target_membership.alias("last")
_IS_MEMBER: Final = (target_membership.c.kind == "joined") & (
    target_membership.c.id
    == select(func.max(_last.c.id))
    .where(_last.c.schedule == target_membership.c.schedule, _last.c.target_id == target_membership.c.target_id)
    .scalar_subquery()
)
_LATEST_AT: Final = (
    select(func.max(_last.c.at, type_=UtcTime()))
    .where(_last.c.target_id == target.c.id)
    .correlate(target)
    .scalar_subquery()
)
_LAST_SPAN_AT: Final = (
    select(func.max(observation.c.last_at, type_=UtcTime()))
    .where(observation.c.target_id == target.c.id, observation.c.version == target.c.version)
    .correlate(target)
    .scalar_subquery()
)
_LAST_VERSION_AT: Final = (
    select(func.max(change_set.c.observed_at, type_=UtcTime()))
    .where(change_set.c.target_id == target.c.id)
    .correlate(target)
    .scalar_subquery()
)
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


def seconds(gap: dt.timedelta) -> int:
    """A coverage gap in whole seconds; a part of one counts as one."""
    return math.ceil(gap.total_seconds())


_JOINED_WITH: Final = """
    (SELECT joined.coverage_gap_seconds
     FROM target_membership joined JOIN target listed ON listed.id = joined.target_id
     WHERE joined.schedule = :listing AND joined.kind = 'joined'
       AND listed.org_id = :listed_org AND listed.user_id = :listed_user AND listed.expression = :listed_expression
     ORDER BY joined.id DESC LIMIT 1) = :listed_gap"""


def joined_with(schedule: str, of: Target, gap: dt.timedelta) -> TextClause:
    """Whether a target joined a schedule with this coverage gap, when it last did. As text, because SQLAlchemy leaves
    out the names of tables in RETURNING on SQLite."""
    mine = {"listed_org": of.org_id, "listed_user": of.user_id, "listed_expression": of.expression}
    return text(_JOINED_WITH).bindparams(listing=schedule, listed_gap=seconds(gap), **mine)


def latest(connection: Connection) -> int:
    """The highest id; 0 if nothing was recorded."""
    highest: int = connection.execute(select(func.coalesce(func.max(target_membership.c.id), 0))).scalar_one()
    return highest


def record(
    connection: Connection, run_id: int, lists: Lists, now: dt.datetime, gaps: Mapping[str, dt.timedelta]
) -> None:
    """Record what differs between ``lists`` and the members of these schedules; new targets get their rows.

    ``gaps`` are the coverage gaps of the schedules.
    """
    wait_for_turn(connection)
    listed = {name: _findable(targets) for name, targets in lists.items()}
    for name, targets in lists.items():
        members = TargetList(_targets(connection, _MEMBERS, schedule=name))
        gap = seconds(gaps.get(name, USUAL_COVERAGE_GAP))
        is_as_before = connection.execute(_GAP, {"schedule": name}).scalar() in (None, gap)
        for some in _chunks(each for each in targets if not (is_as_before and each in members)):
            connection.execute(REGISTER[connection.dialect.name], _WANTED.bound(connection, sorted(some)))
            _insert(connection, run_id, some, "joined", now, name, gap)
            _keep_longest_gap(connection, some)
        for some in _chunks(each for each in members if each not in listed[name]):
            _insert(connection, run_id, some, "left", now, name)
            _keep_longest_gap(connection, some)
    back = [each for each in _targets(connection, _RETIRED) if any(each in targets for targets in listed.values())]
    resume(connection, run_id, back, now)


def resume(connection: Connection, run_id: int, targets: Sequence[Target], now: dt.datetime) -> None:
    """Call retired targets back; the caller must have waited for its turn (``wait_for_turn``)."""
    for some in _chunks(targets):
        given = _WANTED.bound(connection, sorted(some))
        wanted = _WANTED.select(connection.dialect.name).subquery("wanted").c
        mine = (target.c.org_id == wanted.org_id, target.c.user_id == wanted.user_id)
        back = update(target).where(*mine, target.c.expression == wanted.expression, target.c.retired_at.is_not(None))
        found = (
            connection.execute(
                back.values(retired_at=None, away_since=target.c.retired_at).returning(target.c.id), given
            )
            .scalars()
            .all()
        )
        _insert_numbered(connection, run_id, found, "resumed", _at(now))


def retire(connection: Connection, run_id: int, targets: Sequence[Target], now: dt.datetime) -> None:
    """Retire targets: they leave each schedule that has them, and are no longer asked for. The answer to a request that
    is under way becomes stale. Raises RunClosed."""
    seals.require_open(connection, run_id)
    wait_for_turn(connection)
    for some in _chunks(targets):
        wanted = _WANTED.select(connection.dialect.name).subquery("wanted").c
        mine = (target.c.org_id == wanted.org_id) & (target.c.user_id == wanted.user_id)
        mine &= (target.c.expression == wanted.expression) & target.c.retired_at.is_(None)
        given = _WANTED.bound(connection, some)
        leaving = (
            select(
                *(target_membership.c.target_id, literal(run_id), target_membership.c.schedule),
                *(literal("left"), _at(now), null()),
            )
            .join(target, target.c.id == target_membership.c.target_id)
            .join(wanted.org_id.table, mine)
            .where(_IS_MEMBER)
            .order_by(target_membership.c.target_id, target_membership.c.schedule)
        )
        _insert_selected(connection, leaving, given)
        gone = update(target).where(mine).values(retired_at=_leaving_at(now), fence=target.c.fence + 1)
        found = connection.execute(gone.returning(target.c.id), given).scalars().all()
        _insert_numbered(connection, run_id, found, "retired", target.c.retired_at)


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
        for some in _chunks(members):
            _insert(connection, run_id, some, "left", now, name)
            _keep_longest_gap(connection, some)


def wait_for_turn(connection: Connection) -> None:
    """Wait until no other transaction records; SQLite has only one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(_IN_TURN))


def _insert(
    connection: Connection,
    run_id: int,
    targets: Iterable[Target],
    kind: str,
    now: dt.datetime,
    schedule: str,
    gap_seconds: int | None = None,
) -> None:
    wanted = _WANTED.select(connection.dialect.name).subquery("wanted").c
    mine = (target.c.org_id == wanted.org_id) & (target.c.user_id == wanted.user_id)
    rows = (
        select(
            target.c.id, literal(run_id), literal(schedule), literal(kind), _at(now), literal(gap_seconds, BigInteger())
        )
        .join(wanted.org_id.table, mine & (target.c.expression == wanted.expression))
        .order_by(*TARGET_KEY)
    )
    _insert_selected(connection, rows, _WANTED.bound(connection, list(targets)))


def _keep_longest_gap(connection: Connection, targets: Iterable[Target]) -> None:
    """Bring the coverage gaps of these targets up to date; rows are locked in id order."""
    wanted = _WANTED.select(connection.dialect.name).subquery("wanted").c
    mine = (target.c.org_id == wanted.org_id) & (target.c.user_id == wanted.user_id)
    other = select(target.c.id).join(wanted.org_id.table, mine & (target.c.expression == wanted.expression))
    other = other.where(target.c.coverage_gap_seconds != LONGEST_GAP).order_by(target.c.id).with_for_update(of=target)
    numbers = connection.execute(other, _WANTED.bound(connection, list(targets))).scalars().all()
    if numbers:
        which = _NUMBERS.select(connection.dialect.name).subquery("which").c.target_id
        longest = update(target).where(target.c.id == which).values(coverage_gap_seconds=LONGEST_GAP)
        connection.execute(longest, _NUMBERS.bound(connection, [(number,) for number in numbers]))


def _insert_selected(connection: Connection, rows: Select[Any], given: Mapping[str, Any]) -> None:
    columns = ("target_id", "run_id", "schedule", "kind", "at", "coverage_gap_seconds")
    connection.execute(insert(target_membership).from_select(columns, rows), given)


def _insert_numbered(
    connection: Connection, run_id: int, target_ids: Sequence[int], kind: str, at: ColumnElement[dt.datetime]
) -> None:
    if target_ids:
        wanted = _NUMBERS.select(connection.dialect.name).subquery("wanted").c
        rows = select(target.c.id, literal(run_id), null(), literal(kind), at, null()).order_by(target.c.id)
        rows = rows.join(wanted.target_id.table, wanted.target_id == target.c.id)
        _insert_selected(connection, rows, _NUMBERS.bound(connection, [(number,) for number in target_ids]))


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


def _findable(targets: Sequence[Target]) -> Container[Target]:
    return targets if isinstance(targets, TargetList) else frozenset(targets)


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
    with connection.execute(known.order_by(target.c.id), execution_options=STREAMED) as rows:
        for key in rows:
            count += 1
            if (each := Target(*key)) not in configured:
                gone.append(each)
    if max_share is not None and len(gone) > share_of(max_share, count):
        return Retirement(refused=tuple(gone))
    return Retirement(retired=tuple(gone))
