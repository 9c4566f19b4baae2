"""Who the users of an organisation are, for ``users = "all"``: asked for rarely, and without delaying a run."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from typing import Final

import msgspec

from etl.config import Schedule
from etl.domain.guard import Limits
from etl.domain.rosters import RosterChanges, RosterUser, compared
from etl.errors import DatabaseError, GatewayError, Interrupted
from etl.log import get_logger
from etl.store import Store

_AT_ONCE: Final = 4
"""Organisations asked for at the same time."""
_EMPTY: Final = "the organisation has no users, by its roster: nothing is known of whom to ask"
_REMEDY: Final = "the last roster stands: its users are asked for as before"


class Refreshed(msgspec.Struct, frozen=True):
    """The result of asking for one roster: ``moves``, or ``error`` (a sentence)."""

    org_id: str
    moves: RosterChanges = RosterChanges()
    error: str = ""


@dataclass(eq=False)
class Rosters:
    """The rosters that schedules use, as stored and as EnOS has them. Safe to use from several threads."""

    store: Store
    ask: Callable[[str], frozenset[str]]
    """Returns the ids of an organisation's users, within the deadline, or raises GatewayError."""
    _: KW_ONLY
    limits: Limits
    every: dt.timedelta
    clock: Callable[[], dt.datetime]

    def __post_init__(self) -> None:
        self._log = get_logger("etl.rosters")

    def expand(self, schedules: Iterable[Schedule]) -> tuple[Schedule, ...]:
        """The schedules, with the users of every known roster as targets; the others stay unlisted."""
        schedules = tuple(schedules)
        stored = self.store.rosters(organisations(schedules))
        users = {org: roster.users for org, roster in stored.items() if roster.answered_at is not None}
        return tuple(schedule.with_users(users) for schedule in schedules)

    def refresh(self, org_ids: Collection[str], *, accept: bool = False) -> list[Refreshed]:
        """Ask for the rosters that are due, and write the changes; rosters that are not due are left out.

        ``accept``: a person has confirmed the answer, so it is asked for now, and users that it lacks leave.
        """
        every = dt.timedelta(0) if accept else self.every
        due = [org for org in sorted(org_ids) if self.store.claim_roster(org, self.clock(), every)]
        if not due:
            return []
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="roster") as pool:
            return [done for done in pool.map(lambda org: self._refreshed(org, accept), due) if done is not None]

    def read(self, org_id: str, known: Mapping[str, RosterUser], *, accept: bool = False) -> tuple[Set[str], ...]:
        """EnOS's roster, read a second time if the first reading lacks somebody. Raises GatewayError, or
        Interrupted."""
        first = self.ask(org_id)
        if not compared(known, [first], self.clock(), self.limits, approved=accept).doubted:
            return (first,)
        return first, self.ask(org_id)

    def planned(self, org_id: str) -> tuple[set[str], RosterChanges]:
        """An organisation's users by its roster as it is now, and what that would change; nothing is written. Raises
        GatewayError, or Interrupted."""
        stored = self.store.rosters([org_id]).get(org_id)
        known = stored.known if stored else {}
        moves = compared(known, self.read(org_id, known), self.clock(), self.limits)
        return ((stored.users if stored else set()) | moves.joined) - moves.left, moves

    def keep_only(self, schedules: Iterable[Schedule]) -> None:
        """Delete the rosters that none of ``schedules`` (all of them) uses any more."""
        wanted = organisations(schedules)
        if self.store.roster_organisations() - wanted:
            self.store.forget_rosters(wanted)

    def _refreshed(self, org_id: str, accept: bool) -> Refreshed | None:
        try:
            known = self.store.rosters([org_id])[org_id].known
            readings = self.read(org_id, known, accept=accept)
            if not known and not readings[0]:
                return self._failed(org_id, "empty", _EMPTY)
            moves = self.store.write_roster(org_id, readings, self.limits, self.clock(), approved=accept)
        except Interrupted:
            return None
        except GatewayError as error:
            return self._failed(org_id, error.code, str(error))
        self._log_changes(org_id, moves)
        return Refreshed(org_id, moves)

    def _failed(self, org_id: str, code: str, message: str) -> Refreshed:
        with suppress(DatabaseError):
            self.store.roster_failed(org_id, code, message, self.clock())
        self._log.warning("roster_failed", org=org_id, error_code=code, error=message, remedy=_REMEDY)
        return Refreshed(org_id, error=message)

    def _log_changes(self, org_id: str, moves: RosterChanges) -> None:
        if moves.joined or moves.left:
            self._log.info("roster_changed", org=org_id, joined=len(moves.joined), left=len(moves.left))
        if moves.newly_missing:
            remedy = "nobody is retired for it: if it is right, run `flowtrail sync --retire`"
            self._log.warning("roster_shrank", org=org_id, missing=len(moves.newly_missing), remedy=remedy)


def organisations(schedules: Iterable[Schedule]) -> set[str]:
    """The organisations whose rosters ``schedules`` use."""
    return {roster.org_id for schedule in schedules for roster in schedule.rosters}
