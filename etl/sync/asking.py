"""Answers on their way: as many requests in flight as allowed, and no more answers in hand than can be written soon."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

from etl.errors import GatewayError
from etl.model import Fence, Snapshot

_FLOWS_A_GROUP: Final = 10_000
"""As many workflows of answers that differ are written in one transaction."""
_FLOWS_IN_HAND: Final = 2 * _FLOWS_A_GROUP
"""Nothing more is asked for while so many wait, to bound memory: one group is written while the next arrives."""
_LULL_SECONDS: Final = 1.0
"""What has arrived is written when nothing more arrives for so long."""


class Asked(NamedTuple):
    """A target's answer: a snapshot (``differs``: from the last one), an error, or None for an interruption."""

    fence: Fence
    answer: Snapshot | GatewayError | None
    differs: bool = False

    @property
    def flows(self) -> int:
        """How many workflows it brings into memory."""
        return len(self.answer.flows or ()) if self.differs and isinstance(self.answer, Snapshot) else 0


class Asking:
    """Asks for each of ``fences`` once, with ``ask``, which must not raise, in the threads of ``fetchers``."""

    def __init__(
        self, ask: Callable[[Fence], Asked], fences: Sequence[Fence], fetchers: Executor, in_flight: int
    ) -> None:
        self._ask = ask
        self._fetchers = fetchers
        self._in_flight = in_flight
        self._context = contextvars.copy_context()
        """Of whoever asks: its threads log in it, each call in a copy of its own."""
        self._answers: queue.SimpleQueue[Asked] = queue.SimpleQueue()
        self._untaken = len(fences)
        self._lock = threading.Lock()
        self._unasked = iter(fences)
        self._under_way = 0
        self._flows_in_hand = 0

    def groups(self) -> Iterator[list[Asked]]:
        """The answers, in groups that are worth a transaction; who takes the next one is done with the one before."""
        self._go_on(0, 0)
        while self._untaken:
            group, flows = self._next_group()
            yield group
            self._go_on(0, -flows)

    def _next_group(self) -> tuple[list[Asked], int]:
        group: list[Asked] = []
        flows = 0
        while self._untaken and flows < _FLOWS_A_GROUP:
            try:
                asked = self._answers.get(timeout=_LULL_SECONDS)
            except queue.Empty:
                if group:
                    break
                continue
            group.append(asked)
            flows += asked.flows
            self._untaken -= 1
        return group, flows

    def _fetch(self, fence: Fence) -> None:
        asked = self._ask(fence)
        self._answers.put(asked)
        self._go_on(1, asked.flows)

    def _go_on(self, arrived: int, flows: int) -> None:
        """Send as many more requests as may be in flight, unless enough is in hand."""
        with self._lock:
            self._under_way -= arrived
            self._flows_in_hand += flows
            while self._under_way < self._in_flight and self._flows_in_hand < _FLOWS_IN_HAND:
                fence = next(self._unasked, None)
                if fence is None:
                    return
                self._under_way += 1
                self._fetchers.submit(self._context.copy().run, self._fetch, fence)
