"""The rosters of ``users = "all"`` on the command line: before a sync, and in a plan."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence, Set
from typing import Final

from etl.cli import console
from etl.cli.application import Application
from etl.config import Schedule
from etl.errors import FlowtrailError, GatewayError
from etl.store import Store
from etl.sync import Refreshed, Rosters, organisations

_PATIENCE_SECONDS: Final = 5.0
"""How long a sync waits for rosters if older ones are stored; a later answer counts for the next sync."""
_STOP_SECONDS: Final = 5.0
_NAMED: Final = 10
"""How many users a sentence names."""


@contextlib.contextmanager
def refreshed(
    app: Application, store: Store, schedules: Sequence[Schedule], *, accept: bool
) -> Iterator[Sequence[Schedule]]:
    """The schedules with the users of their rosters as targets; rosters that are due are asked for first.

    If a roster fails or is slow, the last one stays in force. Raises FlowtrailError if none ever came and there is
    nothing else to ask. Requests for rosters that are still under way are cut off at the block's end.
    """
    orgs = organisations(schedules)
    if not orgs:
        yield schedules
        return
    refresh = _Refresh(app.rosters(store), orgs, accept=accept)
    try:
        refresh.wait(_wait_seconds(store, orgs, accept=accept))
        expanded = app.rosters(store).expand(schedules)
        _require_targets(expanded)
        yield expanded
    finally:
        refresh.end(app.stop)


class _Refresh:
    """Asks for rosters in a separate thread."""

    def __init__(self, rosters: Rosters, orgs: set[str], *, accept: bool) -> None:
        self._rosters = rosters
        self._orgs = orgs
        self._accept = accept
        self._done: list[Refreshed] = []
        self._error: FlowtrailError | None = None
        self._thread = threading.Thread(target=self._work, name="rosters", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._done = self._rosters.refresh(self._orgs, accept=self._accept)
        except FlowtrailError as error:
            self._error = error

    def wait(self, seconds: float | None) -> None:
        """Wait at most this long (None: until they are there). A stop cuts the requests off, which ends the wait."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            console.complain(f"The roster did not come within {seconds:g} s; the last one stays in force.", "yellow")
        elif self._error is not None:
            raise self._error
        for each in self._done:
            if each.error:
                console.complain(f"No roster of {each.org_id}: {each.error}", "yellow")
            if each.moves.newly_missing:
                console.complain(
                    f"The roster of {each.org_id} lacks {len(each.moves.newly_missing)} users: too many to believe "
                    "without confirmation, so they stay. If it is right, run `flowtrail sync --retire`.",
                    "yellow",
                )

    def end(self, stop: threading.Event) -> None:
        if self._thread.is_alive():
            stop.set()
            self._thread.join(_STOP_SECONDS)


def _wait_seconds(store: Store, orgs: set[str], *, accept: bool) -> float | None:
    """How long to wait; None if there is nothing to do without the answer, or a person waits for it."""
    stored_rosters = store.rosters(orgs)
    stand = all(org in stored_rosters and stored_rosters[org].answered_at is not None for org in orgs)
    return _PATIENCE_SECONDS if stand and not accept else None


def _require_targets(schedules: Sequence[Schedule]) -> None:
    unlisted = {roster.org_id for schedule in schedules for roster in schedule.unlisted}
    for org in sorted(unlisted):
        console.complain(f"The users of {org} are not known, so none of them is asked for.", "red")
    if not any(schedule.targets for schedule in schedules):
        raise FlowtrailError(
            "There is no target to ask for: no roster has come yet. `flowtrail check` says what is wrong."
        )


def planned_rosters(
    app: Application, store: Store, schedules: Sequence[Schedule]
) -> tuple[Sequence[Schedule], list[Refreshed]]:
    """The schedules with the users that their rosters have now, and what that would change; nothing is written.

    If a roster does not come, the last one stays in force.
    """
    users, found = {}, []
    rosters = app.rosters(store)
    stored_rosters = store.rosters(organisations(schedules))
    for org in sorted(organisations(schedules)):
        try:
            members, moves = rosters.planned(org)
        except GatewayError as error:
            found.append(Refreshed(org, error=str(error), error_code=error.code))
            members = stored_rosters[org].users if org in stored_rosters else set()
        else:
            found.append(Refreshed(org, moves))
        if members:
            users[org] = members
    return [schedule.with_users(users) for schedule in schedules], found


def show_moves(rosters: Sequence[Refreshed]) -> None:
    """Print a sentence on who would join and leave each organisation."""
    for each in rosters:
        if each.error:
            console.complain(f"No roster of {each.org_id}: {each.error}", "yellow")
            continue
        would = {"would join": each.moves.joined, "would leave": each.moves.left, "lacking": each.moves.newly_missing}
        differences = "; ".join(f"{len(users)} {what} ({_some(users)})" for what, users in would.items() if users)
        console.say(f"Roster of {each.org_id}: {differences or 'as before'}.")


def moves_of(each: Refreshed) -> dict[str, object]:
    """The same as JSON values."""
    moves = each.moves
    return {
        "org_id": each.org_id,
        "error": each.error or None,
        "joins": sorted(moves.joined),
        "leaves": sorted(moves.left),
        "missing": sorted(moves.newly_missing),
    }


def _some(users: Set[str]) -> str:
    return ", ".join(sorted(users)[:_NAMED]) + (", ..." if len(users) > _NAMED else "")
