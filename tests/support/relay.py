"""A relay between a client and a server on this machine: a port, two sockets per connection, and threads."""

from __future__ import annotations

import abc
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

PATIENCE_SECONDS = 10
MOST_BYTES = 1 << 20


class Relay(abc.ABC):
    """Accepts connections at ``port`` while the block lasts, and opens a connection to the server for each.

    A subclass decides what passes between the two. If the server cannot be reached, the client's connection is closed.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        end(self._listener)
        self._threads[0].join(PATIENCE_SECONDS)  # so that no further connection is accepted
        for each in self._sockets:
            end(each)
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    @abc.abstractmethod
    def _join(self, client: socket.socket, server: socket.socket) -> None:
        """Start threads that pass bytes between the two and close both."""

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = self._connected()
                if server is None:
                    client.close()
                    continue
                self._sockets += [client, server]
                self._join(client, server)

    def _connected(self) -> socket.socket | None:
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", self._server_port))
        return None


class Cutter(Relay):
    """A relay that cuts a connection at a request: the request is lost, or its answer is incomplete."""

    def __init__(self, server_port: int, *, answered: bool) -> None:
        super().__init__(server_port)
        self._answered = answered

    @abc.abstractmethod
    def _watch(self) -> Callable[[bytes], tuple[bytes, bool]]:
        """For one connection: which of a client's bytes to forward to the server, and whether they are the last."""

    def _left_of(self, answer: bytes) -> bytes:
        """The part of the last answer that the client still gets."""
        return b""

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        cutting = threading.Event()
        self._start(self._questions, client, server, cutting)
        self._start(self._answers, client, server, cutting)

    def _questions(self, client: socket.socket, server: socket.socket, cutting: threading.Event) -> None:
        passed_of = self._watch()
        with contextlib.suppress(OSError):
            while piece := client.recv(MOST_BYTES):
                passed, is_last = passed_of(piece)
                if is_last and self._answered:
                    cutting.set()
                server.sendall(passed)
                if is_last:
                    break
        if not cutting.is_set():
            end(server)
            end(client)

    def _answers(self, client: socket.socket, server: socket.socket, cutting: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while answer := server.recv(MOST_BYTES):
                if cutting.is_set():
                    client.sendall(self._left_of(answer))
                    break
                client.sendall(answer)
        end(client)
        end(server)


def end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


class LossyProxy(Cutter):
    """Forwards everything until it is told to lose the next client message that contains ``word``.

    ``forward``: the server gets the message, and the answer is lost; otherwise the message is. Then both connections
    end.
    """

    def __init__(self, server_port: int, word: bytes, *, forward: bool) -> None:
        super().__init__(server_port, answered=forward)
        self._word = word
        self._armed = threading.Event()
        self.lost = 0

    def lose_next(self) -> None:
        self._armed.set()

    def _watch(self) -> Callable[[bytes], tuple[bytes, bool]]:
        return self._passed

    def _passed(self, sent: bytes) -> tuple[bytes, bool]:
        if not (self._armed.is_set() and self._word in sent):
            return sent, False
        self._armed.clear()
        self.lost += 1
        return sent if self._answered else b"", True
