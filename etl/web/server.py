"""An HTTP server in a thread of its own, which the service starts and stops."""

from __future__ import annotations

import errno
import socket
import threading
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from etl.errors import FlowtrailError

_LAST_RESPONSES_SECONDS: Final = 2
_BACKLOG: Final = 128
_WHY: Final = {
    errno.EADDRINUSE: "another program listens there: stop it, or set another [service] listen",
    errno.EACCES: "this user may not use that port: choose one above 1023 in [service] listen",
    errno.EADDRNOTAVAIL: "this machine has no such address: set another [service] listen",
}


class HttpServer:
    """Serves ``app`` on ``host`` and ``port`` (0: any free one) from ``start`` to ``stop``; also a context manager.

    It installs no signal handlers, writes no access log, and believes no header about where a request comes from.
    """

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=_LAST_RESPONSES_SECONDS,
            )
        )
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it is found; only true after ``start``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def start(self) -> None:
        """Listen, then serve. Raises FlowtrailError, which says why, where the address cannot be used."""
        listening = self._listen()
        self.port = listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, args=(listening,), name="http", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the responses under way, within two seconds, and free the port; harmless where nothing serves."""
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join(2 * _LAST_RESPONSES_SECONDS + 1)
            self._thread = None

    def __enter__(self) -> HttpServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _serve(self, listening: socket.socket) -> None:
        with listening:
            self._server.run(sockets=[listening])

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
