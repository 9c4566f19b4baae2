"""Who joins and leaves an organisation, from its roster and one or two readings of it. Pure.

A reading is a whole roster, page by page. EnOS may change it meanwhile, and then somebody who moves to a page that was
read already is in none. So whoever a reading lacks is doubted, as a removal is (``docs/guard.md`` has examples):

| # | a user | then |
|---|---|---|
| R1 | is not listed, and a reading has them | joins |
| R2 | is missing, and a reading has them | is no longer missing |
| R3 | is listed, and the only reading lacks them | doubted: nothing happens, and the whole roster is read again |
| R4 | is listed, both readings lack them, and the sum is below the limit | leaves |
| R5 | is listed, both readings lack them, and the sum reaches the limit, or nobody is left | is *missing*: stays |
| R6 | is missing, and the readings lack them | is still missing |
| R7 | is listed or missing, both readings lack them, and a person has confirmed it | leaves; the window starts anew |

The sum is everybody the readings lack, whoever is missing already included, and everybody who left within the window
and is not back. The limit is ``max_emptied_targets`` users, or ``max_emptied_share`` of those that were listed at the
window's start if these are more. A roster that came first within the window counts as it was then; whoever joined
later makes no room for others to leave.

A first reading without any user is no roster, but an error.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence, Set

import msgspec

from etl.domain.guard import Limits, emptied_targets


class RosterUser(msgspec.Struct, frozen=True):
    """A user who is listed, or left within the guard's window. ``missing_since``: while nobody has confirmed that."""

    listed_since: dt.datetime
    missing_since: dt.datetime | None = None
    left_at: dt.datetime | None = None


class RosterChanges(msgspec.Struct, frozen=True):
    """What readings change. ``doubted``: the users for whom the roster is read again. ``forgotten``: those who left,
    and no longer count."""

    joined: Set[str] = frozenset()
    left: Set[str] = frozenset()
    newly_missing: Set[str] = frozenset()
    back: Set[str] = frozenset()
    doubted: Set[str] = frozenset()
    forgotten: Set[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.joined or self.left or self.newly_missing or self.back)


def compared(
    known: Mapping[str, RosterUser],
    readings: Sequence[Set[str]],
    now: dt.datetime,
    limits: Limits,
    *,
    approved: bool = False,
) -> RosterChanges:
    """The table above, for one or two readings. ``known`` are the listed users, and those that left."""
    gone = {user for user, each in known.items() if each.left_at is not None}
    counted = {user for user in gone if _is_counted(known[user], now, limits.window)}
    present: Set[str] = frozenset().union(*readings)
    listed = known.keys() - gone
    missing = {user for user in listed if known[user].missing_since is not None}
    absent = listed - present
    lost = absent if approved else absent - missing  # R6
    moves = RosterChanges(present - listed, back=missing & present, forgotten=gone - counted - present)  # R1, R2
    if len(readings) == 1:
        return msgspec.structs.replace(moves, doubted=lost)  # R3
    if approved:
        return msgspec.structs.replace(moves, left=lost, forgotten=(gone - present) | lost)  # R7
    had = _listed_at_start(known, gone - counted, now - limits.window)
    if present and len(counted - present) + len(absent) < emptied_targets(had, limits).limit:
        return msgspec.structs.replace(moves, left=lost)  # R4
    return msgspec.structs.replace(moves, newly_missing=lost)  # R5


def _is_counted(user: RosterUser, now: dt.datetime, window: dt.timedelta) -> bool:
    """Whether a leave counts. One that is further ahead than a window comes from a clock that was wrong."""
    return user.left_at is not None and abs(now - user.left_at) < window


def _listed_at_start(known: Mapping[str, RosterUser], uncounted: Set[str], start: dt.datetime) -> int:
    first = min((each.listed_since for each in known.values()), default=start)
    return sum(each.listed_since <= max(start, first) for user, each in known.items() if user not in uncounted)
