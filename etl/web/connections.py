"""Connections of an HTTP server: how many there may be, and for how long, so that no client can exhaust the process.

uvicorn only ends a connection after a response, when nothing follows. It waits for ever for a request that does not
come or does not end, and for a client that does not read its response. These rules are added around its protocol:

| a connection | is closed |
|---|---|
| that has not sent a whole request | FIRST_REQUEST_SECONDS after it was made |
| whose last request began REQUEST_SECONDS ago | then, whether its response was read or not |
| that has waited longest without a request | when the maximum is reached and another one comes |

uvicorn itself closes a connection that is idle after a response, and answers 400 to headers of more than 16 KiB.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

FIRST_REQUEST_SECONDS: Final = 10.0
REQUEST_SECONDS: Final = 60.0


class Connections:
    """The connections of one server, at most ``most``. Used in the thread of its event loop alone."""

    def __init__(
        self,
        most: int,
        *,
        first_request_seconds: float = FIRST_REQUEST_SECONDS,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        self.first_request_seconds = first_request_seconds
        self.request_seconds = request_seconds
        self._most = most
        self._waiting: dict[_Connection, None] = {}
        """Connections without a request under way, the one that has waited longest first."""
        self._serving: set[_Connection] = set()

    def make_room(self) -> bool:
        """Whether there is room for another connection; closes the one that has waited longest if that makes room."""
        if len(self._waiting) + len(self._serving) < self._most:
            return True
        longest = next(iter(self._waiting), None)
        if longest is None:
            return False
        longest.cut_off()
        return True

    def protocol(self, http: asyncio.Protocol) -> asyncio.Protocol:
        """``http``, under the rules above."""
        return _Connection(http, self)

    def waits(self, connection: _Connection) -> None:
        self._serving.discard(connection)
        self._waiting[connection] = None

    def serves(self, connection: _Connection) -> None:
        self._waiting.pop(connection, None)
        self._serving.add(connection)

    def forget(self, connection: _Connection) -> None:
        self._waiting.pop(connection, None)
        self._serving.discard(connection)


class RequestTimes:
    """Middleware around the whole application: records for each connection when requests begin and end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with _this_connection.get().request():
            await self._app(scope, receive, send)


class ConcurrencyLimit:
    """Handles at most ``most`` requests at a time; further ones get 503 with Retry-After."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._under_way >= self._most:
            await _TOO_MANY(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1


_TOO_MANY: Final = PlainTextResponse(
    "Too many pages are being rendered: try again in a few seconds.\n", 503, {"Retry-After": "5"}
)


class _Connection(asyncio.Protocol):
    """Wraps the HTTP protocol of a connection, and closes the connection when its time is over."""

    def __init__(self, http: asyncio.Protocol, connections: Connections) -> None:
        self._http = http
        self._connections = connections
        self._requests = 0
        """Requests under way; two for a moment if the client sends the next one before the response."""
        self._context = contextvars.copy_context()
        self._context.run(_this_connection.set, self)
        self._transport: asyncio.Transport
        self._end: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a stream's
        self._transport = transport
        self._ends_in(self._connections.first_request_seconds)
        self._connections.waits(self)
        self._http.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._context.run(self._http.data_received, data)

    def eof_received(self) -> bool | None:
        return self._http.eof_received()

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._end.cancel()
        self._connections.forget(self)
        self._http.connection_lost(error)

    def cut_off(self) -> None:
        """Close at once; unsent bytes are dropped."""
        self._connections.forget(self)
        self._transport.abort()

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request of this connection is under way."""
        self._requests += 1
        if not self._transport.is_closing():
            self._end.cancel()
            self._ends_in(self._connections.request_seconds)
            self._connections.serves(self)
        try:
            yield
        finally:
            self._requests -= 1
            if not self._requests and not self._transport.is_closing():
                self._connections.waits(self)

    def _ends_in(self, seconds: float) -> None:
        self._end = asyncio.get_running_loop().call_later(seconds, self.cut_off)


_this_connection: Final[contextvars.ContextVar[_Connection]] = contextvars.ContextVar("connection")
