"""The schedules of a service: from their files, with the users of organisations' rosters."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from etl.config import Schedule
from etl.errors import DatabaseError
from etl.sync import Rosters, organisations


class KnownSchedules:
    """Safe to use from several threads."""

    def __init__(self, load: Callable[[], Sequence[Schedule]], rosters: Rosters | None) -> None:
        self._load = load
        self._rosters = rosters
        self._configured: Sequence[Schedule] = ()
        self._known_at: Mapping[str, float] = {}
        """When this process first read each schedule, by the monotonic clock."""
        self._lock = threading.Lock()
        self.current: Sequence[Schedule] = ()

    def load(self) -> None:
        """Read the files. If one is broken, raises ConfigError and leaves the schedules as they were."""
        self._configured = self._load()
        self.expand()

    def expand(self) -> None:
        """Take the users that the rosters list now; if the database is away, keep the known ones."""
        with self._lock:
            expanded = self._configured
            if self._rosters is not None and organisations(expanded):
                with contextlib.suppress(DatabaseError):
                    expanded = self._rosters.expand(expanded)
            now = time.monotonic()
            self._known_at = {each.name: self._known_at.get(each.name, now) for each in expanded}
            self.current = expanded

    def refresh_rosters(self) -> bool:
        """Ask for the rosters that are due; return whether one changed the result of `expand`. Raises DatabaseError."""
        orgs = organisations(self._configured)
        if self._rosters is None:
            return False
        self._rosters.keep_only(self._configured)
        if not orgs:
            return False
        return any(each.moves for each in self._rosters.refresh(orgs))

    @property
    def lack_a_roster(self) -> bool:
        """Whether a schedule waits for a first roster."""
        return any(schedule.unlisted for schedule in self.current)

    def since(self, now: dt.datetime) -> Mapping[str, dt.datetime]:
        """Since when this process has known each schedule, in terms of the clock that says ``now``."""
        started = now - dt.timedelta(seconds=time.monotonic())
        return {name: started + dt.timedelta(seconds=at) for name, at in self._known_at.items()}
