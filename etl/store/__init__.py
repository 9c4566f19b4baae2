"""Everything that is written, and what is read in order to write it, in one transaction per batch."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Final

from sqlalchemy import Engine

from etl.database.transactions import Transactions, reads, writes
from etl.domain.answers import Detail
from etl.domain.model import Fence, Outcome, RunStatus, State, Target
from etl.domain.seal import targets_digest
from etl.errors import SigningError
from etl.store import (
    acknowledgements,
    answers,
    commit,
    fences,
    findings,
    lease,
    membership,
    notifications,
    retention,
    runs,
    seals,
    story,
    story_rows,
    story_writes,
    turnover,
    webhooks,
)
from etl.store.acknowledgements import Acknowledged, NewAcknowledgement
from etl.store.answers import CHANGES_WITH_DETAILS, Changed
from etl.store.bulk import grouped
from etl.store.commit import was_committed
from etl.store.failures import STALE
from etl.store.fences import RunBegun
from etl.store.locking import FenceConflict
from etl.store.membership import Retirement
from etl.store.notifications import ConditionChanges, OpenCondition, UnnotifiedRun
from etl.store.retention import Pruned
from etl.store.rosters import (
    StoredRoster,
    claim_roster,
    forget_rosters,
    roster_failed,
    roster_organisations,
    rosters_of,
    write_readings,
)
from etl.store.runs import NewRun
from etl.store.story_rows import FlowKey
from etl.store.turnover import NO_REMOVALS, Removals, TooManyRemovals

__all__ = [
    "CHANGES_WITH_DETAILS",
    "STALE",
    "Acknowledged",
    "Changed",
    "NewAcknowledgement",
    "NewRun",
    "Removals",
    "RunBegun",
    "Store",
    "StoredRoster",
    "TooManyRemovals",
    "UnnotifiedRun",
]

_REST_SECONDS: Final = 0.11
"""Between transactions that delete: otherwise a waiting writer, which tries a locked SQLite file ten times a second,
would find it locked each time."""


class Store(Transactions):
    """The writing side of a database whose schema is current. Safe to use from several threads.

    Every method raises DatabaseError (DatabaseUnreachable after a few tries) if the database refuses.
    """

    is_running = reads(runs.is_running)
    written_by = reads(runs.written_by)
    observed_by = reads(runs.observed_by)
    served_until = reads(runs.served_until)
    due = reads(runs.due)
    was_aborted = reads(runs.was_aborted)
    marks = reads(runs.marks)
    beat = writes(runs.beat)
    close_run = writes(seals.close)
    due_organisations = reads(story_rows.due_organisations)
    recount = reads(seals.recount)
    last_seal = reads(seals.last_seal)
    keep_timestamp = writes(seals.keep_timestamp)

    removals = reads(turnover.removal_sums)
    listed_workflows = reads(turnover.listed_workflows)
    changed_workflows = reads(answers.changed_workflows)

    rosters = reads(rosters_of)
    roster_organisations = reads(roster_organisations)
    claim_roster = writes(claim_roster)
    write_roster = writes(write_readings)
    forget_rosters = writes(forget_rosters)
    roster_failed = writes(roster_failed)

    lease_holder = reads(lease.lease_holder)
    take_lease = writes(lease.take_lease)
    release_lease = writes(lease.release_lease)
    verified = reads(lease.verified)
    keep_verified = writes(lease.keep_verified)

    known_rules = reads(findings.known_rules)
    last_seal_id = reads(findings.last_seal_id)
    something_written_since = reads(findings.something_written_since)
    open_findings = reads(findings.open_findings)
    write_evaluation = writes(findings.write_evaluation)
    note_unchanged = writes(findings.note_unchanged)
    remove_rules = writes(findings.remove_rules)

    unnotified_runs = reads(notifications.unnotified_runs)
    mark_notified = writes(notifications.mark_notified)
    known_targets = reads(notifications.known_targets)
    mark_overdue = writes(notifications.mark_overdue)
    clear_overdue = writes(notifications.clear_overdue)
    unnotified_conditions = reads(notifications.unnotified_conditions)
    mark_conditions_notified = writes(notifications.mark_conditions_notified)
    untold_rules = reads(notifications.untold_rules)
    mark_rules_notified = writes(notifications.mark_rules_notified)

    known_webhooks = reads(webhooks.webhooks)
    due_for_webhook = reads(webhooks.due)
    webhook_source = reads(webhooks.source)
    begin_webhooks = writes(webhooks.begin_webhooks)
    move_webhook = writes(webhooks.move_webhook)
    delay_webhook = writes(webhooks.delay_webhook)

    def __init__(
        self,
        engine: Engine,
        stop: threading.Event | None = None,
        applied: Callable[[float], None] = lambda seconds: None,
        sign: seals.Sign | None = None,
    ) -> None:
        """``applied`` is called with the seconds that each ``apply`` took, including retries, however it ended.

        ``sign`` signs the seals; see ``require_signing``.
        """
        super().__init__(engine, stop)
        self._applied = applied
        self._sign = sign
        self._digested: tuple[Sequence[Target], str] = ((), targets_digest(()))

    def require_signing(self) -> None:
        """Raise SigningError where the last seal is signed and this store signs none: the next one would be a finding
        for ever."""
        key_id = None if self._sign else self._read(seals.last_key_id)
        if key_id is not None:
            raise SigningError(
                f"The seals of this database are signed (key {key_id[:16]}), and a later one without a signature would "
                "be a finding for ever: set [seal] key_file, to this key or to a new one."
            )

    def begin_run(self, run: NewRun, now: dt.datetime, asked: Sequence[Target] = ()) -> int | None:
        """The id of a run that starts, to ask ``asked``; None if another run has its slot already.

        The lists of its schedules are recorded with it, unless an earlier run says that they are already.
        """
        known, digest = self._digested
        if known is not asked:  # a schedule usually has the same list in each run: it is not sorted again
            digest = targets_digest(asked)
            self._digested = (asked, digest)
        return self._write(
            lambda connection: runs.begin(connection, run, now, digest, asked),
            lambda run_id, connection: runs.was_begun(connection, run_id, run, now),
        )

    def finish_run(self, run_id: int, status: RunStatus, sums: Mapping[str, int], now: dt.datetime) -> bool:
        """Close a run, and seal it, in one transaction; False if it had been declared dead, which stays."""
        return self.seal_run(run_id, status, sums, now, closes=True)

    def seal_run(
        self, run_id: int, status: RunStatus, sums: Mapping[str, int], now: dt.datetime, *, closes: bool = False
    ) -> bool:
        """End a closed run: write its status, its sums and its seal; False if it has ended with another status.

        The sums of an aborted run are counted from what it wrote. With ``closes`` it is closed in the same transaction.
        """
        if status == "aborted":
            sums, latest_at = self.recount(run_id)
            now = max(now, latest_at or now)
        return self._write(
            lambda connection: (
                (not closes or seals.close(connection, run_id, now))
                and seals.end(connection, run_id, status, sums, now, self._sign)
            ),
            lambda _, connection: seals.is_sealed(connection, run_id, status),
        )

    def abort_abandoned_runs(self, now: dt.datetime) -> list[int]:
        """Declare runs whose heartbeat has stopped dead, and seal them; return their ids."""
        dead = self._write(lambda connection: runs.close_abandoned(connection, now))
        return [run_id for run_id in dead if self.seal_run(run_id, "aborted", {}, now)]

    @contextlib.contextmanager
    def _maintenance(self, now: dt.datetime) -> Iterator[int]:
        """A run of its own for writes that belong to no run with targets."""
        run = NewRun(origin="maintenance", host=socket.gethostname(), pid=os.getpid(), targets=0)
        run_id = self.begin_run(run, now)
        assert run_id is not None  # noqa: S101 - it has no slot that another could have taken
        yield run_id
        self.finish_run(run_id, "succeeded", {}, now)

    def fences(self, targets: Sequence[Target], *, register: bool = True, run: RunBegun | None = None) -> list[Fence]:
        """The fence of each of ``targets``. New ones get a row if ``register``; a ``run`` resumes retired ones.

        Raises RunClosed.
        """
        known = self._read(lambda connection: fences.read_fences(connection, targets))
        if register and (len(known) < len(targets) or any(fence.retired for fence in known.values())):
            new = set(targets) - known.keys()
            known = self._write(lambda connection: fences.register(connection, targets, new, run))
        return [known.get(target) or Fence(target=target) for target in targets]

    def states(self, target_ids: Sequence[int]) -> dict[int, State]:
        """The current states of ``target_ids``."""
        return self._read(lambda connection: fences.read_states(connection, target_ids)) if target_ids else {}

    def apply(self, run_id: int, outcomes: Sequence[Outcome], removals: Removals = NO_REMOVALS) -> set[int]:
        """Write ``outcomes`` in one transaction; return the target ids whose fence had changed (``stale``).

        An outcome that removes something has an approver, or its organisation is one of ``removals``. Raises
        TooManyRemovals, and writes nothing, if these are too many together with what others have committed. Raises
        RunClosed if the run was declared dead.
        """
        began, suspects = time.monotonic(), set[int]()
        try:
            while True:
                try:
                    return self._write(
                        lambda connection: commit.apply(connection, run_id, outcomes, removals, suspects),
                        lambda applied, connection: was_committed(connection, outcomes, applied),
                    ).stale
                except FenceConflict as conflict:
                    suspects.update(conflict.target_ids)
        finally:
            self._applied(time.monotonic() - began)

    def derive_events(self, run_id: int, began: dt.datetime, now: Callable[[], dt.datetime]) -> None:
        """Judge what the end of a run changes in organisations, and write it; see ``story``.

        ``began`` is when the run began.
        """
        for group in grouped(self.due_organisations(run_id, now()), itemgetter(1), story.MEMBERS_AT_ONCE):
            orgs = [org_id for org_id, _ in group]
            step = story.Step(run_id, began, now())
            differing: set[FlowKey] = set()
            while not self._derive(orgs, step, differing):
                pass

    def _derive(self, orgs: Sequence[str], step: story.Step, differing: set[FlowKey]) -> bool:
        """Whether it is done. If not, another step came in between, or first lists turned out to differ."""
        judged = self._read(lambda connection: story.read_steps(connection, orgs, step, differing))
        if not any(each.changes_something for each in judged):
            return True
        try:
            self._write(
                lambda connection: story_writes.write_steps(connection, judged, step),
                lambda _, connection: story_writes.were_written(connection, judged, step),
            )
        except story_writes.StoryConflict:
            return False
        except story_writes.FirstListsDiffer as found:
            differing |= found.flows
            return False
        return True

    def retire_others(
        self,
        configured: Container[Target],
        now: dt.datetime,
        max_share: float | None,
        schedules: Container[str] | None = None,
    ) -> Retirement:
        """Retire the targets that are no longer configured, unless they are more than ``max_share`` of all.

        ``schedules`` are the names of all schedules: configured members leave any other. None: nobody leaves one. A
        separate run, which asks for no target, does this.
        """
        found = self._read(lambda connection: membership.others(connection, configured, max_share))
        if found.retired:
            with self._maintenance(now) as run_id:
                self._write(lambda connection: membership.retire(connection, run_id, found.retired, now))
        if schedules is not None and self._read(
            lambda connection: membership.of_ended_schedules(connection, schedules, configured)
        ):
            with self._maintenance(now) as run_id:
                self._write(
                    lambda connection: membership.leave_ended_schedules(connection, run_id, schedules, configured, now)
                )
        return found

    def add_details(self, run_id: int, found: Sequence[Detail], *, keep_body: bool) -> None:
        """Append what EnOS said about workflows that a run found changed."""
        self._write(
            lambda connection: answers.add_details(connection, run_id, found, keep_body=keep_body),
            lambda _, connection: answers.details_were_added(connection, run_id, found),
        )

    def acknowledge(self, new: Sequence[NewAcknowledgement], now: dt.datetime) -> Acknowledged:
        """Append who agreed to what, all or none."""
        return self._write(
            lambda connection: acknowledgements.acknowledge(connection, new, now),
            lambda made, connection: acknowledgements.were_acknowledged(connection, made),
        )

    def revoke(self, number: int, by: str, note: str | None, now: dt.datetime) -> Acknowledged:
        """Append that an acknowledgement counts no longer. Raises UsageError where it does not count now."""
        return self._write(
            lambda connection: acknowledgements.revoke(connection, number, by, note, now),
            lambda made, connection: acknowledgements.were_acknowledged(connection, made),
        )

    def keep_conditions(self, found: Sequence[OpenCondition], now: dt.datetime) -> ConditionChanges:
        """Store what is wrong now; nothing is written if nothing has changed."""
        if set(self._read(notifications.open_conditions)) == set(found):
            return ConditionChanges([], [])
        return self._write(lambda connection: notifications.keep_conditions(connection, found, now))

    def prune_runs(
        self,
        before: dt.datetime,
        now: dt.datetime,
        *,
        has_receivers: bool,
        dry_run: bool = False,
        go_on: Callable[[], bool] = lambda: True,
    ) -> Pruned:
        """Delete the issues of runs that ended before ``before`` and that nothing needs; the runs and seals stay.

        ``has_receivers``: whether notifications go to anybody, who may still have to be told of a run.

        A separate run does this in many small transactions, so it may be killed in between; all issues of a run go in
        one. ``go_on`` is called before each of them.
        """
        found = self._read(lambda connection: retention.prunable(connection, before, now, has_receivers=has_receivers))
        if dry_run:
            return Pruned(len(found), sum(issues for _, issues in found))
        done = Pruned(0, 0)
        if found and go_on():
            with self._maintenance(now) as run_id:
                for some in grouped(found, itemgetter(1), retention.ISSUES_AT_ONCE):
                    if self._stop.is_set() or not go_on():
                        break
                    done = self._prune(run_id, [each for each, _ in some], now, done)
        while self._write(turnover.delete_old) == turnover.DELETED_AT_ONCE:
            pass
        return done

    def _prune(self, run_id: int, run_ids: Sequence[int], now: dt.datetime, before: Pruned) -> Pruned:
        issues = self._write(lambda connection: retention.delete_issues(connection, run_id, run_ids, now))
        self.beat(run_id)
        if self._engine.dialect.name == "sqlite":
            self._stop.wait(_REST_SECONDS)
        return Pruned(before.runs + len(run_ids), before.issues + issues)
