"""An HTTP server in a separate thread, which the service starts and stops.

No client can exhaust the process. uvicorn only ends a connection after a response, when nothing follows. It waits for
ever for a request that does not come or does not end, and for a client that does not read its response. These rules are
added around its protocol:

| a connection | is closed |
|---|---|
| that has not sent a whole request | FIRST_REQUEST_SECONDS after it was made |
| whose last request began REQUEST_SECONDS ago | then, whether its response was read or not |
| that has waited longest without a request | when the maximum is reached and another one comes |

uvicorn itself closes a connection that is idle after a response, and answers 400 to headers of more than 16 KiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from etl.errors import FlowtrailError
from etl.system.descriptors import MOST_HTTP_CONNECTIONS

_LAST_RESPONSES_SECONDS: Final = 2
_IDLE_SECONDS: Final = 15
_BACKLOG: Final = 1024
_PAUSE_SECONDS: Final = 1.0
"""Pause after a connection that could not be accepted: the next one would fail as well."""
_NOT_ACCEPTING: Final = "it is tried again every second; if descriptors are short, raise the limit (`ulimit -n`)"
_WHY: Final = {
    errno.EADDRINUSE: "another program listens there: stop it, or set another [service] listen",
    errno.EACCES: "this user may not use that port: choose one above 1023 in [service] listen",
    errno.EADDRNOTAVAIL: "this machine has no such address: set another [service] listen",
}
FIRST_REQUEST_SECONDS: Final = 10.0
REQUEST_SECONDS: Final = 60.0


class HttpServer:
    """Serves ``app`` on ``host`` and ``port`` (0: any free one) from ``start`` to ``stop``; also a context manager.

    It installs no signal handlers, writes no access log, and trusts no header about where a request comes from.
    ``connections`` limits how many clients there may be at once, and for how long.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, connections: Connections | None = None) -> None:
        self.host = host
        self.port = port
        self._connections = connections or Connections(MOST_HTTP_CONNECTIONS)
        self._config = uvicorn.Config(
            RequestTimes(app),
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=_LAST_RESPONSES_SECONDS,
        )
        self._server = uvicorn.Server(self._config)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._log = structlog.get_logger("etl.http")

    @property
    def url(self) -> str:
        """Its address; only valid after ``start``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def start(self) -> None:
        """Listen, then serve. Raises FlowtrailError, which says why, if the address cannot be used."""
        listening = self._listen()
        self.port = listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, args=(listening,), name="http", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the responses under way within two seconds, and free the port; does nothing if not started."""
        if self._thread is not None:
            self._stopping.set()
            self._server.should_exit = True
            self._thread.join(2 * _LAST_RESPONSES_SECONDS + 1)
            self._thread = None

    def __enter__(self) -> HttpServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _serve(self, listening: socket.socket) -> None:
        """Serve until `stop`, whatever happens: without its health endpoints the service would be taken for dead."""
        with listening:
            while not self._stopping.is_set():
                try:
                    asyncio.run(self._serve_on(listening))
                except Exception:
                    self._log.exception("http_failed", again_in_seconds=_PAUSE_SECONDS)
                    self._stopping.wait(_PAUSE_SECONDS)

    async def _serve_on(self, listening: socket.socket) -> None:
        """uvicorn serves and closes the connections; only accepting them is done here.

        asyncio's own accept loop, which uvicorn would use, logs thousands of tracebacks a second when the process has
        no descriptor left.
        """
        server = self._server = uvicorn.Server(self._config)
        server.should_exit = self._stopping.is_set()
        accepting = asyncio.create_task(self._accept(listening))
        accepting.add_done_callback(lambda _: setattr(server, "should_exit", True))
        try:
            await server.serve(sockets=[])
        finally:
            accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await accepting

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        while not self._stopping.is_set():
            try:
                connected, _ = await loop.sock_accept(listening)
            except OSError as error:
                self._log.warning("not_accepting", error=error.strerror or str(error), remedy=_NOT_ACCEPTING)
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if self._connections.make_room():
                await loop.connect_accepted_socket(self._protocol, connected)
            else:
                connected.close()

    def _protocol(self) -> asyncio.Protocol:
        """For one connection, as uvicorn makes it."""
        http = H11Protocol(self._config, self._server.server_state, app_state={})
        return self._connections.protocol(http)

    def _listen(self) -> socket.socket:
        try:
            (family, _, _, _, address), *_ = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            both = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
            return socket.create_server(address[:2], family=family, backlog=_BACKLOG, dualstack_ipv6=both)
        except OSError as error:
            why = _WHY.get(error.errno or 0, error.strerror or str(error))
            raise FlowtrailError(f"Cannot listen on {self.host}:{self.port}: {why}.") from error


# ------------------------------------------------------------------------------------------------- its connections


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
