"""A TCP proxy before PostgreSQL that can lose the answer to a statement, or the statement."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class LossyProxy:
    """Passes everything on, until it is told to lose the next message of a client that contains ``word``.

    ``forward``: the server gets it, and its answer is swallowed; otherwise not even the server does. Then both
    connections end.
    """

    def __init__(self, server_port: int, word: bytes, *, forward: bool) -> None:
        self._server_port = server_port
        self._word = word
        self._forward = forward
        self._armed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self.lost = 0

    def lose_next(self) -> None:
        self._armed.set()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for each in [self._listener, *self._sockets]:
            _end(each)
        for thread in self._threads:
            thread.join(timeout=10)

    def _start(self, work, *arguments) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            server = socket.create_connection(("127.0.0.1", self._server_port))
            self._sockets += [client, server]
            swallow = threading.Event()
            self._start(self._questions, client, server, swallow)
            self._start(self._answers, client, server, swallow)

    def _questions(self, client: socket.socket, server: socket.socket, swallow: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while sent := client.recv(1 << 16):
                if self._armed.is_set() and self._word in sent:
                    self._armed.clear()
                    self.lost += 1
                    if not self._forward:
                        break
                    swallow.set()
                server.sendall(sent)
        if not swallow.is_set():
            _end(server)
            _end(client)

    def _answers(self, client: socket.socket, server: socket.socket, swallow: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while (answer := server.recv(1 << 16)) and not swallow.is_set():
                client.sendall(answer)
        _end(client)
        _end(server)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
