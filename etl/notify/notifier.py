"""Notifies receivers of finished runs and overdue targets, at least once each, in a thread that nothing waits for."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine

from etl.domain.model import Target
from etl.errors import DatabaseError
from etl.log import get_logger
from etl.notify import digest
from etl.notify.digest import Digest, Message, digest_of
from etl.notify.receivers import ALARM, ALARM_OVER, Key, Outgoing, ReceiverState, Subscription, Timing
from etl.printable import counted
from etl.report.conditions import IN_DIGESTS
from etl.report.health import Overdue
from etl.store import Store, UnnotifiedRun
from etl.store.notifications import UnnotifiedCondition, UntoldRule
from etl.system.background import BackgroundLoop

RULE_KINDS: Final = frozenset(("rule_broken", "rule_mended"))
LOOK_BACK: Final = dt.timedelta(hours=24)
"""Runs that finished longer ago are no longer sent; so this is how long a receiver may be away."""
_LOOK_SECONDS: Final = 30.0
_STANDING_BY_SECONDS: Final = 2.0
_STOP_SECONDS: Final = 2.0
_MOST_MESSAGES: Final = 10
"""More messages than this for one receiver are combined into one."""
_MOST_AT_ONCE: Final = 500
_USUAL: Final = Timing()


class Alarm(NamedTuple):
    """A message for every receiver that subscribes to failures, and what to call when all have accepted it."""

    message: Message
    delivered: Callable[[], None]


def _condition_message(unnotified: UnnotifiedCondition) -> Message:
    found = unnotified.condition
    if unnotified.ended_at is not None:
        return Message(f"Flowtrail: over: {found.code}", f"{found.said}: this has ended.")
    since = f"{found.since.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
    return Message(f"Flowtrail: {found.code}", f"{found.said}, since {since}. {found.remedy}")


def _rule_message(untold: UntoldRule) -> Message:
    """It names no finding: a receiver may be meant for some organisations only."""
    name, title = digest.quoted(untold.rule), digest.quoted(untold.title)
    if not untold.open:
        how = "this is so again" if untold.ended_by == "mended" else "the rule was changed, and finds nothing"
        return Message(f"Flowtrail: rule mended: {name}", f"{title}: {how}.")
    many = f"{counted(untold.open, 'finding')}{f', {untold.new:,} of them new' if untold.new < untold.open else ''}"
    said = f"{title}: {many} ({untold.severity}). `flowtrail rules list {name}` shows them."
    return Message(f"Flowtrail: rule broken: {name}", said)


@dataclass(eq=False)
class Notifier:
    """Finds finished runs without a notification, and targets that became overdue, and notifies receivers.

    A run is marked as notified (``sync_run.notified_at``) once every
    receiver has accepted its digest or wants nothing of it. Which receivers have accepted is kept in memory only: after
    a restart, a run that some of them have not accepted is sent to all of them again.
    """

    engine: Engine
    store: Store
    receivers: InitVar[Iterable[Subscription]]
    _: KW_ONLY
    is_active: Callable[[], bool]
    """Whether this replica may send."""
    freshness: InitVar[Callable[[], Freshness]]
    clock: Callable[[], dt.datetime]
    alarm: Callable[[], Alarm | None] = lambda: None
    """What to send although this replica cannot work, until it returns None."""
    timing: InitVar[Timing] = _USUAL
    enos_zone: dt.tzinfo | None = None

    def __post_init__(
        self, receivers: Iterable[Subscription], freshness: Callable[[], Freshness], timing: Timing
    ) -> None:
        self._receivers = [ReceiverState(subscription, timing, self.clock) for subscription in receivers]
        self._loop = BackgroundLoop("notify", self._step)
        self._waiting: dict[int, UnnotifiedRun] = {}
        self._overdue = OverdueNotices(self.store, freshness, self.clock, timing)
        self._conditions: dict[Key, UnnotifiedCondition] = {}
        self._rules: dict[Key, UntoldRule] = {}
        self._log = get_logger("etl.notify")

    def start(self) -> None:
        """Begin to look for what receivers must be told, and to send it."""
        self._loop.start()

    def wake(self) -> None:
        """Look now, after a run. From any thread."""
        self._loop.wake()

    def stop(self) -> None:
        """Begin nothing more. A message on its way is left alone: it arrives, or is sent again after a restart."""
        self._loop.stop(_STOP_SECONDS)

    def failing(self) -> list[tuple[str, str, dt.datetime]]:
        """The receivers that could not be told: their names, why, and since when."""
        return [
            (state.subscription.sender.name, state.why, state.failing_since)
            for state in self._receivers
            if state.failing_since is not None
        ]

    def flush(self, within_seconds: float) -> bool:
        """Send what is due, in this thread; return whether every receiver has accepted it in time."""
        give_up = time.monotonic() + within_seconds
        self._turn()
        while any(state.delivery for state in self._receivers) and time.monotonic() < give_up:
            self._loop.wait(max(0.0, give_up - time.monotonic()))
            self._turn()
        return not self._pending()

    # ------------------------------------------------------------------------------------------------- the thread

    def _step(self) -> float:
        """Do what can be done now; return the seconds until the next step, if nothing wakes the loop earlier."""
        wait_seconds = _LOOK_SECONDS
        try:
            if self.is_active():
                wait_seconds = self._turn()
            else:
                self._overdue.stand_by()
                self._waiting, wait_seconds = {}, _STANDING_BY_SECONDS
                self._send_alarm()
        except DatabaseError as error:
            self._log.warning("nothing_told", error=str(error), again_in_seconds=wait_seconds)
        except Exception:
            self._log.exception("notifier_failed")
        return wait_seconds

    def _turn(self) -> float:
        """Send what can be sent now; return the seconds until something else can be."""
        now = time.monotonic()
        for state in self._receivers:
            state.collect(now)
        self._find_runs()
        if any(state.wants_overdue() for state in self._receivers):
            self._overdue.find(now)
        self._conditions = {
            ("began" if each.ended_at is None else "ended", f"{each.condition.code} {each.condition.cause}"): each
            for each in self.store.unnotified_conditions()
        }
        if any(RULE_KINDS & {*state.subscription.on} for state in self._receivers):
            untold = self.store.untold_rules()
            self._rules = {
                ("rule_broken" if each.open else "rule_mended", f"{each.rule} {each.newest}"): each for each in untold
            }
        digests: dict[tuple[Any, ...], Digest | None] = {}
        for state in self._receivers:
            if state.is_free(now):
                state.send(list(self._outgoing(state, digests)), self.wake)
        self._record_acknowledged()
        return min([_LOOK_SECONDS, *(state.not_before - now for state in self._receivers if state.not_before > now)])

    def _send_alarm(self) -> None:
        """Send the alarm although nothing can be written; once, or again while a receiver is away."""
        alarm = self.alarm()
        if alarm is None:
            return
        now = time.monotonic()
        states = [state for state in self._receivers if state.wants_alarms()]
        for state in states:
            state.collect(now)
            if state.is_free(now) and ALARM not in state.acknowledged:
                state.send([Outgoing(alarm.message, {ALARM})], self.wake)
        if states and all(ALARM in state.acknowledged for state in states):
            alarm.delivered()

    # --------------------------------------------------------------------------------------------- what is pending

    def _find_runs(self) -> None:
        since = self.clock() - LOOK_BACK
        unnotified = {run.id: run for run in self.store.unnotified_runs(since)}
        for run in self._waiting.values():
            if run.id not in unnotified and run.finished_at < since:
                self._log.warning("given_up", run_id=run.id, why="its receivers were away for too long")
        self._waiting = unnotified

    def _outgoing(self, state: ReceiverState, digests: dict[tuple[Any, ...], Digest | None]) -> Iterator[Outgoing]:
        """The messages that a receiver has not accepted yet. What it does not subscribe to counts as accepted."""
        if state.alarmed:
            yield Outgoing(Message("Flowtrail works again", "It can write to the database again."), {ALARM_OVER})
        for key, unnotified in self._conditions.items():
            if key not in state.acknowledged:
                if state.wants_alarms() and unnotified.condition.code not in IN_DIGESTS:
                    yield Outgoing(_condition_message(unnotified), {key})
                else:
                    state.acknowledged.add(key)
        for key, rule in self._rules.items():
            if key not in state.acknowledged:
                if key[0] in state.subscription.on:
                    yield Outgoing(_rule_message(rule), {key})
                else:
                    state.acknowledged.add(key)
        overdue = self._overdue.message(state)
        if overdue is not None:
            yield overdue
        subscription, found = state.subscription, list[tuple[Key, Digest]]()
        pending = [run for run in self._waiting.values() if ("run", run.id) not in state.acknowledged]
        for run in pending[:_MOST_AT_ONCE]:
            wanted = (run.id, tuple(subscription.on), tuple(subscription.orgs), subscription.unacknowledged)
            if wanted not in digests:
                digests[wanted] = digest_of(self.engine, run, *wanted[1:], enos_zone=self.enos_zone)
            digested = digests[wanted]
            if digested is None:
                state.acknowledged.add(("run", run.id))
            else:
                found.append((("run", run.id), digested))
        if len(found) > _MOST_MESSAGES:
            yield Outgoing(digest.together([each for _, each in found]), {key for key, _ in found})
        else:
            yield from (Outgoing(digest.message(each), {key}) for key, each in found)

    # ------------------------------------------------------------------------------------------- what is settled

    def _record_acknowledged(self) -> None:
        """Record in the database what every receiver has accepted, and forget it here."""
        now = self.clock()
        everybody = self._pending().intersection(*(state.acknowledged for state in self._receivers))
        for run_id in [run_id for run_id in self._waiting if ("run", run_id) in everybody]:
            if not self.store.mark_notified(run_id, now):
                self._log.info("told_by_another_too", run_id=run_id)
            del self._waiting[run_id]
        self._overdue.settle(everybody, now)
        conditions = [self._conditions.pop(key) for key in list(self._conditions) if key in everybody]
        if conditions:
            self.store.mark_conditions_notified(conditions, now)
        rules = [self._rules.pop(key) for key in list(self._rules) if key in everybody]
        if rules:
            self.store.mark_rules_notified(rules, now)
        pending = self._pending()
        for state in self._receivers:
            state.acknowledged &= pending

    def _pending(self) -> set[Key]:
        runs: set[Key] = {("run", run_id) for run_id in self._waiting}
        return runs | self._overdue.pending | self._conditions.keys() | self._rules.keys()


_OVERDUE_SHARE: Final = 20
"""Looking for overdue targets takes at most one twentieth of the time, however many there are."""


class Freshness(NamedTuple):
    """The overdue targets, and when the others were last observed."""

    overdue: Sequence[Overdue]
    observed: dict[Target, dt.datetime]


class _Notice(NamedTuple):
    """A target that receivers must still be told of."""

    key: Key
    target: Target
    line: str


@dataclass(eq=False)
class OverdueNotices:
    """From time to time, compares which targets are overdue with what receivers have been told."""

    store: Store
    freshness: Callable[[], Freshness]
    clock: Callable[[], dt.datetime]
    timing: Timing

    def __post_init__(self) -> None:
        self._look_at: float | None = None
        self._notices: list[_Notice] = []

    @property
    def pending(self) -> Set[Key]:
        """What receivers have not been told yet."""
        return {each.key for each in self._notices}

    def stand_by(self) -> None:
        """Forget everything while another replica is active."""
        self._look_at = None

    def find(self, now: float) -> None:
        """Look for overdue targets, if it is time."""
        if self._look_at is None:
            self._look_at = now + self.timing.overdue_after_seconds
        if now < self._look_at:
            return
        fresh = self.freshness()
        overdue = {each.target: each for each in fresh.overdue}
        self._notices, forgotten = [], []
        for known in self.store.known_targets():
            late, seen_at = overdue.get(known.target), fresh.observed.get(known.target)
            if late is not None and known.notified_at is None:
                self._notices.append(_Notice(("overdue", known.id), known.target, _overdue_line(late)))
            elif late is None and known.notified_at is not None:
                clock_was_ahead = known.notified_at > self.clock()
                if seen_at is not None and (seen_at > known.notified_at or clock_was_ahead):
                    line = f"{digest.quoted(str(known.target))}: observed again"
                    self._notices.append(_Notice(("observed", known.id), known.target, line))
                else:
                    forgotten.append(known.id)
        if forgotten:
            self.store.clear_overdue(forgotten)
        took = time.monotonic() - now
        self._look_at = now + max(self.timing.overdue_every_seconds, _OVERDUE_SHARE * took)

    def message(self, state: ReceiverState) -> Outgoing | None:
        """The message that a receiver still has to get; what it does not subscribe to counts as acknowledged."""
        pending = [notice for notice in self._notices if notice.key not in state.acknowledged]
        mine = [notice for notice in pending if state.wants_overdue() and state.wants_org(notice.target.org_id)]
        keys = {notice.key for notice in mine}
        state.acknowledged |= {notice.key for notice in pending} - keys
        if not mine:
            return None
        parts = digest.gather(
            ("overdue" if notice.key[0] == "overdue" else "recovered", notice.line) for notice in mine
        )
        summary = f"At {self.clock().astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC."
        return Outgoing(digest.message(Digest(name="", summary=summary, parts=parts)), keys)

    def settle(self, acknowledged: Set[Key], now: dt.datetime) -> None:
        """Record what every receiver has acknowledged, and forget it here."""
        settled = self.pending & acknowledged
        overdue, observed = (
            [int(number) for kind, number in settled if kind == each] for each in ("overdue", "observed")
        )
        if overdue:
            self.store.mark_overdue(overdue, now)
        if observed:
            self.store.clear_overdue(observed)
        self._notices = [notice for notice in self._notices if notice.key not in settled]


def _overdue_line(late: Overdue) -> str:
    seen = f"last seen {late.last_observed_at:%Y-%m-%d %H:%M:%S} UTC" if late.last_observed_at else "never seen"
    return f"{digest.quoted(str(late.target))}: {seen}, schedule {digest.quoted(late.schedule)}"
