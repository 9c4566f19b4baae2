"""A receiver of notifications: a real HTTP server that records requests and answers as a test wants."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

PATIENCE_SECONDS = 30


class Got(NamedTuple):
    """A complete request."""

    path: str
    body: str

    @property
    def title(self) -> str:
        return str(json.loads(self.body)["title"])

    @property
    def message(self) -> str:
        return str(json.loads(self.body)["message"])


class HttpReceiver:
    """Accepts POSTs at any path. ``status``: the answer; ``hold``: whether requests wait until `let_go`."""

    def __init__(self, port: int = 0) -> None:
        self.got: list[Got] = []
        self.status = 200
        self.hold = False
        self._news = threading.Condition()
        self._let_go = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                receiver._take(Got(self.path, body))
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.send_header("Location", "/a-page-that-is-always-there")
                self.end_headers()

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Its address for apprise, with a secret that must never appear in a log."""
        return f"json://someone:pass-canary@127.0.0.1:{self.port}/path-canary"

    @property
    def titles(self) -> list[str]:
        return [got.title for got in self.got]

    def let_go(self) -> None:
        self._let_go.set()

    def wait_for(self, count: int) -> list[Got]:
        """Wait for ``count`` requests, and return them."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.got) >= count, PATIENCE_SECONDS), self.got
            return self.got[:count]

    def _take(self, got: Got) -> None:
        with self._news:
            self.got.append(got)
            self._news.notify_all()
        if self.hold:
            self._let_go.wait(PATIENCE_SECONDS)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """Ignore a client that was killed or gave up."""
