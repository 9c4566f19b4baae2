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
import errno
import socket
import threading
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from etl.errors import FlowtrailError
from etl.log import get_logger
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
    There are at most ``most_connections`` at once.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        most_connections: int = MOST_HTTP_CONNECTIONS,
        first_request_seconds: float = FIRST_REQUEST_SECONDS,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        self.host = host
        self.port = port
        self.first_request_seconds = first_request_seconds
        self.request_seconds = request_seconds
        self._most_connections = most_connections
        self.connections: dict[_Connection, None] = {}
        """Those without a request under way in the order in which they began to wait."""
        self._config = uvicorn.Config(
            app,
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
        self._log = get_logger("etl.http")

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
            if self._make_room():
                await loop.connect_accepted_socket(
                    lambda: _Connection(self._config, self._server.server_state, self), connected
                )
            else:
                connected.close()

    def _make_room(self) -> bool:
        """Whether there is room for another connection; closes the one that has waited longest if that makes room."""
        if len(self.connections) < self._most_connections:
            return True
        longest = next((each for each in self.connections if not each.requests), None)
        if longest is not None:
            longest.cut_off()
        return longest is not None

    def _listen(self) -> socket.socket:
        try:
            (family, _, _, _, address), *_ = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            both = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
            listening = socket.create_server(address[:2], family=family, backlog=_BACKLOG, dualstack_ipv6=both)
        except OSError as error:
            why = _WHY.get(error.errno or 0, error.strerror or str(error))
            raise FlowtrailError(f"Cannot listen on {self.host}:{self.port}: {why}.") from error
        # The connections accepted from it inherit this. Without it, the body of an answer waits for the acknowledgement
        # of its head, which comes 40 ms later; asyncio sets it only on sockets that say which protocol they speak.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening


class _Connection(H11Protocol):
    """A connection of ``http``, under the rules above."""

    def __init__(self, config: uvicorn.Config, state: ServerState, http: HttpServer) -> None:
        super().__init__(config, state, app_state={})
        self.requests = 0
        """Requests under way; two for a moment if the client sends the next one before the response."""
        self._http = http
        self._respond, self.app = self.app, self._request
        self._end: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._ends_in(self._http.first_request_seconds)
        self._waits()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.cancel()
        self._http.connections.pop(self, None)
        super().connection_lost(exc)

    def cut_off(self) -> None:
        """Close at once; unsent bytes are dropped."""
        self._http.connections.pop(self, None)
        self.transport.abort()

    async def _request(self, scope: Any, receive: Any, send: Any) -> None:
        """A request is under way."""
        self.requests += 1
        if not self.transport.is_closing():
            self._end.cancel()
            self._ends_in(self._http.request_seconds)
        try:
            await self._respond(scope, receive, send)
        finally:
            self.requests -= 1
            if not self.requests and not self.transport.is_closing():
                self._waits()

    def _waits(self) -> None:
        """Now it is the last of those that wait."""
        self._http.connections.pop(self, None)
        self._http.connections[self] = None

    def _ends_in(self, seconds: float) -> None:
        self._end = self.loop.call_later(seconds, self.cut_off)
