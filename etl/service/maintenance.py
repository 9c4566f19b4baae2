"""What the active replica does beside its runs: keeps the ends of the chains in a file, and forgets old runs."""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from etl.errors import DatabaseError
from etl.store import Store
from etl.system.background import BackgroundLoop
from etl.verify import HeadsFile

TICK_SECONDS: Final = 5.0
"""How soon after a run's end its heads are in the file."""
PRUNE_SECONDS: Final = 3600.0
UNSURE_SECONDS: Final = 300.0
"""How long to wait for a gateway to say what time it is; some never say it."""
_SHARE: Final = 20
"""So many times longer than the last look at all targets it rests before the next one."""
_LAST_WORDS_SECONDS: Final = 3.0


class Maintenance:
    """A thread of its own, so that neither a slow disk nor a full one holds up a run. It works while ``active``."""

    def __init__(
        self,
        store: Store,
        *,
        active: Callable[[], bool],
        clock: Callable[[], dt.datetime],
        keep_runs: dt.timedelta | None,
        heads: HeadsFile | None,
        clock_is_right: Callable[[], bool | None] = lambda: True,
    ) -> None:
        """``clock_is_right``: None where nobody has said yet; no run is deleted while it is False."""
        self._store = store
        self._active = active
        self._clock = clock
        self._keep_runs = keep_runs
        self._heads = heads
        self._clock_is_right = clock_is_right
        self._loop = BackgroundLoop("maintenance", self._step, first_after_seconds=TICK_SECONDS, last_step=True)
        self._seen: object = None
        self._active_since: float | None = None
        self._prune_at = self._look_at = 0.0
        self._troubles: dict[str, str] = {}
        self._log = structlog.get_logger("etl.service.maintenance")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Work while the block runs; at its end, once more for the last runs."""
        self._loop.start()
        try:
            yield
        finally:
            self._loop.stop(_LAST_WORDS_SECONDS)

    def _step(self) -> float:
        self._tick()
        return TICK_SECONDS

    def _tick(self) -> None:
        if not self._active():
            self._seen, self._active_since, self._prune_at = None, None, 0.0
            return
        self._active_since = self._active_since or time.monotonic()
        if self._heads is not None:
            self._attempt("heads_file", self._keep_heads, remedy=f"it is tried again; look at {self._heads.path}")
        if self._keep_runs is not None and time.monotonic() >= self._prune_at and self._may_go_on():
            self._attempt("pruning", self._prune, remedy="it is tried again")

    def _attempt(self, what: str, work: Callable[[], None], remedy: str) -> None:
        """Say what goes wrong once, and that it goes well again; the database's absence is the service's to say."""
        try:
            work()
        except DatabaseError:
            return
        except Exception as error:
            if self._troubles.get(what) != str(error):
                self._log.warning(f"{what}_failed", error=str(error), remedy=remedy)
            self._troubles[what] = str(error)
        else:
            if self._troubles.pop(what, None) is not None:
                self._log.info(f"{what}_works_again")

    def _keep_heads(self) -> None:
        """Nothing but a run moves a head, so there is nothing to compare until one began, wrote or ended."""
        assert self._heads is not None  # noqa: S101 - the caller looked
        began = time.monotonic()
        marks = self._store.marks()
        if marks == self._seen or (began < self._look_at and not self._loop.stopping):
            return
        appended = self._heads.catch_up(self._clock())
        self._seen, self._look_at = marks, began + _SHARE * (time.monotonic() - began)
        if appended.heads:
            self._log.debug("heads_kept", heads=appended.heads)
        if appended.set_back:
            self._log.warning(
                "heads_set_back",
                targets=appended.set_back,
                remedy="the file of heads knew later versions: was a backup restored? See `flowtrail verify --against`",
            )

    def _prune(self) -> None:
        assert self._keep_runs is not None  # noqa: S101 - the caller looked
        self._prune_at = time.monotonic() + PRUNE_SECONDS
        now = self._clock()
        gone = self._store.prune_runs(now - self._keep_runs, now, go_on=self._may_go_on)
        if gone.runs:
            self._log.info("runs_pruned", runs=gone.runs, issues=gone.issues)

    def _may_go_on(self) -> bool:
        return self._active() and self._trusts_clock() and not self._loop.stopping

    def _trusts_clock(self) -> bool:
        """With a clock that is years ahead every run looks old."""
        right = self._clock_is_right()
        if right is None:
            return time.monotonic() - (self._active_since or math.inf) >= UNSURE_SECONDS
        return right
