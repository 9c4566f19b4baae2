"""The stored rosters of organisations: the users that are targets where ``users = "all"``.

Of a user only the id is stored; whoever left stays for as long as the guard's window counts it. A failed request
changes no user: the last roster stays in force, also after a restart.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence, Set

import msgspec
from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select, update

from etl.domain.guard import Limits
from etl.domain.rosters import RosterChanges, RosterUser, compared
from etl.schema import UtcTime, roster, roster_user
from etl.store.bulk import insert_into


class StoredRoster(msgspec.Struct, frozen=True):
    """A stored roster, and how well it is known. ``answered_at`` is None if no answer ever came."""

    org_id: str
    known: Mapping[str, RosterUser]
    """The listed users, and those that left within the guard's window."""
    answered_at: dt.datetime | None
    failing_since: dt.datetime | None
    error_code: str | None
    error: str | None

    @property
    def users(self) -> set[str]:
        """The listed users, those missing included."""
        return {user for user, each in self.known.items() if each.left_at is None}


def rosters_of(connection: Connection, org_ids: Collection[str]) -> dict[str, StoredRoster]:
    """The rosters of those ``org_ids`` that were ever asked for."""
    users: dict[str, dict[str, RosterUser]] = defaultdict(dict)
    for org, user, *times in connection.execute(select(roster_user).where(roster_user.c.org_id.in_(org_ids))):
        users[org][user] = RosterUser(*times)
    asked = select(
        roster.c.org_id, roster.c.answered_at, roster.c.failing_since, roster.c.error_code, roster.c.error
    ).where(roster.c.org_id.in_(org_ids))
    return {org: StoredRoster(org, users[org], *rest) for org, *rest in connection.execute(asked)}


def claim_roster(connection: Connection, org_id: str, now: dt.datetime, every: dt.timedelta) -> bool:
    """Whether the roster is due and the caller must ask for it; of several processes only one gets True. A roster that
    never came is always due. A time ahead of now comes from a clock that was wrong."""
    due = or_(roster.c.answered_at.is_(None), roster.c.asked_at <= now - every, roster.c.asked_at > now)
    first = insert_into(connection, roster).values(org_id=org_id, asked_at=now)
    claimed = first.on_conflict_do_update(index_elements=["org_id"], set_={"asked_at": now}, where=due)
    return connection.execute(claimed.returning(roster.c.org_id)).first() is not None


def write_readings(
    connection: Connection,
    org_id: str,
    readings: Sequence[Set[str]],
    limits: Limits,
    now: dt.datetime,
    *,
    approved: bool = False,
) -> RosterChanges:
    """Write one or two readings of a roster, compared with the users that are listed at that moment."""
    connection.execute(select(roster.c.org_id).where(roster.c.org_id == org_id).with_for_update())
    known = rosters_of(connection, [org_id])[org_id].known
    moves = compared(known, readings, now, limits, approved=approved)
    answered = {"answered_at": now, "failing_since": None, "error_code": None, "error": None}
    connection.execute(update(roster).where(roster.c.org_id == org_id).values(answered))
    ours = (roster_user.c.org_id == org_id, roster_user.c.user_id == bindparam("user"))
    _each(connection, update(roster_user).where(*ours).values(left_at=now, missing_since=None), moves.left)
    _each(connection, update(roster_user).where(*ours).values(missing_since=now), moves.newly_missing)
    _each(connection, update(roster_user).where(*ours).values(missing_since=None), moves.back)
    _each(connection, delete(roster_user).where(*ours), moves.forgotten | moves.joined)
    if moves.joined:
        rows = [{"org_id": org_id, "user_id": user, "listed_since": now} for user in sorted(moves.joined)]
        connection.execute(insert(roster_user), rows)
    return moves


def roster_failed(connection: Connection, org_id: str, code: str, message: str, now: dt.datetime) -> None:
    """Record that the request failed. The time of the first failure in a row stays."""
    since = func.coalesce(roster.c.failing_since, now, type_=UtcTime())
    failed = {"failing_since": since, "error_code": code, "error": message}
    connection.execute(update(roster).where(roster.c.org_id == org_id).values(failed))


def roster_organisations(connection: Connection) -> set[str]:
    """The organisations whose rosters were ever asked for."""
    return set(connection.execute(select(roster.c.org_id)).scalars())


def forget_rosters(connection: Connection, wanted: Collection[str]) -> None:
    """Delete the rosters of all organisations outside ``wanted``."""
    for org_id in sorted(roster_organisations(connection) - set(wanted)):
        connection.execute(delete(roster_user).where(roster_user.c.org_id == org_id))
        connection.execute(delete(roster).where(roster.c.org_id == org_id))


def _each(connection: Connection, statement: object, users: Set[str]) -> None:
    if users:
        connection.execute(statement, [{"user": user} for user in sorted(users)])  # type: ignore[call-overload]
