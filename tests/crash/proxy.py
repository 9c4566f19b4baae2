"""A TCP proxy before PostgreSQL that cuts the connection at the n-th message of its clients that wants an answer."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

_MOST_BYTES = 1 << 20
_ENCRYPTION_REQUESTS = {80877103, 80877104}
_ANSWERED = b"QSp"
"""Query, Sync and a password are answered; what comes before a Sync waits for it (PostgreSQL, chapter 54)."""


class Messages:
    """Cuts the stream of one client into messages, whatever pieces it arrives in; True: it wants an answer."""

    def __init__(self) -> None:
        self._rest = b""
        self._greeting = True

    def read(self, piece: bytes) -> Iterator[tuple[bytes, bool]]:
        """The messages that are whole by now."""
        self._rest += piece
        while (length := self._length()) is not None:
            message, self._rest = self._rest[:length], self._rest[length:]
            if self._greeting:
                self._greeting = struct.unpack_from("!i", message, 4)[0] in _ENCRYPTION_REQUESTS
                yield message, True
            else:
                yield message, message[:1] in _ANSWERED

    def _length(self) -> int | None:
        """How long the first message is, if it is there as a whole."""
        typed = 0 if self._greeting else 1
        if len(self._rest) < typed + 4:
            return None
        length = typed + int(struct.unpack_from("!i", self._rest, typed)[0])
        return length if len(self._rest) >= length else None


class CuttingProxy:
    """Messages are counted over all connections: a statement, a COMMIT, a handshake.

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
        messages = Messages()
        with contextlib.suppress(OSError):
            while piece := client.recv(_MOST_BYTES):
                passed, is_cut = self._passed(messages.read(piece))
                if is_cut and self._when != "before":
                    cutting.set()
                server.sendall(passed)
                if is_cut:
                    break
        if not cutting.is_set():
            _end(server)
            _end(client)

    def _passed(self, messages: Iterator[tuple[bytes, bool]]) -> tuple[bytes, bool]:
        """The bytes that go on to the server, and whether the connection is cut behind them."""
        passed = b""
        for message, wants_answer in messages:
            if wants_answer and self._is_the_one():
                self.has_cut = True
                return passed + (b"" if self._when == "before" else message), True
            passed += message
        return passed, False

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
