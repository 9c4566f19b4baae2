"""Targets that became overdue, or were observed again, without every receiver knowing it."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Sequence, Set
from typing import Final, NamedTuple

from etl.domain.model import Target
from etl.notify import digest
from etl.notify.delivery import Key, Outgoing, ReceiverState, Timing
from etl.notify.digest import Digest
from etl.report.overdue import Overdue
from etl.store import Store

_OVERDUE_SHARE: Final = 20
"""Looking for overdue targets takes at most one twentieth of the time, however many there are."""


class Freshness(NamedTuple):
    """The overdue targets, and when the others were last observed."""

    overdue: Sequence[Overdue]
    observed: dict[Target, dt.datetime]


class _Notice(NamedTuple):
    """A target that receivers must still be told of."""

    key: Key
    target: Target
    line: str


class OverdueNotices:
    """From time to time, compares which targets are overdue with what receivers have been told."""

    def __init__(
        self, store: Store, freshness: Callable[[], Freshness], clock: Callable[[], dt.datetime], timing: Timing
    ) -> None:
        self._store = store
        self._freshness = freshness
        self._clock = clock
        self._timing = timing
        self._look_at: float | None = None
        self._notices: list[_Notice] = []

    @property
    def pending(self) -> Set[Key]:
        """What receivers have not been told yet."""
        return {each.key for each in self._notices}

    def stand_by(self) -> None:
        """Forget everything while another replica is active."""
        self._look_at = None

    def find(self, now: float) -> None:
        """Look for overdue targets, if it is time."""
        if self._look_at is None:
            self._look_at = now + self._timing.overdue_after_seconds
        if now < self._look_at:
            return
        fresh = self._freshness()
        overdue = {each.target: each for each in fresh.overdue}
        self._notices, forgotten = [], []
        for known in self._store.known_targets():
            late, seen_at = overdue.get(known.target), fresh.observed.get(known.target)
            if late is not None and known.notified_at is None:
                self._notices.append(_Notice(("overdue", known.id), known.target, _overdue_line(late)))
            elif late is None and known.notified_at is not None:
                clock_was_ahead = known.notified_at > self._clock()
                if seen_at is not None and (seen_at > known.notified_at or clock_was_ahead):
                    self._notices.append(_Notice(("observed", known.id), known.target, _observed_line(known.target)))
                else:
                    forgotten.append(known.id)
        if forgotten:
            self._store.clear_overdue(forgotten)
        took = time.monotonic() - now
        self._look_at = now + max(self._timing.overdue_every_seconds, _OVERDUE_SHARE * took)

    def message(self, state: ReceiverState) -> Outgoing | None:
        """The message that a receiver still has to get; what it does not subscribe to counts as acknowledged."""
        pending = [notice for notice in self._notices if notice.key not in state.acknowledged]
        mine = [notice for notice in pending if state.wants_overdue() and state.wants_org(notice.target.org_id)]
        keys = {notice.key for notice in mine}
        state.acknowledged |= {notice.key for notice in pending} - keys
        if not mine:
            return None
        parts = digest.gather(
            ("overdue" if notice.key[0] == "overdue" else "recovered", notice.line) for notice in mine
        )
        summary = f"At {self._clock().astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC."
        return Outgoing(digest.message(Digest(name="", summary=summary, parts=parts)), keys)

    def settle(self, acknowledged: Set[Key], now: dt.datetime) -> None:
        """Record what every receiver has acknowledged, and forget it here."""
        settled = self.pending & acknowledged
        overdue, observed = (
            [int(number) for kind, number in settled if kind == each] for each in ("overdue", "observed")
        )
        if overdue:
            self._store.mark_overdue(overdue, now)
        if observed:
            self._store.clear_overdue(observed)
        self._notices = [notice for notice in self._notices if notice.key not in settled]


def _overdue_line(late: Overdue) -> str:
    seen = f"last seen {late.last_observed_at:%Y-%m-%d %H:%M:%S} UTC" if late.last_observed_at else "never seen"
    return f"{digest.quoted(str(late.target))}: {seen}, schedule {digest.quoted(late.schedule)}"


def _observed_line(target: Target) -> str:
    return f"{digest.quoted(str(target))}: observed again"
