"""Everything that is written, and what is read in order to write it, in one transaction per batch."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import Final, TypeVar

from sqlalchemy import Connection, Engine

from etl.database import reading, writing
from etl.domain.detail import Detail
from etl.domain.guard import Limits, Sum
from etl.domain.model import Fence, Outcome, RunStatus, State, Target
from etl.domain.roster import RosterChanges, compared
from etl.errors import DatabaseUnreachable, SigningError
from etl.store import (
    commit,
    details,
    fences,
    lease,
    notifications,
    open_conditions,
    projection,
    retention,
    retirement,
    rosters,
    runs,
    seals,
    story_rows,
    story_writes,
    timestamps,
    turnover,
    verifications,
)
from etl.store.commit import STALE
from etl.store.commit_lookup import was_committed
from etl.store.details import CHANGES_WITH_DETAILS, Changed
from etl.store.fences import RunBegun
from etl.store.locking import FenceConflict
from etl.store.notifications import NotifiableTarget, UnnotifiedRun
from etl.store.open_conditions import ConditionChanges, OpenCondition, UntoldCondition
from etl.store.retention import Pruned
from etl.store.retirement import Retirement
from etl.store.rosters import StoredRoster
from etl.store.runs import Begun, Due, Marks, NewRun, Written
from etl.store.story_rows import FlowKey, StoryKey
from etl.store.timestamps import LastSeal
from etl.store.turnover import NO_REMOVALS, Removals, TooManyRemovals
from etl.store.verifications import Verified

__all__ = [
    "CHANGES_WITH_DETAILS",
    "STALE",
    "Changed",
    "Due",
    "LastSeal",
    "NewRun",
    "NotifiableTarget",
    "Pruned",
    "Removals",
    "Retirement",
    "RunBegun",
    "Store",
    "StoredRoster",
    "TooManyRemovals",
    "UnnotifiedRun",
    "Written",
]

T = TypeVar("T")
_PAUSES_SECONDS: Final = (0.2, 1.0, 3.0)
_REST_SECONDS: Final = 0.11


class Store:
    """The writing side of a database whose schema is current. Safe to use from several threads.

    Every method raises DatabaseError (DatabaseUnreachable after a few tries) if the database refuses.
    """

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
        self._engine = engine
        self._sign = sign
        self._recorded: dict[str, tuple[Sequence[Target], int]] = {}
        """The lists of schedules as last recorded, and the highest membership id then."""
        self._digested: tuple[Sequence[Target], str] = ((), runs.digest_of_targets(()))
        self._applied = applied
        self._stop = stop or threading.Event()
        self._turn = threading.Lock() if engine.dialect.name == "sqlite" else contextlib.nullcontext()
        """SQLite takes one writer at a time: waiting here is cheaper than retrying when it is busy."""

    def require_signing(self) -> None:
        """Raise SigningError where the last seal is signed and this store signs none: the next one would be a finding
        for ever."""
        key_id = None if self._sign else self._read(seals.last_key_id)
        if key_id is not None:
            raise SigningError(
                f"The seals of this database are signed (key {key_id[:16]}), and a later one without a signature would "
                "be a finding for ever: set [seal] key_file, to this key or to a new one."
            )

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

    def removals(self, run_id: int | None, org_ids: Collection[str], limits: Limits) -> dict[str, Sum]:
        """The removals of each organisation within the window, without those of a run."""
        return self._read(lambda connection: turnover.removal_sums(connection, run_id, org_ids, limits))

    def apply(self, run_id: int, outcomes: Sequence[Outcome], removals: Removals = NO_REMOVALS) -> set[int]:
        """Write ``outcomes`` in one transaction; return the target ids whose fence had changed (``stale``).

        An outcome that removes something has an approver, or its organisation is one of ``removals``. Raises
        TooManyRemovals, and writes nothing, if these are too many together with what others have committed. Raises
        RunClosed if the run was declared dead.
        """
        began = time.monotonic()
        try:
            return self._apply(run_id, outcomes, removals)
        finally:
            self._applied(time.monotonic() - began)

    def _apply(self, run_id: int, outcomes: Sequence[Outcome], removals: Removals) -> set[int]:
        suspects: frozenset[int] = frozenset()
        while True:
            try:
                return self._write(
                    lambda connection: commit.apply(connection, run_id, outcomes, removals, suspects),  # noqa: B023 - run at once
                    lambda applied, connection: was_committed(connection, outcomes, applied),
                ).stale
            except FenceConflict as moved:
                suspects |= moved.target_ids

    def project(
        self, run_id: int, began: dt.datetime, now: Callable[[], dt.datetime], gap_of: Callable[[Target], dt.timedelta]
    ) -> None:
        """Judge what the end of a run changes in the stories of organisations, and write it; see ``projection``.

        ``began`` is when the run began; ``gap_of`` returns how long a user may be unheard before counting as silent.
        """
        due = self._read(lambda connection: story_rows.due_stories(connection, run_id))
        for stories in projection.batches(due):
            step = projection.Step(run_id, began, now())
            differing: set[FlowKey] = set()
            while not self._project(stories, step, gap_of, differing):
                pass

    def _project(
        self, stories: Sequence[StoryKey], step: projection.Step, gap_of: projection.GapOf, differing: set[FlowKey]
    ) -> bool:
        """Whether it is done. If not, another step came in between, or first lists turned out to differ."""
        judged = self._read(lambda connection: projection.read_steps(connection, stories, step, gap_of, differing))
        if not any(story.changes_something for story in judged):
            return True
        try:
            self._write(
                lambda connection: story_writes.write_steps(connection, judged, step),
                lambda _, connection: story_writes.were_written(connection, judged, step),
            )
        except story_writes.StoryMoved:
            return False
        except story_writes.FirstListsDiffer as found:
            differing |= found.flows
            return False
        return True

    def is_running(self, run_id: int, host: str, pid: int) -> bool:
        """Whether this run of that process is under way in this database."""
        return self._read(lambda connection: runs.is_running(connection, run_id, host, pid))

    def written_by(self, run_id: int, targets: Sequence[Target]) -> dict[Target, Written]:
        """What a run has already written for ``targets``: those that changed or have an issue."""
        return self._read(lambda connection: runs.written_by(connection, run_id, targets))

    def begin_run(self, run: NewRun, now: dt.datetime, asked: Sequence[Target] = ()) -> int | None:
        """The id of a run that starts, to ask ``asked``; None if another run has its slot already.

        The lists of its schedules are recorded with it, unless this process knows that they are already.
        """
        digest = self._digest(asked)
        begun = self._write(
            lambda connection: self._begin(connection, run, now, digest, asked),
            lambda begun, connection: runs.was_begun(connection, begun and begun.run_id, run, now),
        )
        if begun is None:
            return None
        self._recorded.update({name: (targets, begun.membership_id) for name, targets in run.lists.items()})
        return begun.run_id

    def _begin(
        self, connection: Connection, run: NewRun, now: dt.datetime, digest: str, asked: Sequence[Target]
    ) -> Begun | None:
        begun = runs.begin(connection, run, now, digest, asked)
        if begun is None or all(
            self._recorded.get(name, (None, 0)) == (targets, begun.membership_id) for name, targets in run.lists.items()
        ):
            return begun
        return runs.record_lists(connection, begun, run, now)

    def _digest(self, asked: Sequence[Target]) -> str:
        """The digest of the targets. A schedule usually has the same list in each run: then it is not sorted again."""
        known, digest = self._digested
        if known is not asked:
            digest = runs.digest_of_targets(asked)
            self._digested = (asked, digest)
        return digest

    def beat(self, run_id: int) -> None:
        """Renew the heartbeat of a run."""
        self._write(lambda connection: runs.beat(connection, run_id))

    def finish_run(self, run_id: int, status: RunStatus, sums: Mapping[str, int], now: dt.datetime) -> bool:
        """Close a run, write how it ended, and seal it; False if it had been declared dead, which stays."""
        return self.close_run(run_id, now) and self.seal_run(run_id, status, sums, now)

    def close_run(self, run_id: int, now: dt.datetime) -> bool:
        """Let nobody write for a run any more; False if another process has closed it."""
        return self._write(lambda connection: seals.close(connection, run_id, now))

    def seal_run(self, run_id: int, status: RunStatus, sums: Mapping[str, int], now: dt.datetime) -> bool:
        """End a closed run: write its status, its sums and its seal; False if that was done already.

        The sums of an aborted run are counted from what it wrote.
        """
        if status == "aborted":
            sums, latest_at = self._read(lambda connection: seals.reckon(connection, run_id))
            now = max(now, latest_at or now)
        ended = self._write(
            lambda connection: seals.end(connection, run_id, status, sums, now, self._sign),
            lambda _, connection: seals.is_sealed(connection, run_id, status),
        )
        return ended or self._read(lambda connection: seals.is_sealed(connection, run_id, status))

    def recount(self, run_id: int) -> Mapping[str, int]:
        """The sums of a run, counted from its rows; ``unchanged`` is 0: an unchanged target leaves no row."""
        return self._read(lambda connection: seals.reckon(connection, run_id)).sums

    def abort_abandoned_runs(self, now: dt.datetime) -> list[int]:
        """Declare runs whose heartbeat has stopped dead, and seal them; return their ids."""
        dead = self._write(lambda connection: runs.close_abandoned(connection, now))
        return [run_id for run_id in dead if self.seal_run(run_id, "aborted", {}, now)]

    def served_until(self, schedule: str) -> dt.datetime | None:
        """The slot of the latest run of a schedule, which served it or is serving it; None if it never ran."""
        return self._read(lambda connection: runs.served_until(connection, schedule))

    def due(self, schedule: str, slot: dt.datetime) -> Due:
        """What a run for a due slot must know about earlier runs, read at one moment."""
        return self._read(lambda connection: runs.due(connection, schedule, slot))

    def was_aborted(self, schedule: str, slot: dt.datetime) -> bool:
        """Whether a run for exactly this slot was aborted."""
        return self._read(lambda connection: runs.was_aborted(connection, schedule, slot))

    def retire_others(self, configured: Container[Target], now: dt.datetime, max_share: float | None) -> Retirement:
        """Retire the targets that are no longer configured, unless they are more than ``max_share`` of all.

        A separate run, which asks nobody, does this.
        """
        found = self._read(lambda connection: retirement.others(connection, configured, max_share))
        if found.retired:
            with self._maintenance(now) as run_id:
                self._write(lambda connection: retirement.retire(connection, run_id, found.retired, now))
        return found

    @contextlib.contextmanager
    def _maintenance(self, now: dt.datetime) -> Iterator[int]:
        """A run for what is written outside of runs that ask."""
        run = NewRun(origin="maintenance", host=socket.gethostname(), pid=os.getpid(), targets=0)
        run_id = self.begin_run(run, now)
        assert run_id is not None  # noqa: S101 - it has no slot that another could have taken
        yield run_id
        self.finish_run(run_id, "succeeded", {}, now)

    def changed_workflows(self, run_id: int, most: int) -> list[Changed]:
        """The first ``most`` workflows that a run found changed, each with a user who sees it."""
        return self._read(lambda connection: details.changed_workflows(connection, run_id, most))

    def add_details(self, run_id: int, found: Sequence[Detail], *, keep_body: bool) -> None:
        """Append what EnOS said about workflows that a run found changed."""
        self._write(
            lambda connection: details.add(connection, run_id, found, keep_body=keep_body),
            lambda _, connection: details.were_added(connection, run_id, found),
        )

    def rosters(self, org_ids: Collection[str]) -> dict[str, StoredRoster]:
        """The rosters of those organisations whose rosters were ever asked for."""
        return self._read(lambda connection: rosters.rosters_of(connection, org_ids))

    def claim_roster(self, org_id: str, now: dt.datetime, every: dt.timedelta) -> bool:
        """Whether an organisation's roster is due, and the caller is to ask for it."""
        return self._write(lambda connection: rosters.claim(connection, org_id, now, every))

    def write_roster(
        self, org_id: str, answered: Set[str], limits: Limits, now: dt.datetime, *, approved: bool = False
    ) -> RosterChanges:
        """Write an answer about an organisation's users, compared with those that are listed at that moment."""

        def written(connection: Connection) -> RosterChanges:
            rosters.lock(connection, org_id)
            listed = rosters.rosters_of(connection, [org_id])[org_id].roster
            moves = compared(listed, answered, limits, approved=approved)
            rosters.write(connection, org_id, moves, now)
            return moves

        return self._write(written)

    def roster_organisations(self) -> set[str]:
        """The organisations whose rosters were ever asked for."""
        return self._read(rosters.organisations)

    def forget_rosters(self, wanted: Collection[str]) -> None:
        """Delete the rosters of organisations outside ``wanted``."""
        self._write(lambda connection: rosters.forget(connection, wanted))

    def roster_failed(self, org_id: str, code: str, message: str, now: dt.datetime) -> None:
        """Record that the request for a roster failed; the last one stays in force."""
        self._write(lambda connection: rosters.fail(connection, org_id, code, message, now))

    def marks(self) -> Marks:
        """A value that changes whenever any run begins, writes or ends."""
        return self._read(runs.marks)

    def prune_runs(
        self,
        before: dt.datetime,
        now: dt.datetime,
        *,
        dry_run: bool = False,
        go_on: Callable[[], bool] = lambda: True,
    ) -> Pruned:
        """Delete the issues of runs that ended before ``before`` and that nothing needs; the runs and seals stay.

        A separate run does this in many small transactions, so it may be killed in between; all issues of a run go in
        one. ``go_on`` is called before each of them.
        """
        found = list(retention.prunable(self._read, before, now))
        if dry_run:
            return Pruned(sum(len(each.run_ids) for each in found), sum(each.issues for each in found))
        done = Pruned(0, 0)
        if found and go_on():
            with self._maintenance(now) as run_id:
                done = self._prune(run_id, found, now, go_on)
        while self._write(turnover.delete_old) == turnover.DELETED_AT_ONCE:
            pass
        return done

    def _prune(
        self, run_id: int, batches: Iterable[retention.PrunableRuns], now: dt.datetime, go_on: Callable[[], bool]
    ) -> Pruned:
        done = Pruned(0, 0)
        for batch in batches:
            if self._stop.is_set() or not go_on():
                break
            issues = self._write(lambda connection: retention.delete_issues(connection, run_id, batch.run_ids, now))  # noqa: B023 - run at once
            done = done.plus(Pruned(len(batch.run_ids), issues))
            self.beat(run_id)
            self._yield_to_writers()
        return done

    def _yield_to_writers(self) -> None:
        """Pause between transactions: otherwise a waiting writer, which tries a locked SQLite file ten times a second,
        would find it locked each time."""
        if self._engine.dialect.name == "sqlite":
            self._stop.wait(_REST_SECONDS)

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

    def untold_conditions(self) -> list[UntoldCondition]:
        """Conditions that have begun or ended without all receivers knowing it."""
        return self._read(open_conditions.untold)

    def mark_conditions_told(self, told: Sequence[UntoldCondition], now: dt.datetime) -> None:
        """Record that every receiver knows of these."""
        self._write(lambda connection: open_conditions.mark_told(connection, told, now))

    def last_seal(self) -> LastSeal | None:
        """The last seal, and when one was last stamped; None where no run has ended yet."""
        return self._read(timestamps.last_seal)

    def keep_timestamp(self, seal_id: int, stamped_at: dt.datetime, token: bytes) -> bool:
        """Write down what an authority said of a seal; False where another process was faster."""
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

    def _read(self, work: Callable[[Connection], T]) -> T:
        for pause in (*_PAUSES_SECONDS, None):
            try:
                with reading(self._engine) as connection:
                    return work(connection)
            except DatabaseUnreachable:
                if pause is None or self._stop.wait(pause):
                    raise
        raise AssertionError("the last pause raises")

    def _write(
        self, work: Callable[[Connection], T], was_committed: Callable[[T, Connection], bool] | None = None
    ) -> T:
        """Run ``work`` in one transaction, and again if the database went away. A lost COMMIT is looked up by
        ``was_committed``, which gets what ``work`` returned."""
        for pause in (*_PAUSES_SECONDS, None):
            result: list[T] = []
            try:
                with self._turn, writing(self._engine) as connection:
                    result.append(work(connection))
                return result[0]
            except DatabaseUnreachable:
                if result and was_committed is not None and self._read(partial(was_committed, result[0])):
                    return result[0]
                if pause is None or self._stop.wait(pause):
                    raise
        raise AssertionError("the last pause raises")
