"""Messages on their way to receivers, and what each receiver has acknowledged."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Sequence, Set
from typing import Any, Final, NamedTuple

import structlog

from etl.notify.digest import Message
from etl.notify.receivers import Sender

_ALARMING: Final = frozenset(("failed", "overdue"))
"""Subscriptions to one of these kinds get alarms, whatever their organisations."""

Key = tuple[str, int | str]
"""("run", its id), ("overdue", target id), ("observed", target id), ("began" or "ended", a condition), or the alarm."""
ALARM: Final[Key] = ("alarm", 0)
ALARM_OVER: Final[Key] = ("alarm over", 0)


class Subscription(NamedTuple):
    """A receiver, and the kinds and organisations that it is notified of (no ``orgs``: all)."""

    sender: Sender
    on: Sequence[str]
    orgs: Sequence[str]


class Timing(NamedTuple):
    """How long to wait after a receiver failed (doubling), and when to look for overdue targets."""

    first_retry_seconds: float = 15.0
    longest_retry_seconds: float = 900.0
    overdue_after_seconds: float = 120.0
    """Counted from when this replica became active: it catches up on missed slots first."""
    overdue_every_seconds: float = 60.0
    give_up_seconds: float = 120.0
    """A receiver that has not answered by then counts as failed."""


class Outgoing(NamedTuple):
    """A message, and what a receiver that accepts it has been told of."""

    message: Message
    keys: Set[Key]


class _Delivery:
    """Messages on their way to one receiver, in a thread of their own: a receiver that hangs delays no other."""

    def __init__(self, sender: Sender, outgoing: Sequence[Outgoing], arrived: Callable[[], None]) -> None:
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


class ReceiverState:
    """A receiver and what it has acknowledged. Only the notifier's thread uses it."""

    def __init__(self, subscription: Subscription, timing: Timing, clock: Callable[[], dt.datetime]) -> None:
        self.subscription = subscription
        self._timing = timing
        self._clock = clock
        self.acknowledged: set[Key] = set()
        self.failures = 0
        self.not_before = 0.0
        self.delivery: _Delivery | None = None
        self.alarmed = False
        """Whether it was told of an alarm, and not yet that it is over."""
        self.why = ""
        """Why the last delivery failed, until one succeeds."""
        self.failing_since: dt.datetime | None = None
        self._log: Any = structlog.get_logger("etl.notify")

    def is_free(self, now: float) -> bool:
        """Whether something can be sent to it now."""
        return self.delivery is None and self.not_before <= now

    def send(self, outgoing: Sequence[Outgoing], arrived: Callable[[], None]) -> None:
        """Send the messages, if any, and call ``arrived`` from another thread when that is done."""
        if outgoing:
            self.delivery = _Delivery(self.subscription.sender, outgoing, arrived)

    def wants_overdue(self) -> bool:
        return "overdue" in self.subscription.on

    def wants_alarms(self) -> bool:
        return not _ALARMING.isdisjoint(self.subscription.on)

    def wants_org(self, org_id: str) -> bool:
        return not self.subscription.orgs or org_id in self.subscription.orgs

    def collect(self, now: float) -> None:
        """Take the result of a delivery. One that takes too long has failed; its thread is left alone."""
        delivery = self.delivery
        if delivery is None or not (delivery.is_over or now - delivery.began_at > self._timing.give_up_seconds):
            return
        self.delivery = None
        self.acknowledged |= delivery.acknowledged
        if ALARM in delivery.acknowledged:
            self.alarmed = True
        if ALARM_OVER in delivery.acknowledged:
            self.alarmed = False
        if delivery.is_over and delivery.why is None:
            self.failures, self.failing_since = 0, None
            self._log.info("told", receiver=self.subscription.sender.name)
            return
        pause = min(self._timing.first_retry_seconds * 2**self.failures, self._timing.longest_retry_seconds)
        self.failures += 1
        self.not_before = now + pause
        why = delivery.why if delivery.is_over else f"no answer for {self._timing.give_up_seconds:.0f} s"
        self.why, self.failing_since = str(why), self.failing_since or self._clock()
        self._log.warning("not_told", receiver=self.subscription.sender.name, why=why, again_in_seconds=pause)
