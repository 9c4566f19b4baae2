"""A TCP proxy before PostgreSQL that cuts the connection at the n-th message of its clients."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, Literal, Self

_MOST_BYTES = 1 << 20


class CuttingProxy:
    """Messages are counted over all connections, as they are sent: a statement, a COMMIT, a handshake.

    "before": the server never gets it. "after": the server has answered, and the answer is swallowed. "middle": half
    of the answer arrives. Then both connections end; later ones pass untouched.
    """

    def __init__(self, server_port: int, at: int, when: Literal["before", "middle", "after"]) -> None:
        self._server_port = server_port
        self._at = at
        self._when = when
        self._lock = threading.Lock()
        self._sent = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.has_cut = False

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for each in [self._listener, *self._sockets]:
            _end(each)
        for thread in self._threads:
            thread.join(timeout=10)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._sockets += [client, server]
                cutting = threading.Event()
                self._start(self._questions, client, server, cutting)
                self._start(self._answers, client, server, cutting)

    def _is_the_one(self) -> bool:
        with self._lock:
            self._sent += 1
            return self._sent == self._at

    def _questions(self, client: socket.socket, server: socket.socket, cutting: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while sent := client.recv(_MOST_BYTES):
                if self._is_the_one():
                    self.has_cut = True
                    if self._when == "before":
                        break
                    cutting.set()
                server.sendall(sent)
        if not cutting.is_set():
            _end(server)
            _end(client)

    def _answers(self, client: socket.socket, server: socket.socket, cutting: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while answer := server.recv(_MOST_BYTES):
                if cutting.is_set():
                    if self._when == "middle":
                        client.sendall(answer[: len(answer) // 2])
                    break
                client.sendall(answer)
        _end(client)
        _end(server)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
