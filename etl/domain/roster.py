"""Who joins and leaves an organisation, from its roster and a new answer. Pure.

| # | of the users | then |
|---|---|---|
| 1 | the answer has some that were not listed | they join |
| 2 | the answer has some that were missing | they are no longer missing |
| 3 | the answer lacks some, within the limits | they leave, except those that were missing already |
| 4 | the answer lacks some, over the limits | nobody leaves: they are *missing*, and stay targets |
| 5 | the answer lacks some, and a person has confirmed it | they leave, including those that were missing |

Over the limits: nobody is left, or at least ``max_emptied_targets`` users and more than ``max_emptied_share`` of those
listed are absent, those missing already included. A first answer without any user is over the limits, too: row 6.

| 6 | it is the first answer, and has no user | it is no roster: an error |
"""

from __future__ import annotations

from collections.abc import Set

import msgspec

from etl.domain.guard import Limits, share_of


class ListedUsers(msgspec.Struct, frozen=True):
    """The listed users of an organisation, and those of them that the latest answers lacked."""

    users: Set[str] = frozenset()
    missing: Set[str] = frozenset()


class RosterChanges(msgspec.Struct, frozen=True):
    """What an answer changes."""

    joined: Set[str] = frozenset()
    left: Set[str] = frozenset()
    newly_missing: Set[str] = frozenset()
    back: Set[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.joined or self.left or self.newly_missing or self.back)


def compared(listed: ListedUsers, answered: Set[str], limits: Limits, *, approved: bool = False) -> RosterChanges:
    """The table above."""
    absent = listed.users - answered
    joined, back = answered - listed.users, listed.missing & answered  # 1, 2
    if approved:
        return RosterChanges(joined, absent, back=back)  # 5
    if absent and _over(absent, listed.users, answered, limits):
        return RosterChanges(joined, newly_missing=absent - listed.missing, back=back)  # 4
    return RosterChanges(joined, absent - listed.missing, back=back)  # 3


def _over(absent: Set[str], listed: Set[str], answered: Set[str], limits: Limits) -> bool:
    many = len(absent) >= limits.max_emptied_targets and len(absent) > share_of(limits.max_emptied_share, len(listed))
    return many or not answered
