"""Which targets a schedule lists, as history: joined, left, retired and resumed.

| what a run finds | what it records |
|---|---|
| a schedule lists a target that is no member of it | `joined` |
| a member is no longer in its schedule's list | `left` |
| a target is in no schedule any more | `left`, for each schedule that it was a member of, and `retired` |
| a retired target is in a list again, or is asked again | `resumed` |

Of one target, no event is dated before an earlier one, even where the clock went back: so their order is proven by the
times, which the seals of their runs cover. And no target retires before its last answer that was written: it would
count as the first one after its return.

Writers take turns, so that ids are committed in order: a run that has seen event N has seen every event before it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
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

from etl.config.target_list import TargetList
from etl.database import STREAMED
from etl.domain.guard import share_of
from etl.domain.model import Target
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
_RETIRED: Final = select(*TARGET_KEY).where(target.c.retired_at.is_not(None)).order_by(target.c.id)


def latest(connection: Connection) -> int:
    """The highest id; 0 if nothing was recorded."""
    highest: int = connection.execute(select(func.coalesce(func.max(target_membership.c.id), 0))).scalar_one()
    return highest


def record(connection: Connection, run_id: int, lists: Lists, now: dt.datetime) -> None:
    """Record what differs between ``lists`` and the members of these schedules; new targets get their rows."""
    wait_for_turn(connection)
    listed = {name: _findable(targets) for name, targets in lists.items()}
    for name, targets in lists.items():
        members = TargetList(_targets(connection, _MEMBERS, schedule=name))
        joining = (each for each in targets if each not in members)
        for some in _chunks(joining):
            connection.execute(REGISTER[connection.dialect.name], _WANTED.bound(connection, sorted(some)))
            _insert(connection, run_id, some, "joined", now, name)
        for some in _chunks(each for each in members if each not in listed[name]):
            _insert(connection, run_id, some, "left", now, name)
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
                *(literal("left"), _at(now)),
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


def wait_for_turn(connection: Connection) -> None:
    """Wait until no other transaction records; SQLite has only one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(_IN_TURN))


def _insert(
    connection: Connection, run_id: int, targets: Iterable[Target], kind: str, now: dt.datetime, schedule: str
) -> None:
    wanted = _WANTED.select(connection.dialect.name).subquery("wanted").c
    mine = (target.c.org_id == wanted.org_id) & (target.c.user_id == wanted.user_id)
    rows = (
        select(target.c.id, literal(run_id), literal(schedule), literal(kind), _at(now))
        .join(wanted.org_id.table, mine & (target.c.expression == wanted.expression))
        .order_by(*TARGET_KEY)
    )
    _insert_selected(connection, rows, _WANTED.bound(connection, list(targets)))


def _insert_selected(connection: Connection, rows: Select[Any], given: Mapping[str, Any]) -> None:
    columns = ("target_id", "run_id", "schedule", "kind", "at")
    connection.execute(insert(target_membership).from_select(columns, rows), given)


def _insert_numbered(
    connection: Connection, run_id: int, target_ids: Sequence[int], kind: str, at: ColumnElement[dt.datetime]
) -> None:
    if target_ids:
        wanted = _NUMBERS.select(connection.dialect.name).subquery("wanted").c
        rows = select(target.c.id, literal(run_id), null(), literal(kind), at).order_by(target.c.id)
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
