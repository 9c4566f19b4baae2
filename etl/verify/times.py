"""When runs were under way: only then can anything have been observed."""

from __future__ import annotations

import datetime as dt
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection, select

from etl.database import STREAMED
from etl.schema import sync_run

_FOR_EVER: Final = dt.datetime.max.replace(tzinfo=dt.UTC)
_TIMES: Final = select(sync_run.c.started_at, sync_run.c.finished_at).order_by(sync_run.c.started_at)


class RunTimes:
    """The times of all runs, with overlapping ones merged: memory grows with the pauses between runs."""

    def __init__(self, times: Iterable[tuple[dt.datetime, dt.datetime | None]]) -> None:
        """Times from beginning to end (None: still under way), sorted by beginning."""
        self._starts: list[dt.datetime] = []
        self._ends: list[dt.datetime] = []
        for started_at, finished_at in times:
            until = finished_at or _FOR_EVER
            if self._ends and started_at <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], until)
            else:
                self._starts.append(started_at)
                self._ends.append(until)

    def __contains__(self, moment: dt.datetime) -> bool:
        place = bisect_right(self._starts, moment) - 1
        return place >= 0 and moment <= self._ends[place]


NO_RUNS_KNOWN: Final = RunTimes([(dt.datetime.min.replace(tzinfo=dt.UTC), None)])
"""Used if nothing is known about runs: every time is possible."""


def run_times(connection: Connection) -> RunTimes:
    """The run times in a database. Times that cannot be read are left to the check of the seals."""
    try:
        with connection.execute(_TIMES, execution_options=STREAMED) as rows:
            return RunTimes((row.started_at, row.finished_at) for row in rows)
    except ValueError:
        return NO_RUNS_KNOWN
