"""Fetches the answers of a batch, with bounded requests in flight and bounded answers in memory."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

from etl.domain.model import Fence, Snapshot
from etl.errors import GatewayError

FLOWS_A_GROUP: Final = 10_000
"""Workflows, in answers that differ, that are decided on together, and changes that are written in one transaction.
While so many wait for a verdict, nothing more is asked for, to bound memory."""
_QUIET_SECONDS: Final = 1.0
"""After this long without an answer, a group is written although it is not full."""


class Fetched(NamedTuple):
    """A target's answer: a snapshot (``differs``: from the known one), an error, or None after an interruption."""

    fence: Fence
    answer: Snapshot | GatewayError | None
    differs: bool = False

    @property
    def flows(self) -> int:
        """How many workflows it keeps in memory."""
        return len(self.answer.flows or ()) if self.differs and isinstance(self.answer, Snapshot) else 0


class Fetcher:
    """Asks for each of ``fences`` once, with ``fetch_one``, which must not raise, in the threads of ``fetchers``.

    Each thread takes one fence after the other, and the consumer is woken once per group: with a fast gateway,
    switching to another thread costs as much as an answer.
    """

    def __init__(
        self, fetch_one: Callable[[Fence], Fetched], fences: Sequence[Fence], fetchers: Executor, in_flight: int
    ) -> None:
        self._fetch_one = fetch_one
        self._fetchers = fetchers
        self._in_flight = in_flight
        self._context = contextvars.copy_context()
        """The log context of the caller; each thread logs in a copy of it."""
        self._fences = iter(fences)
        self._unasked = self._unanswered = len(fences)
        self._fetching = 0
        self._lock = threading.Lock()
        self._full = threading.Condition(self._lock)
        self._groups: deque[tuple[list[Fetched], int]] = deque()
        self._group: list[Fetched] = []
        self._flows = 0
        """Workflows of the group that is filling; ``_flows_in_hand`` counts all without a verdict yet."""
        self._flows_in_hand = 0

    def groups(self) -> Generator[list[Fetched]]:
        """The answers, in groups that are worth a transaction. Taking the next group means that the last one is done.

        Closing the generator stops the fetching.
        """
        untaken = self._unanswered
        self._start_fetchers()
        try:
            while untaken:
                group, flows = self._next_group()
                untaken -= len(group)
                yield group
                with self._lock:
                    self._flows_in_hand -= flows
                self._start_fetchers()
        finally:
            with self._lock:
                self._fences = iter(())

    def _next_group(self) -> tuple[list[Fetched], int]:
        with self._lock:
            while not self._groups:
                seen = len(self._group)
                self._full.wait(_QUIET_SECONDS)
                if seen and not self._groups and seen == len(self._group):
                    self._close_group()
            return self._groups.popleft()

    def _close_group(self) -> None:
        self._groups.append((self._group, self._flows))
        self._group, self._flows = [], 0
        self._full.notify()

    def _start_fetchers(self) -> None:
        """Start as many threads as may fetch at once, unless enough answers wait in memory."""
        with self._lock:
            if self._flows_in_hand >= FLOWS_A_GROUP:
                return
            more = min(self._in_flight, self._unasked) - self._fetching
            self._fetching += max(more, 0)
        for _ in range(more):
            self._fetchers.submit(self._context.copy().run, self._fetch)

    def _fetch(self) -> None:
        """Fetch one target after the other, until there are no more or enough answers wait in memory."""
        fetched = None
        while fence := self._next_fence(fetched):
            fetched = self._fetch_one(fence)

    def _next_fence(self, fetched: Fetched | None) -> Fence | None:
        """Hand in an answer, and take the next target to ask for, if any."""
        with self._lock:
            if fetched is not None:
                self._group.append(fetched)
                self._flows += fetched.flows
                self._flows_in_hand += fetched.flows
                self._unanswered -= 1
                if self._flows >= FLOWS_A_GROUP or not self._unanswered:
                    self._close_group()
            if self._flows_in_hand < FLOWS_A_GROUP and (fence := next(self._fences, None)):
                self._unasked -= 1
                return fence
            self._fetching -= 1
            return None
