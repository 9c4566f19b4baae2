"""A TCP proxy in front of PostgreSQL that cuts the connection at the n-th client message that expects an answer."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from typing import Literal

from tests.support.relay import Cutter

_ENCRYPTION_REQUESTS = {80877103, 80877104}
_ANSWERED = b"QSp"
"""Query, Sync and a password message are answered; messages before a Sync wait for it (PostgreSQL, chapter 54)."""


class Messages:
    """Splits the stream of one client into messages; True: the message expects an answer."""

    def __init__(self) -> None:
        self._rest = b""
        self._greeting = True

    def read(self, piece: bytes) -> Iterator[tuple[bytes, bool]]:
        """The messages that are complete by now."""
        self._rest += piece
        while (length := self._length()) is not None:
            message, self._rest = self._rest[:length], self._rest[length:]
            if self._greeting:
                self._greeting = struct.unpack_from("!i", message, 4)[0] in _ENCRYPTION_REQUESTS
                yield message, True
            else:
                yield message, message[:1] in _ANSWERED

    def _length(self) -> int | None:
        """The length of the first message, if it is complete."""
        typed = 0 if self._greeting else 1
        if len(self._rest) < typed + 4:
            return None
        length = typed + int(struct.unpack_from("!i", self._rest, typed)[0])
        return length if len(self._rest) >= length else None


class CuttingProxy(Cutter):
    """Messages are counted over all connections: a statement, a COMMIT, a handshake.

    "before": the server never gets the message. "after": the server answers, and the answer is dropped. "middle": half
    of the answer arrives. Then both connections end; later ones are not disturbed.
    """

    def __init__(self, server_port: int, at: int, when: Literal["before", "middle", "after"]) -> None:
        super().__init__(server_port, answered=when != "before")
        self._at = at
        self._when = when
        self._lock = threading.Lock()
        self._sent = 0
        self.has_cut = False

    def _is_the_one(self) -> bool:
        with self._lock:
            self._sent += 1
            return self._sent == self._at

    def _watch(self) -> Callable[[bytes], tuple[bytes, bool]]:
        messages = Messages()
        return lambda piece: self._passed(messages.read(piece))

    def _left_of(self, answer: bytes) -> bytes:
        return answer[: len(answer) // 2] if self._when == "middle" else b""

    def _passed(self, messages: Iterator[tuple[bytes, bool]]) -> tuple[bytes, bool]:
        """The bytes to forward to the server, and whether to cut the connection after them."""
        passed = b""
        for message, wants_answer in messages:
            if wants_answer and self._is_the_one():
                self.has_cut = True
                return passed + (message if self._answered else b""), True
            passed += message
        return passed, False
