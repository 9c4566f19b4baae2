"""What the service writes outside runs: rosters, its lease, notifications, checks of the trail, and time stamps."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence, Set

from sqlalchemy import Connection

from etl.domain.guard import Limits
from etl.domain.roster import RosterChanges, compared
from etl.store import (
    lease,
    notifications,
    open_conditions,
    rosters,
    timestamps,
    verifications,
)
from etl.store.notifications import NotifiableTarget, UnnotifiedRun
from etl.store.open_conditions import ConditionChanges, OpenCondition, UnnotifiedCondition
from etl.store.rosters import StoredRoster
from etl.store.timestamps import LastSeal
from etl.store.transactions import Transactions
from etl.store.verifications import Verified


class ServiceRecords(Transactions):
    """The part of a ``Store`` that only the service and its commands need."""

    def rosters(self, org_ids: Collection[str]) -> dict[str, StoredRoster]:
        """The rosters of all organisations for which one was ever requested."""
        return self._read(lambda connection: rosters.rosters_of(connection, org_ids))

    def claim_roster(self, org_id: str, now: dt.datetime, every: dt.timedelta) -> bool:
        """Whether an organisation's roster is due, and the caller is to ask for it."""
        return self._write(lambda connection: rosters.claim(connection, org_id, now, every))

    def write_roster(
        self, org_id: str, readings: Sequence[Set[str]], limits: Limits, now: dt.datetime, *, approved: bool = False
    ) -> RosterChanges:
        """Write one or two readings of a roster, compared with the users that are listed at that moment."""

        def written(connection: Connection) -> RosterChanges:
            rosters.lock(connection, org_id)
            known = rosters.rosters_of(connection, [org_id])[org_id].known
            moves = compared(known, readings, now, limits, approved=approved)
            rosters.write(connection, org_id, moves, now)
            return moves

        return self._write(written)

    def roster_organisations(self) -> set[str]:
        """The organisations for which a roster was ever requested."""
        return self._read(rosters.organisations)

    def forget_rosters(self, wanted: Collection[str]) -> None:
        """Delete the rosters of organisations outside ``wanted``."""
        self._write(lambda connection: rosters.forget(connection, wanted))

    def roster_failed(self, org_id: str, code: str, message: str, now: dt.datetime) -> None:
        """Record that the request for a roster failed; the last one stays in force."""
        self._write(lambda connection: rosters.fail(connection, org_id, code, message, now))

    def take_lease(self, name: str, holder: str) -> bool:
        """Take or renew a lease, by the database's clock; False while another replica holds it."""
        return self._write(lambda connection: lease.take(connection, name, holder))

    def release_lease(self, name: str, holder: str) -> None:
        """Release a lease."""
        self._write(lambda connection: lease.release(connection, name, holder))

    def lease_holder(self, name: str) -> str | None:
        """Who holds a lease now."""
        return self._read(lambda connection: lease.holder_of(connection, name))

    def unnotified_runs(self, since: dt.datetime) -> list[UnnotifiedRun]:
        """The runs that finished since then and are not marked as notified."""
        return self._read(lambda connection: notifications.unnotified_runs(connection, since))

    def mark_notified(self, run_id: int, now: dt.datetime) -> bool:
        """Mark a run as notified; False if another process has done so."""
        return self._write(lambda connection: notifications.mark_notified(connection, run_id, now))

    def known_targets(self) -> list[NotifiableTarget]:
        """The targets with their ids, and since when receivers know that one is overdue."""
        return self._read(notifications.known_targets)

    def mark_overdue(self, target_ids: Sequence[int], now: dt.datetime) -> None:
        """Record that receivers were notified that these targets are overdue."""
        self._write(lambda connection: notifications.mark_overdue(connection, target_ids, now))

    def clear_overdue(self, target_ids: Sequence[int]) -> None:
        """Record that these targets are no longer overdue."""
        self._write(lambda connection: notifications.clear_overdue(connection, target_ids))

    def keep_conditions(self, found: Sequence[OpenCondition], now: dt.datetime) -> ConditionChanges:
        """Store what is wrong now; nothing is written if nothing has changed."""
        if set(self._read(open_conditions.listed)) == set(found):
            return ConditionChanges([], [])
        return self._write(lambda connection: open_conditions.keep(connection, found, now))

    def unnotified_conditions(self) -> list[UnnotifiedCondition]:
        """Conditions that have begun or ended without all receivers knowing it."""
        return self._read(open_conditions.unnotified)

    def mark_conditions_notified(self, notified: Sequence[UnnotifiedCondition], now: dt.datetime) -> None:
        """Record that every receiver knows of these."""
        self._write(lambda connection: open_conditions.mark_notified(connection, notified, now))

    def last_seal(self) -> LastSeal | None:
        """The last seal, and when one was last stamped; None where no run has ended yet."""
        return self._read(timestamps.last_seal)

    def keep_timestamp(self, seal_id: int, stamped_at: dt.datetime, token: bytes) -> bool:
        """Store a seal's time stamp; False if another process has stored one already."""
        return self._write(
            lambda connection: timestamps.keep(connection, seal_id, stamped_at, token),
            lambda _, connection: timestamps.is_kept(connection, seal_id, token),
        )

    def verified(self) -> list[Verified]:
        """The service's last check of the trail, of each kind."""
        return self._read(verifications.latest)

    def keep_verified(self, done: Verified) -> None:
        """Store a check of the trail."""
        self._write(lambda connection: verifications.keep(connection, done))
