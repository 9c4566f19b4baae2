"""One HTTP exchange: requests' adapter over watched connections; a complete body, or one of our errors.

Nothing here retries, follows a redirect, keeps a cookie, or reads the environment.
"""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from requests import PreparedRequest, Response
from requests.adapters import BaseAdapter

from etl.config import GatewaySettings
from etl.errors import GatewayError
from etl.gateway.connecting import Connector, Spares, prepared
from etl.gateway.connection import Connection, SharedConnectionState, unanswered
from etl.gateway.deadline import Deadline, Watchdog
from etl.gateway.errors import FOREIGN, translated


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
        origin = urlsplit(settings.url)
        self._shared = SharedConnectionState(watchdog, desynced)
        self._connector = Connector(origin, settings.proxy, settings.ca_bundle, self._shared)
        self._prefix = f"{origin.scheme}://{origin.netloc}"
        self._timeout_seconds = settings.timeout.total_seconds()
        self._max_body_bytes = settings.max_body
        self._clock = clock
        self._idle: deque[Connection] = deque(maxlen=settings.concurrency)
        self._spares = Spares(self._connector, settings.concurrency)

    def exchange(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes | None,
        deadline: Deadline,
        *,
        own_connection: bool = False,
    ) -> Reply:
        """Sends one request and reads the whole answer. Raises GatewayUnreachable, Malformed, or Interrupted.

        With ``own_connection`` nothing else has been sent or received over its connection, and nothing will be.
        """
        seconds = min(self._timeout_seconds, deadline.remaining())
        asked = headers | {"Connection": "close"} if own_connection else headers
        try:
            if seconds > 0:
                reply = self.send(prepared(method, self._prefix + path, asked, body), timeout=seconds).raw
                if deadline.cut:
                    deadline.check()
                return cast(Reply, reply)
        except (*FOREIGN, GatewayError) as error:
            raise translated(error, deadline, seconds) from None
        finally:
            deadline.release()
        raise translated(TimeoutError(), deadline, seconds)

    def send(self, request: PreparedRequest, *_: Any, timeout: Any = None, **__: Any) -> Response:
        """How requests asks an adapter; ``raw`` of the response is the Reply."""
        own = request.headers.get("Connection") == "close"
        connection = self._unused(timeout) if own else self._kept(timeout)
        try:
            connection.send(request, self._connector.addressed(request), timeout)
            if own and self._connector.context is not None:
                self._spares.open_next()
            response = connection.head()
            headers_at = self._clock()
            body = connection.body(response, self._max_body_bytes)
            arrived_at = self._clock()
            if connection.exchanges == 1 and self._connector.context is not None:
                self._connector.context.remember(connection.connected)
            is_sole = connection.finish(own=own)
        except BaseException:
            connection.close()
            raise
        if own or not connection.is_reusable or len(self._idle) == self._idle.maxlen:
            connection.close()
        else:
            self._idle.append(connection)
        response.raw = Reply(response.status_code, response.headers, body, headers_at, arrived_at, is_sole)
        return response

    def _kept(self, seconds: float) -> Connection:
        """A kept connection that has stayed quiet, or a new one. A kept one that has not is closed: nobody fails."""
        with suppress(IndexError):
            while connection := self._idle.pop():
                self._shared.watchdog.current.hold(connection.cancellable)
                idle_state = connection.idle_state()
                if idle_state == "quiet":
                    return connection
                if idle_state == "stray":
                    self._shared.desynced()
                connection.close()
        return self._opened(seconds)

    def _opened(self, seconds: float) -> Connection:
        """A new connection, over which nothing has arrived yet."""
        connection = self._connector.open(seconds)
        if self._is_quiet(connection):
            return connection
        raise unanswered()

    def _unused(self, seconds: float) -> Connection:
        """A connection over which nothing has gone yet: one that was opened ahead, or a new one."""
        while spare := self._spares.take():
            self._shared.watchdog.current.hold(spare.cancellable)
            if self._is_quiet(spare):
                return spare
        return self._opened(seconds)

    def _is_quiet(self, connection: Connection) -> bool:
        """Whether nothing has arrived over an unused connection; closes it else. Raises GatewayUnreachable ("desync")
        if something has."""
        idle_state = connection.idle_state()
        if idle_state == "quiet":
            return True
        connection.close()
        if idle_state == "stray":
            raise self._shared.desync("before the request")
        return False

    def close(self) -> None:
        self._spares.close()
        while self._idle:
            self._idle.pop().close()
