"""One HTTP exchange: an adapter of requests over our own connections; a complete body, or one of our errors.

Nothing here retries, follows a redirect, keeps a cookie, or reads the environment.
"""

from __future__ import annotations

import datetime as dt
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, cast

from requests import PreparedRequest, Response
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from etl.config import GatewaySettings
from etl.errors import FlowtrailError, GatewayError
from etl.gateway.connecting import Connector
from etl.gateway.connection import FOREIGN, Connection, IdleState, desync, translated, unanswered
from etl.gateway.deadline import Deadline, Watchdog

_END_SECONDS: Final = 3.0
"""How long to wait for the gateway to close a connection that it was asked to close."""
_PROMPT_SECONDS: Final = 0.3
"""A gateway that takes longer is not waited for again during ``_SLOW_CLOSE_REMEMBERED_SECONDS``."""
_SLOW_CLOSE_REMEMBERED_SECONDS: Final = 60.0
_HALF_CLOSED_SECONDS: Final = 1.0
"""How long to wait for that after closing our side."""

_MANY: Final = 8
_LATELY_SECONDS: Final = 1.0
"""So many exchanges in so many seconds make it worth to open connections ahead."""
_SPARE_SECONDS: Final = 3.0
"""How old a connection may become unused: servers soon end those over which nothing is asked, some with an answer."""
_NO_SPARES_SECONDS: Final = 60.0


class Reply(NamedTuple):
    """A complete answer, whatever its status. Times are by the client's clock."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    headers_at: dt.datetime
    arrived_at: dt.datetime
    is_sole: bool
    """Whether it is the only answer that its connection ever carried."""


class Transport(BaseAdapter):
    """Exchanges requests with one origin, over at most ``concurrency`` kept-alive connections or one for each exchange.

    ``desynced`` is called, from any thread, when a connection carried bytes that belong to no request.
    Thread-safe.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        watchdog: Watchdog,
        clock: Callable[[], dt.datetime],
        desynced: Callable[[], None],
    ) -> None:
        super().__init__()
        self._connector = Connector(settings)
        self._watchdog = watchdog
        self._clock = clock
        self._desynced = desynced
        self._timeout_seconds = settings.timeout.total_seconds()
        self._max_body_bytes = settings.max_body
        self._most = settings.concurrency
        self._kept: deque[Connection] = deque(maxlen=settings.concurrency)
        self._spares: deque[Connection] = deque()
        """Opened ahead: nothing has gone over them yet."""
        self._needed_at: deque[float] = deque(maxlen=_MANY)
        self._no_spares_until = self._closed_slowly_at = -math.inf

    def exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: Deadline,
        *,
        own_connection: bool = False,
    ) -> Reply:
        """Sends one request and reads the whole answer. Raises GatewayUnreachable, Malformed, or Interrupted.

        With ``own_connection`` nothing else has been sent or received over its connection, and nothing will be.
        """
        seconds = min(self._timeout_seconds, deadline.remaining())
        asked = {**headers, "Connection": "close"} if own_connection else headers
        try:
            if seconds <= 0:
                raise TimeoutError
            request = PreparedRequest()  # by hand, so that everything is sent as it was signed
            request.method, request.url, request.body = method, self._connector.origin + path, body
            request.headers = CaseInsensitiveDict(asked)
            reply = cast(Reply, self.send(request, timeout=(deadline, seconds)).raw)
            if deadline.cut:
                deadline.check()
            return reply
        except (*FOREIGN, GatewayError) as error:
            if isinstance(error, GatewayError) and error.code == "desync":
                self._desynced()
            raise translated(error, deadline, seconds) from None

    def send(self, request: PreparedRequest, *_: Any, timeout: Any = None, **__: Any) -> Response:
        """How requests asks an adapter. ``raw`` of the response is the Reply."""
        deadline, seconds = timeout
        own = request.headers.get("Connection") == "close"
        connection = self._connection(deadline, seconds, own=own)
        try:
            self._connector.send(request, connection, seconds)
            if own and self._connector.context is not None:
                self._open_next(deadline)
            head = connection.head()
            headers_at = self._clock()
            content = connection.body(head, self._max_body_bytes)
            arrived_at = self._clock()
            if connection.exchanges == 1 and self._connector.context is not None:
                self._connector.context.remember(connection.connected)
            if (self._end(connection, deadline) if own else connection.idle_state()) == "stray":
                raise desync("after an answer")  # nobody can tell which of the two is meant
        except BaseException:
            connection.close()
            raise
        deadline.release()
        if own or not connection.is_reusable or len(self._kept) == self._most:
            connection.close()
        else:
            self._kept.append(connection)
        response = Response()
        response.status_code, response.headers = head
        response.raw = Reply(*head, content, headers_at, arrived_at, is_sole=own and connection.exchanges == 1)
        return response

    def _connection(self, deadline: Deadline, seconds: float, *, own: bool) -> Connection:
        """One that has stayed quiet since it was kept, or opened ahead; or a new one.

        What is not quiet is closed: nobody fails. Raises OSError, or GatewayUnreachable for a new one.
        """
        take = self._spares.popleft if own else self._kept.pop
        with suppress(IndexError):
            while connection := take():
                if connection.exchanges or time.monotonic() - connection.opened_at < _SPARE_SECONDS:
                    deadline.hold(connection.handle)
                    idle_state = connection.idle_state()
                    if idle_state == "quiet":
                        return connection
                    if idle_state == "stray":
                        self._desynced()
                connection.close()
        connection = self._connector.open(deadline, seconds)
        if (idle_state := connection.idle_state()) != "quiet":
            connection.close()
            raise desync("before the request") if idle_state == "stray" else unanswered()
        return connection

    def _open_next(self, deadline: Deadline) -> None:
        """While an answer is awaited, open a connection for another exchange, if many have lately needed one of their
        own: with those that are kept, the gateway sees three times ``concurrency`` connections at most.

        Never raises, and takes half of the time that is left at most. After a failure none is opened for a while.
        """
        now = time.monotonic()
        self._needed_at.append(now)
        many_lately = len(self._needed_at) == _MANY and now - self._needed_at[0] < _LATELY_SECONDS
        if not many_lately or len(self._spares) >= self._most or now < self._no_spares_until:
            return
        try:
            with self._watchdog.watch(min(_SPARE_SECONDS, deadline.remaining() / 2)) as limit:
                spare = self._connector.open(limit, limit.seconds)
            self._spares.append(spare)
        except (*FOREIGN, FlowtrailError) as error:
            if isinstance(error, GatewayError) and error.code == "desync":
                self._desynced()
            self._no_spares_until = now + _NO_SPARES_SECONDS

    def _end(self, connection: Connection, deadline: Deadline) -> IdleState:
        """Waits for the gateway to close the connection: the port of who closes first stays in TIME_WAIT.

        A gateway that keeps the connection open is told that no further request comes, which should make it close. If
        it still does not, the connection counts as quiet, provided that nothing has arrived.
        """

        def at_most(seconds: float) -> float:
            """Or half of what is left until the deadline: the answer is already complete."""
            return max(min(seconds, deadline.remaining() / 2), 0.001)

        idle_state: IdleState = "quiet"
        began = time.monotonic()
        if began - self._closed_slowly_at > _SLOW_CLOSE_REMEMBERED_SECONDS:
            idle_state = connection.idle_state(at_most(_END_SECONDS))
            if time.monotonic() - began > _PROMPT_SECONDS:
                self._closed_slowly_at = time.monotonic()
        if idle_state == "quiet":
            connection.half_close()
            idle_state = connection.idle_state(at_most(_HALF_CLOSED_SECONDS))
        return idle_state

    def close(self) -> None:
        for idle in (self._spares, self._kept):
            while idle:
                idle.pop().close()
