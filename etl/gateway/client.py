"""The calls to EnOS: token, signature, retries, and a complete answer or an error that says what to do."""

from __future__ import annotations

import datetime as dt
import math
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Self, TypeVar, cast
from urllib.parse import quote, urlsplit

from etl import __version__
from etl.config import GatewaySettings
from etl.config.addresses import is_loopback
from etl.domain.answers import Detail
from etl.domain.model import Snapshot, Target
from etl.errors import ConfigError, GatewayError, PermanentGatewayError, Problem
from etl.gateway import calls, rosters
from etl.gateway.answer import RawAnswer, read_detail, read_search, read_snapshot, read_timezone
from etl.gateway.calls import APIS, NOT_QUOTED, Request
from etl.gateway.deadline import Deadline, Watchdog
from etl.gateway.errors import SLOWING, Hidden, excerpt, retry_after_seconds, status_error
from etl.gateway.recording import Exchange
from etl.gateway.repeating import Pending, Repeater
from etl.gateway.timing import GatewayClock, RequestPacing, Timestamps
from etl.gateway.token import Issued, Token, TokenKeeper, read_token
from etl.gateway.transport import Reply, Transport
from etl.log import bound, get_logger
from etl.system.clock import utc_now

T = TypeVar("T")

_HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip",
    "Cache-Control": "no-cache",
    "User-Agent": f"flowtrail/{__version__}",
}

_RUNS_AT_ONCE: Final = 100
_DESYNC: Final = (
    "the gateway or a proxy in front of it sent bytes that belong to no request: tell its operator. Nothing was "
    "recorded from them, but other clients may get answers that are not theirs"
)


class Gateway:
    """The EnOS gateway as one set of settings describes it. Thread-safe; a context manager.

    ``clock`` gives the wall clock (UTC) for timestamps and observations; deadlines go by the monotonic clock.
    When ``stop`` is set, everything that waits or is under way soon ends with Interrupted. From any thread,
    ``exchanged`` is called after each request, and ``desynced`` when a connection carried bytes that belong to none.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        clock: Callable[[], dt.datetime] = utc_now,
        stop: threading.Event | None = None,
        exchanged: Callable[[Exchange], None] | None = None,
        desynced: Callable[[], None] | None = None,
    ) -> None:
        _refuse_plain_http(settings)
        origin = urlsplit(settings.url)
        self._settings = settings
        self._api = APIS[settings.api]
        self._key = Hidden(settings.access_key)
        self._gateway_clock = GatewayClock(settings.max_clock_skew)
        self._exchanged = exchanged or (lambda exchange: None)
        self._desynced = desynced or (lambda: None)
        self._warned_in: list[object] = []
        self._deadline_seconds = settings.deadline.total_seconds()
        self._path = quote(origin.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        self._watchdog = Watchdog(stop or threading.Event())
        self._pace = RequestPacing(settings.requests_per_second)
        self._stamps = Timestamps(clock)
        self._tokens = TokenKeeper(self._issue) if settings.auth == "token" else None
        self._repeater = Repeater(self._tokens)
        self._transport = Transport(settings, self._watchdog, clock, self._desync_seen)

    def __repr__(self) -> str:
        return f"<Gateway {self._settings.url} auth={self._settings.auth}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def clock_skew(self) -> dt.timedelta | None:
        """How far the gateway's clock was ahead of ours in its latest answer; None: not known yet."""
        return self._gateway_clock.skew

    @property
    def slowed_seconds(self) -> float:
        """How long requests have waited so far because the gateway had too much to do."""
        return self._pace.slowed_seconds

    def close(self) -> None:
        """Ends what is under way (with Interrupted), and closes all connections."""
        self._watchdog.close()
        self._transport.close()

    def fetch(
        self,
        target: Target,
        known_data_hash: str | None = None,
        *,
        own_connection: bool = False,
        before: Snapshot | None = None,
        asked_as: str | None = None,
    ) -> Snapshot:
        """The target's whole list as it is now, within ``deadline``, retries and token included; a directory is asked
        for in the name of the user ``asked_as``.

        With ``own_connection`` it is asked for over a connection that carries nothing else, and the snapshot is a
        ``sole_answer``. Where the bytes of ``data`` hash to ``known_data_hash``, ``flows`` is None; where they are
        those of an answer ``before``, they are not decoded again. Raises GatewayError (its ``attempts`` says how often
        the target was tried), or Interrupted.
        """
        read = partial(read_snapshot, target, known_data_hash=known_data_hash, before=before, api=self._api)
        if target.is_directory:
            request = calls.directory(self._api, target.org_id, asked_as or "")
        else:
            request = calls.my_flows(self._api, target)
        return self._asked(request, read, own=own_connection)

    def detail(self, org_id: str, flow_id: str, user_id: str, within_seconds: float) -> Detail:
        """What EnOS says about a workflow, asked as a user who sees it, within this time and ``deadline``. Raises
        GatewayError, or Interrupted."""
        read = partial(read_detail, org_id, flow_id, api=self._api)
        return self._asked(calls.flow(self._api, org_id, flow_id, user_id), read, within_seconds)

    def timezone(self, within_seconds: float) -> str:
        """The zone of EnOS's clock, as it says, such as "GMT+8". Raises GatewayError, or Interrupted."""
        return self._asked(calls.timezone(self._api), partial(read_timezone, api=self._api), within_seconds)

    def search(self, org_id: str, user_id: str, within_seconds: float) -> int:
        """How many workflows of the organisation are on the first page of a search for all; for `flowtrail check
        --record`. Raises GatewayError, or Interrupted."""
        request = calls.search(self._api, org_id, user_id)
        return self._asked(request, partial(read_search, api=self._api), within_seconds)

    def roster(self, org_id: str) -> frozenset[str]:
        """The ids of all users of an organisation, within ``deadline`` for all pages. Raises GatewayError, or
        Interrupted."""
        with self._watchdog.watch(self._deadline_seconds) as deadline:

            def page(number: int) -> rosters.Page:
                request = calls.roster_page(self._api, org_id, number)
                pending = Pending(request, rosters.read_page, deadline, own_connection=True)
                return self._repeater.until_answered(pending, self._send)

            return rosters.collected(page)

    def check_token(self) -> str:
        """Asks for a token, without a retry, and says for how long it is valid, and how far the gateway's clock is from
        ours; for `flowtrail check`. Raises GatewayError, or Interrupted."""
        if self._tokens is None:
            return "none needed"
        with self._watchdog.watch(self._deadline_seconds) as deadline:
            left = self._tokens.current(deadline).expires_at - time.monotonic()
        skew = f", clocks apart by {abs(self.clock_skew.total_seconds()):.0f} s" if self.clock_skew is not None else ""
        return f"valid for another {left:.0f} s{skew}"

    def _asked(
        self, request: Request, read: Callable[[RawAnswer], T], within_seconds: float = math.inf, *, own: bool = False
    ) -> T:
        with self._watchdog.watch(min(within_seconds, self._deadline_seconds)) as deadline:
            return self._repeater.until_answered(Pending(request, read, deadline, own), self._send)

    def _send(self, pending: Pending[T], token: Token | None) -> T:
        self._pace.wait_for_turn(pending.deadline)
        pending.attempts += 1
        moment = self._stamps.next(pending.request.asker)
        signed = {} if token is None else pending.request.signed(token.value, token.secret, moment.timestamp_ms)
        return self._exchange(pending, signed, moment.at, (self._key, *signed.values(), *(token[1:3] if token else ())))

    def _issue(self, deadline: Deadline) -> Issued:
        """One call to the token service, with the secret as it is now."""
        self._pace.wait_for_turn(deadline)
        secret = self._read_secret()
        moment = self._stamps.next(calls.TOKEN_PATH)
        request, proof = calls.token(self._key, moment.timestamp_ms, secret)

        def read(answered: RawAnswer) -> Issued:
            return read_token(answered.reply.body, secret, answered.quote)

        pending = Pending(request, read, deadline, own_connection=True, attempts=1)
        return self._exchange(pending, {}, moment.at, (self._key, secret, proof))

    def _exchange(self, pending: Pending[T], signed: dict[str, str], asked_at: dt.datetime, hidden: Iterable[str]) -> T:
        """The content of the answer, or the error that it means; both are reported to ``exchanged``."""
        request, began, reply = pending.request, time.monotonic(), cast("Reply | None", None)

        def shown(found: bytes | str) -> str:
            return NOT_QUOTED if request.is_personal else excerpt(found, hidden)

        try:
            reply = self._transport.exchange(
                request.method,
                self._path + request.address,
                _HEADERS | request.headers | signed,
                request.body.encode() or None,
                pending.deadline,
                own_connection=pending.own_connection,
            )
            self._refuse(reply, asked_at, shown)
            content = pending.read(RawAnswer(reply, asked_at, shown, pending.attempts))
        except GatewayError as error:
            if reply:
                error.retry_after_seconds = retry_after_seconds(reply.headers, reply.headers_at)
            if error.code in SLOWING:
                self._pace.slow_down(error.retry_after_seconds)
            self._exchanged(Exchange(request, pending.attempts, time.monotonic() - began, reply, error.code))
            raise
        self._pace.answered()
        self._exchanged(Exchange(request, pending.attempts, time.monotonic() - began, reply, None))
        return content

    def _desync_seen(self) -> None:
        """Count a desynchronised connection, and warn once per run."""
        self._desynced()
        run_id = bound().get("run_id")
        if run_id not in self._warned_in:
            self._warned_in = [*self._warned_in[-_RUNS_AT_ONCE:], run_id]
            get_logger(__name__).warning("gateway_desync", remedy=_DESYNC)

    def _read_secret(self) -> Hidden:
        try:
            return Hidden(self._settings.read_secret())
        except (ConfigError, OSError, ValueError) as error:
            unsent = Request("token", "POST", calls.TOKEN_PATH, {}, calls.TOKEN_PATH)
            self._exchanged(Exchange(unsent, 1, 0.0, None, "secret"))
            reason = str(error) if isinstance(error, ConfigError) else type(error).__name__
            raise PermanentGatewayError(f"the secret key cannot be read: {reason}", code="secret") from None

    def _refuse(self, reply: Reply, asked_at: dt.datetime, shown: Callable[[bytes | str], str]) -> None:
        """Raises for a status that is not a success, and for clocks that are too far apart."""
        error = None if reply.status == 200 else status_error(reply.status, reply.headers, reply.body, shown)
        skew = self._gateway_clock.measure(reply.headers, reply.headers_at, asked_at)
        if error is None or not error.transient:
            self._gateway_clock.refuse(skew)
        if error:
            raise error


def _refuse_plain_http(settings: GatewaySettings) -> None:
    url = urlsplit(settings.url)
    safe = url.scheme == "https" or (url.scheme == "http" and (settings.allow_http or is_loopback(settings.url)))
    if not safe or not url.hostname or "@" in url.netloc or url.query or url.fragment:
        problem = "must be https://host[/path], without user, query and fragment (http only on this machine)"
        raise ConfigError([Problem("gateway.url", problem)])
