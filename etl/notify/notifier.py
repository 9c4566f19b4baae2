"""Notifies receivers of finished runs and overdue targets, at least once each, in a thread that nothing waits for."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import Engine

from etl.domain.model import Target
from etl.errors import DatabaseError
from etl.notify import digest
from etl.notify.digest import Digest, Message
from etl.notify.news import digest_of
from etl.notify.receivers import Sender
from etl.report.conditions import TOLD_BY_DIGESTS
from etl.report.overdue import Overdue
from etl.store import Store, UnnotifiedRun
from etl.store.open_conditions import UntoldCondition
from etl.system.background import BackgroundLoop

LOOK_BACK: Final = dt.timedelta(hours=24)
"""Runs that finished longer ago are not sent any more: for so long a receiver may be away."""
_LOOK_SECONDS: Final = 30.0
_STANDING_BY_SECONDS: Final = 2.0
_LAST_WORDS_SECONDS: Final = 2.0
_MOST_MESSAGES: Final = 10
"""Where more messages wait for one receiver, they become one."""
_MOST_AT_ONCE: Final = 500
_OVERDUE_SHARE: Final = 20
"""Looking for overdue targets takes at most this part (a twentieth) of the time, however many there are."""

_ALARMING: Final = frozenset(("failed", "overdue"))
"""A subscription to one of these gets alarms, whatever its organisations."""

Key = tuple[str, int | str]
"""("run", its id), ("overdue", target id), ("observed", target id), ("began" or "ended", a condition), or the alarm."""
_ALARM: Final[Key] = ("alarm", 0)
_ALARM_OVER: Final[Key] = ("alarm over", 0)


class Freshness(NamedTuple):
    """The overdue targets, and when the others were last observed."""

    overdue: Sequence[Overdue]
    observed: dict[Target, dt.datetime]


class Subscription(NamedTuple):
    """A receiver, and the kinds and organisations that it is notified of (no ``orgs``: all)."""

    sender: Sender
    on: Sequence[str]
    orgs: Sequence[str]


class Alarm(NamedTuple):
    """A message for every receiver that subscribes to trouble, and what to call when all have accepted it."""

    message: Message
    all_told: Callable[[], None]


class Timing(NamedTuple):
    """How long to wait after a receiver failed (doubling), and when to look for overdue targets."""

    first_retry_seconds: float = 15.0
    longest_retry_seconds: float = 900.0
    overdue_after_seconds: float = 120.0
    """Counted from when this replica became active: it catches up on missed slots first."""
    overdue_every_seconds: float = 60.0
    give_up_seconds: float = 120.0
    """A receiver that has not answered by then counts as failed."""


_USUAL: Final = Timing()


class _Outgoing(NamedTuple):
    message: Message
    keys: Set[Key]


class _FreshnessNews(NamedTuple):
    """A target that became overdue, or was observed again, which receivers have not been told yet."""

    key: Key
    target: Target
    line: str


class _ConditionNews(NamedTuple):
    """A condition that began, or ended, without every receiver knowing it."""

    key: Key
    untold: UntoldCondition

    @property
    def message(self) -> Message:
        found = self.untold.condition
        if self.untold.ended_at is not None:
            return Message(f"Flowtrail: over: {found.code}", f"{found.said}: this has ended.")
        since = f"{found.since.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
        return Message(f"Flowtrail: {found.code}", f"{found.said}, since {since}. {found.remedy}")


class _Delivery:
    """Messages on their way to one receiver, in a thread of their own: a receiver that hangs delays no other."""

    def __init__(self, sender: Sender, outgoing: Sequence[_Outgoing], arrived: Callable[[], None]) -> None:
        self.acknowledged: Set[Key] = frozenset()
        self.why: str | None = None
        self.is_over = False
        self.began_at = time.monotonic()
        self._sender, self._outgoing, self._arrived = sender, outgoing, arrived
        threading.Thread(target=self._send, name=f"notify {sender.name}", daemon=True).start()

    def _send(self) -> None:
        for each in self._outgoing:
            self.why = self._sender.send(each.message)
            if self.why is not None:
                break
            # a new set: the notifier may have given up on this thread, and be reading the old one
            self.acknowledged = self.acknowledged | each.keys
        self.is_over = True
        self._arrived()


class _ReceiverState:
    """A receiver and what it has acknowledged. Only the notifier's thread uses it."""

    def __init__(self, wants: Subscription) -> None:
        self.wants = wants
        self.acknowledged: set[Key] = set()
        self.failures = 0
        self.not_before = 0.0
        self.delivery: _Delivery | None = None
        self.alarmed = False
        """It was told of an alarm, and not that this is over."""
        self.why = ""
        """Why the last delivery failed, until one succeeds."""
        self.failing_since: dt.datetime | None = None

    def wants_overdue(self) -> bool:
        return "overdue" in self.wants.on

    def wants_alarms(self) -> bool:
        return not _ALARMING.isdisjoint(self.wants.on)

    def of_my_orgs(self, late: _FreshnessNews) -> bool:
        return not self.wants.orgs or late.target.org_id in self.wants.orgs


class Notifier:
    """Finds finished runs without a notification, and targets that became overdue, and notifies receivers.

    ``alarm``: what to send although this replica cannot work, until it returns None.
    ``is_active``: whether this replica may send. A run is marked as notified (``sync_run.notified_at``) once every
    receiver has accepted its digest or wants nothing of it. Which receivers have accepted is kept in memory only: after
    a restart, a run that some of them have not accepted is sent to all of them again.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        receivers: Iterable[Subscription],
        *,
        is_active: Callable[[], bool],
        freshness: Callable[[], Freshness],
        clock: Callable[[], dt.datetime],
        alarm: Callable[[], Alarm | None] = lambda: None,
        timing: Timing = _USUAL,
    ) -> None:
        self._engine = engine
        self._store = store
        self._receivers = [_ReceiverState(wants) for wants in receivers]
        self._is_active = is_active
        self._freshness = freshness
        self._clock = clock
        self._alarm = alarm
        self._timing = timing
        self._loop = BackgroundLoop("notify", self._step)
        self._waiting: dict[int, UnnotifiedRun] = {}
        self._late: list[_FreshnessNews] = []
        self._condition_news: list[_ConditionNews] = []
        self._overdue_at: float | None = None
        self._log = structlog.get_logger("etl.notify")

    def start(self) -> None:
        """Begin to look, and to send."""
        self._loop.start()

    def look(self) -> None:
        """Look now: a run has finished. From any thread."""
        self._loop.wake()

    def stop(self) -> None:
        """Begin nothing more. A message on its way is left alone: it arrives, or is sent again after a restart."""
        self._loop.stop(_LAST_WORDS_SECONDS)

    def failing(self) -> list[tuple[str, str, dt.datetime]]:
        """The receivers that could not be told: their names, why, and since when."""
        return [(m.wants.sender.name, m.why, m.failing_since) for m in self._receivers if m.failing_since is not None]

    def flush(self, within_seconds: float) -> bool:
        """Send what there is to send, in this thread; return whether every receiver has accepted it in time."""
        give_up = time.monotonic() + within_seconds
        self._turn()
        while any(state.delivery for state in self._receivers) and time.monotonic() < give_up:
            self._loop.wait(max(0.0, give_up - time.monotonic()))
            self._turn()
        return not self._waiting and not self._late and not self._condition_news

    # ------------------------------------------------------------------------------------------------- the thread

    def _step(self) -> float:
        """Do what can be done now; return the seconds until the next step, if nothing wakes the loop earlier."""
        wait_seconds = _LOOK_SECONDS
        try:
            if self._is_active():
                wait_seconds = self._turn()
            else:
                self._overdue_at, self._waiting, wait_seconds = None, {}, _STANDING_BY_SECONDS
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
            self._collect(state, now)
        self._find_runs()
        self._find_late(now)
        self._find_conditions()
        digests: dict[tuple[Any, ...], Digest | None] = {}
        for state in self._receivers:
            if state.delivery is None and state.not_before <= now:
                outgoing = list(self._outgoing(state, digests))
                if outgoing:
                    state.delivery = _Delivery(state.wants.sender, outgoing, self.look)
        self._record_acknowledged()
        return min([_LOOK_SECONDS, *(m.not_before - now for m in self._receivers if m.not_before > now)])

    def _send_alarm(self) -> None:
        """Send the alarm although nothing can be written; once, or again while a receiver is away."""
        alarm = self._alarm()
        if alarm is None:
            return
        now = time.monotonic()
        states = [state for state in self._receivers if state.wants_alarms()]
        for state in states:
            self._collect(state, now)
            if state.delivery is None and state.not_before <= now and _ALARM not in state.acknowledged:
                outgoing = [_Outgoing(alarm.message, {_ALARM})]
                state.delivery = _Delivery(state.wants.sender, outgoing, self.look)
        if states and all(_ALARM in state.acknowledged for state in states):
            alarm.all_told()

    def _collect(self, state: _ReceiverState, now: float) -> None:
        """Take the result of a delivery. One that takes too long has failed; its thread is left alone."""
        delivery = state.delivery
        if delivery is None or not (delivery.is_over or now - delivery.began_at > self._timing.give_up_seconds):
            return
        state.delivery = None
        state.acknowledged |= delivery.acknowledged
        if _ALARM in delivery.acknowledged:
            state.alarmed = True
        if _ALARM_OVER in delivery.acknowledged:
            state.alarmed = False
        if delivery.is_over and delivery.why is None:
            state.failures, state.failing_since = 0, None
            self._log.info("told", receiver=state.wants.sender.name)
            return
        pause = min(self._timing.first_retry_seconds * 2**state.failures, self._timing.longest_retry_seconds)
        state.failures += 1
        state.not_before = now + pause
        why = delivery.why if delivery.is_over else f"no answer for {self._timing.give_up_seconds:.0f} s"
        state.why, state.failing_since = str(why), state.failing_since or self._clock()
        self._log.warning("not_told", receiver=state.wants.sender.name, why=why, again_in_seconds=pause)

    # --------------------------------------------------------------------------------------------- what is owed

    def _find_runs(self) -> None:
        since = self._clock() - LOOK_BACK
        untold = {run.id: run for run in self._store.unnotified_runs(since)}
        for run in self._waiting.values():
            if run.id not in untold and run.finished_at < since:
                self._log.warning("given_up", run_id=run.id, why="its receivers were away for too long")
        self._waiting = untold

    def _find_conditions(self) -> None:
        self._condition_news = [
            _ConditionNews(
                ("began" if each.ended_at is None else "ended", f"{each.condition.code} {each.condition.cause}"), each
            )
            for each in self._store.untold_conditions()
        ]

    def _find_late(self, now: float) -> None:
        """From time to time, compare which targets are overdue with what receivers have been told."""
        if not any(state.wants_overdue() for state in self._receivers):
            return
        if self._overdue_at is None:
            self._overdue_at = now + self._timing.overdue_after_seconds
        if now < self._overdue_at:
            return
        fresh = self._freshness()
        overdue = {each.target: each for each in fresh.overdue}
        self._late, forgotten = [], []
        for known in self._store.known_targets():
            late, seen_at = overdue.get(known.target), fresh.observed.get(known.target)
            if late is not None and known.notified_at is None:
                self._late.append(_FreshnessNews(("overdue", known.id), known.target, _overdue_line(late)))
            elif late is None and known.notified_at is not None:
                clock_was_ahead = known.notified_at > self._clock()
                if seen_at is not None and (seen_at > known.notified_at or clock_was_ahead):
                    self._late.append(
                        _FreshnessNews(("observed", known.id), known.target, _observed_line(known.target))
                    )
                else:
                    forgotten.append(known.id)
        if forgotten:
            self._store.clear_overdue(forgotten)
        took = time.monotonic() - now
        self._overdue_at = now + max(self._timing.overdue_every_seconds, _OVERDUE_SHARE * took)

    def _outgoing(self, state: _ReceiverState, digests: dict[tuple[Any, ...], Digest | None]) -> Iterator[_Outgoing]:
        """The messages that a receiver has not accepted yet. What it does not subscribe to counts as accepted."""
        if state.alarmed:
            yield _Outgoing(Message("Flowtrail works again", "It can write to the database again."), {_ALARM_OVER})
        for news in self._condition_news:
            if news.key not in state.acknowledged:
                if state.wants_alarms() and news.untold.condition.code not in TOLD_BY_DIGESTS:
                    yield _Outgoing(news.message, {news.key})
                else:
                    state.acknowledged.add(news.key)
        freshness = self._freshness_message(state)
        if freshness is not None:
            yield freshness
        wants, found = state.wants, list[tuple[Key, Digest]]()
        owed = [run for run in self._waiting.values() if ("run", run.id) not in state.acknowledged]
        for run in owed[:_MOST_AT_ONCE]:
            question = (run.id, tuple(wants.on), tuple(wants.orgs))
            if question not in digests:
                digests[question] = digest_of(self._engine, run, wants.on, wants.orgs)
            told = digests[question]
            if told is None:
                state.acknowledged.add(("run", run.id))
            else:
                found.append((("run", run.id), told))
        if len(found) > _MOST_MESSAGES:
            yield _Outgoing(digest.together([told for _, told in found]), {key for key, _ in found})
        else:
            yield from (_Outgoing(digest.message(told), {key}) for key, told in found)

    def _freshness_message(self, state: _ReceiverState) -> _Outgoing | None:
        owed = [late for late in self._late if late.key not in state.acknowledged]
        mine = [late for late in owed if state.wants_overdue() and state.of_my_orgs(late)]
        keys = {late.key for late in mine}
        state.acknowledged |= {late.key for late in owed} - keys
        if not mine:
            return None
        parts = digest.gather(("overdue" if late.key[0] == "overdue" else "recovered", late.line) for late in mine)
        said = f"At {self._clock().astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC."
        return _Outgoing(digest.message(Digest(name="", said=said, parts=parts)), keys)

    # ------------------------------------------------------------------------------------------- what is settled

    def _record_acknowledged(self) -> None:
        """Record in the database what every receiver has accepted, and forget it here."""
        now = self._clock()
        everybody = self._acknowledged_by_all()
        for run_id in [run_id for run_id in self._waiting if ("run", run_id) in everybody]:
            if not self._store.mark_notified(run_id, now):
                self._log.info("told_by_another_too", run_id=run_id)
            del self._waiting[run_id]
        settled = {late.key for late in self._late if late.key in everybody}
        overdue, observed = (
            [int(number) for kind, number in settled if kind == each] for each in ("overdue", "observed")
        )
        if overdue:
            self._store.mark_overdue(overdue, now)
        if observed:
            self._store.clear_overdue(observed)
        conditions = [news.untold for news in self._condition_news if news.key in everybody]
        if conditions:
            self._store.mark_conditions_told(conditions, now)
        self._condition_news = [news for news in self._condition_news if news.key not in everybody]
        self._late = [late for late in self._late if late.key not in settled]
        owed = self._owed()
        for state in self._receivers:
            state.acknowledged &= owed

    def _owed(self) -> set[Key]:
        runs: set[Key] = {("run", run_id) for run_id in self._waiting}
        return runs | {late.key for late in self._late} | {news.key for news in self._condition_news}

    def _acknowledged_by_all(self) -> set[Key]:
        return self._owed().intersection(*(state.acknowledged for state in self._receivers))


def _overdue_line(late: Overdue) -> str:
    seen = f"last seen {late.last_observed_at:%Y-%m-%d %H:%M:%S} UTC" if late.last_observed_at else "never seen"
    return f"{digest.quoted(str(late.target))}: {seen}, schedule {digest.quoted(late.schedule)}"


def _observed_line(target: Target) -> str:
    return f"{digest.quoted(str(target))}: observed again"
