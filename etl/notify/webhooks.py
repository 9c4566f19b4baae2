"""Sends webhooks what happened: each in a thread of its own, in order, at least once, from its place in the database.

| the receiver | counts as | the next attempt |
|---|---|---|
| answers 2xx | it has the batch | the next batch, at once |
| answers 410 | it wants nothing more | in a day |
| answers 429 or 503 with Retry-After | away | when it said, within a day |
| answers something else, also a redirect; or nothing within 30 s | away | after 15 s, 30 s, ... at most 15 minutes |
"""

from __future__ import annotations

import base64
import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from sqlalchemy import Engine

from etl import __version__
from etl.config import GatewaySettings, WebhookSettings
from etl.errors import ConfigError, DatabaseError, GatewayError
from etl.gateway.connecting import Connector
from etl.gateway.deadline import Watchdog
from etl.gateway.errors import retry_after_seconds
from etl.log import get_logger
from etl.notify.cloudevents import KINDS, MOST_EVENTS, Batch, batch_of, event_of, event_of_notice, headers_of
from etl.report.listings import EVENTS
from etl.report.rows import OrgWorkflowEvent
from etl.store import Store
from etl.store.webhooks import Due, Notice, Place, Webhook
from etl.system.background import BackgroundLoop

_LOOK_SECONDS: Final = 30.0
_STANDING_BY_SECONDS: Final = 2.0
_CONNECT_SECONDS: Final = 10.0
"""To connect, and for each read; all together may take ``_ANSWER_SECONDS``."""
_ANSWER_SECONDS: Final = 30.0
_FIRST_RETRY_SECONDS: Final = 15.0
_LONGEST_RETRY_SECONDS: Final = 900.0
_NO_TIME: Final = dt.timedelta(0)
_LONGEST_WAIT: Final = dt.timedelta(days=1)
_STOP_SECONDS: Final = 0.5
_SEALS_BEHIND: Final = 500
"""While nothing is due, a place is only written when it is so many seals behind."""
_PATH: Final = "/%:=&?~+!$,;'@()*[]"
_CODES: Final = {
    "dns": "its name is not found",
    "timeout": "it does not answer in time",
    "deadline": f"it does not answer within {_ANSWER_SECONDS:.0f} s",
    "tls": "there is no secure connection to it",
    "tls_certificate": "its certificate is refused",
    "proxy": "the proxy does not connect",
    "truncated": "its answer was cut off",
    "protocol": "its answer is not HTTP",
}


class Refusal(NamedTuple):
    """Why a batch was not accepted, without the address; and what the receiver says about the next attempt."""

    why: str
    wait_seconds: float | None = None


class Endpoint:
    """The address of a [[webhook]]; it never leaves this class."""

    def __init__(self, settings: WebhookSettings, clock: Callable[[], dt.datetime]) -> None:
        self._settings, self._clock = settings, clock
        self._connector: Connector | None = None

    def send(self, batch: Batch) -> Refusal | None:
        """Send it once; None if it was accepted. Blocks, never raises."""
        try:
            keys, connector = self._settings.read_secrets(), self._connector or self._connect()
        except (ValueError, ConfigError) as error:
            return Refusal(str(error).removeprefix("gateway."))
        target, login = self._address()
        headers = {"User-Agent": f"flowtrail/{__version__}", **login, **headers_of(batch, self._clock(), keys)}
        try:
            with closing(Watchdog(threading.Event())) as watchdog, watchdog.watch(_ANSWER_SECONDS) as deadline:
                head = connector.post(target, headers, batch.body, deadline, _CONNECT_SECONDS)
        except GatewayError as error:
            return Refusal(_CODES.get(str(error.code), "there is no connection to it, or it broke"))
        if 200 <= head.status <= 299:
            return None
        if head.status == 410:
            return Refusal("HTTP 410: it wants nothing more", _LONGEST_WAIT.total_seconds())
        redirect = ", a redirect, which is not followed" if 300 <= head.status <= 399 else ""
        return Refusal(f"HTTP {head.status}{redirect}", retry_after_seconds(head.headers, self._clock()))

    def _connect(self) -> Connector:
        """The certificates are only read once."""
        url, known = self._url(), self._settings
        origin = f"{url.scheme}://{url.netloc.rpartition('@')[2]}"
        self._connector = Connector(GatewaySettings(url=origin, proxy=known.proxy, ca_bundle=known.ca_bundle))
        return self._connector

    def _url(self) -> Any:
        return urlsplit(self._settings.url.reveal() if self._settings.url else "")

    def _address(self) -> tuple[str, dict[str, str]]:
        """Path and query; and the header with the user and the password of the address, if it has some."""
        url = self._url()
        target = quote(url.path or "/", _PATH) + (f"?{quote(url.query, _PATH)}" if url.query else "")
        if url.username is None:
            return target, {}
        login = f"{unquote(url.username)}:{unquote(url.password or '')}".encode()
        return target, {"Authorization": f"Basic {base64.b64encode(login).decode('ascii')}"}


class WebhookStatus(NamedTuple):
    """What this process knows of a webhook."""

    name: str
    delivered: int
    """Events, since this process began."""
    behind_seconds: float
    """How old the oldest event is that it has not accepted; 0: it has everything."""
    failing_since: dt.datetime | None
    why: str


@dataclass(eq=False)
class WebhookSender:
    """Sends one webhook what happened, while ``is_active``."""

    engine: Engine
    store: Store
    settings: WebhookSettings
    _: KW_ONLY
    is_active: Callable[[], bool]
    clock: Callable[[], dt.datetime]
    at_once: bool = False
    """Whether the first attempt comes before its time: a person may have mended the receiver."""
    first_retry_seconds: float = _FIRST_RETRY_SECONDS

    def __post_init__(self) -> None:
        self._endpoint = Endpoint(self.settings, self.clock)
        self._loop = BackgroundLoop(f"webhook {self.settings.name}", self._step)
        self._prepared: tuple[Place, Batch, Place, dt.datetime] | None = None
        """A batch that was not accepted yet, the places before and after it, and when the first of it happened."""
        self._failures = 0
        self._delivered = 0
        self._known: Webhook | None = None
        self._looked = threading.Event()
        self._log: Any = get_logger("etl.notify")

    @property
    def name(self) -> str:
        return self.settings.name

    def start(self) -> None:
        self._loop.start()

    def wake(self) -> None:
        """Look now. From any thread."""
        self._loop.wake()

    def stop(self, within_seconds: float = _STOP_SECONDS) -> None:
        """Begin nothing more. A batch on its way is left alone: it arrives, or is sent again."""
        self._loop.stop(within_seconds)

    def wait(self, seconds: float) -> bool:
        """Wait until everything was sent, or until an attempt failed; return whether everything was sent."""
        return self._looked.wait(seconds) and self._prepared is None

    def status(self) -> WebhookStatus:
        """From any thread."""
        prepared, known = self._prepared, self._known
        behind = max(0.0, (self.clock() - prepared[3]).total_seconds()) if prepared else 0.0
        since, why = (known.failing_since, known.why or "") if known else (None, "")
        return WebhookStatus(self.name, self._delivered, behind, since, why)

    # ------------------------------------------------------------------------------------------------- the thread

    def _step(self) -> float:
        wait_seconds = _LOOK_SECONDS
        try:
            if self.is_active():
                wait_seconds = self._turn()
            else:
                self._prepared, self._known, wait_seconds = None, None, _STANDING_BY_SECONDS
        except DatabaseError as error:
            self._log.warning("nothing_sent", webhook=self.name, error=str(error), again_in_seconds=wait_seconds)
        except Exception:
            self._log.exception("webhook_failed", webhook=self.name)
        self._looked.set()
        return wait_seconds

    def _turn(self) -> float:
        """Send what is due; return the seconds until the next look."""
        while not self._loop.stopping and self.is_active():
            known = self._known = self._state()
            now = self.clock()
            early = known.not_before - now if known.not_before else _NO_TIME
            if _NO_TIME < early <= _LONGEST_WAIT and not self.at_once:
                self._prepare(known.place)
                return min(early.total_seconds(), _LOOK_SECONDS)
            self.at_once = False
            if not self._prepare(known.place) or self._prepared is None:
                self._failures = 0
                return _LOOK_SECONDS
            before, batch, after, _ = self._prepared
            refusal = self._endpoint.send(batch)
            if refusal is not None:
                return self._refused(known, refusal)
            if self.store.move_webhook(self.name, before, after, batch.events, self.clock()):
                self._delivered += batch.events
            self._failures, self._prepared = 0, None
            self._log.info("sent", webhook=self.name, events=batch.events, id=batch.id)
        return _STANDING_BY_SECONDS

    def _state(self) -> Webhook:
        known = self.store.known_webhooks().get(self.name)
        if known is None:
            self.store.begin_webhooks([self.name], self.clock())
            return self._state()
        return known

    def _refused(self, known: Webhook, refusal: Refusal) -> float:
        pause: float = min(self.first_retry_seconds * 2**self._failures, _LONGEST_RETRY_SECONDS)
        if refusal.wait_seconds is not None:
            pause = min(max(pause, refusal.wait_seconds), _LONGEST_WAIT.total_seconds())
        self._failures = min(self._failures + 1, 30)
        now = self.clock()
        self.store.delay_webhook(self.name, refusal.why, now, now + dt.timedelta(seconds=pause))
        self._known = known._replace(failing_since=known.failing_since or now, why=refusal.why)
        self._log.warning("not_sent", webhook=self.name, why=refusal.why, again_in_seconds=pause)
        return pause

    def _prepare(self, place: Place) -> bool:
        """Whether something is due after ``place``. What was prepared stays: sent again, it has the same id."""
        if self._prepared is not None and self._prepared[0] == place:
            return True
        self._prepared = None
        kinds = [part for kind in self.settings.on for part in KINDS.get(kind, (kind,))]
        due, end = self.store.due_for_webhook(place, kinds, self.settings.orgs, MOST_EVENTS)
        if not due:
            if end.notice_id != place.notice_id or end.seal_id - place.seal_id >= _SEALS_BEHIND:
                self.store.move_webhook(self.name, place, end, 0, self.clock())
            return False
        events = self._events(due)
        batch = batch_of(events)
        after = end if batch.events == len(due) else due[batch.events - 1].after
        self._prepared = place, batch, after, events[0]["time"]
        return True

    def _events(self, due: Sequence[Due]) -> list[dict[str, Any]]:
        source = self.store.webhook_source()
        rows = {row.event_id: row for row in self._rows([d.happened for d in due if isinstance(d.happened, int)])}
        return [
            event_of_notice(each.happened, source)
            if isinstance(each.happened, Notice)
            else event_of(rows[each.happened], source)
            for each in due
        ]

    def _rows(self, numbers: Sequence[int]) -> Iterator[OrgWorkflowEvent]:
        return EVENTS.rows(self.engine, events=numbers) if numbers else iter(())


def flush(senders: Sequence[WebhookSender], within_seconds: float) -> list[WebhookSender]:
    """Send what is due, for so long at most; return those that did not get everything."""
    give_up = time.monotonic() + within_seconds
    for each in senders:
        each.start()
    left = [each for each in senders if not each.wait(max(0.0, give_up - time.monotonic()))]
    for each in senders:
        each.stop(0)
    return left
