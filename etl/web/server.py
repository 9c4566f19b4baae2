"""An HTTP server in a separate thread, which the service starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from typing import Final

import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from etl.errors import FlowtrailError
from etl.system.descriptors import MOST_HTTP_CONNECTIONS
from etl.web.connections import Connections, RequestTimes

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
