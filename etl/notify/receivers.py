"""Receivers: one address each, reached through apprise. No address ever leaves this module."""

from __future__ import annotations

import datetime as dt
import importlib
import logging
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import unquote

from etl.config import NotifySettings, Secret
from etl.errors import UsageError
from etl.log import get_logger
from etl.notify.digest import Message, shortened
from etl.printable import printable

_LOGGER: Final = "apprise"
_ROOM_FOR_MARKUP: Final = 64
"""Characters that a plugin may add around title and body."""
_TELLING: Final = 4
"""Only parts of an address longer than this are masked in a receiver's answer: shorter ones are common words."""


class Sender(Protocol):
    """Something that can send a message."""

    name: str

    def send(self, message: Message) -> str | None:
        """Send it; return None, or why it failed, in a few words without the address. Blocks, never raises."""


class UnusableReceiver(NamedTuple):
    """An address that no message can be sent to, and why."""

    name: str
    why: str


class Receiver:
    """One address of a [[notify]]."""

    def __init__(self, name: str, url: Secret, plugin: Any) -> None:
        self.name = name
        """A name without the address: "notify[1] mailto://***"."""
        self._url = url
        self._plugin = plugin
        self._format = plugin.resolve_format("text")
        """What text is turned into for it: a plugin leaves that to its caller, and some would take names for markup."""

    def send(self, message: Message) -> str | None:
        """See `Sender`. A redirect is a refusal: what follows it is another request, without the message."""
        fitting = shortened(message, lambda body: self._has_room(message.title, body))
        has_own_title = self._plugin.title_maxlen > 0
        with _captured_log() as logged:
            try:
                sent = self._plugin.notify(
                    title=fitting.title if has_own_title else self._converted(fitting.title),
                    body=self._converted(fitting.body),
                    body_format=self._format,
                    body_passthrough=False,
                    notify_type="warning" if message.needs_attention else "info",
                    overflow="truncate",
                )
            except Exception as error:
                return f"{type(error).__name__}: {_without(self._url, str(error))}"
        return None if sent else _without(self._url, "; ".join(logged)) or "it did not say why"

    def _converted(self, text: str) -> str:
        conversion: Any = importlib.import_module("apprise.conversion")
        return str(conversion.convert_between("text", self._format, text))

    def _has_room(self, title: str, body: str) -> bool:
        """Whether the receiver takes it whole. Some count in units of UTF-16."""
        text = self._converted(f"{title}\n{body}")
        return len(text.encode("utf-16-le")) // 2 + _ROOM_FOR_MARKUP <= int(self._plugin.body_maxlen)


def receivers(number: int, settings: NotifySettings) -> Iterator[Receiver | UnusableReceiver]:
    """The addresses of the ``number``-th [[notify]], parsed. Raises UsageError without the extra."""
    apprise = _library()
    asset = apprise.AppriseAsset(
        app_id="Flowtrail",
        app_desc="Flowtrail",
        storage_mode="memory",
        http_redirects=False,
        pgp_autogen=False,
        pem_autogen=False,
    )
    for nth, url in enumerate(settings.urls, 1):
        which = f" {nth}" if len(settings.urls) > 1 else ""
        name = f"notify[{number}]{which} {url.reveal().partition('://')[0].lower()}://***"
        with _captured_log() as logged, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first address makes it import all that it knows, old things too
            plugin = apprise.Apprise.instantiate(url.reveal(), asset=asset)
        if plugin is None:
            reason = _without(url, "; ".join(logged))
            yield UnusableReceiver(name, f"is not a usable address: {reason or 'apprise does not know this kind'}")
        else:
            yield Receiver(name, url, plugin)


def _library() -> Any:
    try:
        import apprise
    except ImportError as error:
        raise UsageError("Notifications need apprise: pip install 'flowtrail[notify]'") from error
    logging.getLogger(_LOGGER).propagate = False  # its lines may quote an address: `_captured_log` takes them
    return apprise


@contextmanager
def _captured_log() -> Iterator[Sequence[str]]:
    """Captures what apprise logs meanwhile in this thread; it is logged nowhere else."""
    handler = _LogCapture()
    logger = logging.getLogger(_LOGGER)
    logger.addHandler(handler)
    try:
        yield handler.heard
    finally:
        logger.removeHandler(handler)


class _LogCapture(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.heard.append(record.getMessage())


def _without(url: Secret, text: str) -> str:
    """``text`` on one line, with ``***`` for every part of the address that it repeats."""
    address = url.reveal().partition("://")[2]
    parts = {part for each in (address, unquote(address)) for part in (each, *re.split(r"[/:@?&=,;#+]", each))}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= _TELLING:
            text = re.sub(re.escape(part), "***", text, flags=re.IGNORECASE)
    return printable(" ".join(text.split()))


_ALARMING: Final = frozenset(("failed", "overdue"))
"""Subscriptions to one of these kinds get alarms, whatever their organisations."""

Key = tuple[str, int | str]
"""("run", its id), ("overdue", target id), ("observed", target id), ("began" or "ended", a condition),
("rule_broken" or "rule_mended", a rule and its newest finding), or the alarm."""
ALARM: Final[Key] = ("alarm", 0)
ALARM_OVER: Final[Key] = ("alarm over", 0)


class Subscription(NamedTuple):
    """A receiver, and the kinds and organisations that it is notified of (no ``orgs``: all)."""

    sender: Sender
    on: Sequence[str]
    orgs: Sequence[str]
    unacknowledged: bool = False
    """Whether it is not told of changes and events that somebody has acknowledged."""


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
        self._log: Any = get_logger("etl.notify")

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
