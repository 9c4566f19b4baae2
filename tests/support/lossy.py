"""A TCP proxy in front of PostgreSQL that can lose a statement or its answer."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.support.relay import Cutter


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
