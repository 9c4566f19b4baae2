"""When runs were under way, and how many were to ask a target in a time, without iterating over them.

Only when a run was under way can anything have been observed (``RunTimes``).

Runs are grouped by what they were to ask (``RunGroup``). The runs of a group are in the order in which they saw
memberships, which is that of their beginnings. So a target that was listed from one membership to another was asked by
consecutive runs.
"""

from __future__ import annotations

import datetime as dt
import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, bindparam, exists, or_, select

from etl.database import STREAMED
from etl.domain.chain import encode
from etl.domain.model import Target
from etl.schema import pruned_issues, run_seal, sync_run

_NEVER: Final = dt.datetime.max.replace(tzinfo=dt.UTC)
_LONG_AGO: Final = dt.datetime.min.replace(tzinfo=dt.UTC)
_BY_NAME: Final = "targets"
_TIMES: Final = select(sync_run.c.started_at, sync_run.c.finished_at).order_by(sync_run.c.started_at)
_RUNS: Final[Any] = select(
    *(sync_run.c.id, sync_run.c.scope, sync_run.c.status, sync_run.c.started_at, sync_run.c.finished_at),
    exists().where(run_seal.c.run_id == sync_run.c.id).label("sealed"),
    exists().where(pruned_issues.c.pruned_run_id == sync_run.c.id).label("pruned"),
    (sync_run.c.failed + sync_run.c.stale >= sync_run.c.targets).label("unanswered"),
).where(or_(sync_run.c.id > bindparam("after"), sync_run.c.id.in_(bindparam("again", expanding=True))))


class Span(NamedTuple):
    """A span of time, and the end and beginning of its neighbours."""

    first: dt.datetime
    last: dt.datetime
    before: dt.datetime
    after: dt.datetime


class Run(NamedTuple):
    """The time of a run, and what it had seen."""

    seen: int
    """The highest membership that it saw."""
    start: dt.datetime
    end: dt.datetime
    certain: bool
    """Whether it observed each target that it was to ask and for which it has no issue."""

    def meets(self, span: Span) -> bool:
        """Whether it overlaps a span."""
        return self.start <= span.last and self.end >= span.first

    def meets_no_other(self, span: Span) -> bool:
        """Whether it overlaps no neighbour of a span."""
        return self.start > span.before and self.end < span.after


class Count(NamedTuple):
    """How many observations a span may have."""

    least: int
    most: int

    def without(self, runs: Iterable[Run], span: Span, *, perhaps: bool = False) -> Count:
        """Without these runs, which observed nothing; ``perhaps``: runs for which that is not certain."""
        met = [run for run in runs if run.meets(span)]
        sure = sum(run.certain and run.meets_no_other(span) for run in met)
        return Count(self.least - sure, self.most if perhaps else self.most - len(met))


class Memberships:
    """By which schedules a target was listed when, in terms of membership ids."""

    def __init__(self, moves: Iterable[tuple[int, str, bool]]) -> None:
        """``moves`` are (id, schedule, whether it joined), by id."""
        self._moves = list(moves)
        self.schedules = frozenset(schedule for _, schedule, _ in self._moves)

    def by(self, schedules: frozenset[str]) -> Iterator[tuple[int, int]]:
        """Ranges of memberships (end exclusive) in which any of these listed it."""
        listed: set[str] = set()
        since = 0
        for number, schedule, joined in self._moves:
            if schedule not in schedules:
                continue
            before = bool(listed)
            (listed.add if joined else listed.discard)(schedule)
            if listed and not before:
                since = number
            elif before and not listed:
                yield since, number
        if listed:
            yield since, 2**63


class RunGroup:
    """The runs with the same schedules, organisation, user and certainty."""

    def __init__(self, named: Mapping[str, Any], runs: Iterable[Run], *, certain: bool) -> None:
        self._certain = certain
        self.schedules = frozenset(named["schedules"])
        self._org_id, self._user_id = named["org_id"], named["user_id"]
        self._runs = sorted(runs)
        self._seen = [run.seen for run in self._runs]
        self._starts = [run.start for run in self._runs]
        self._in_order = all(a <= b for a, b in zip(self._starts, self._starts[1:], strict=False))
        self._longest = max((run.end - run.start for run in self._runs), default=dt.timedelta(0))

    def includes(self, of: Target) -> bool:
        return self._org_id in (None, of.org_id) and self._user_id in (None, of.user_id)

    def count(self, span: Span, listed: Iterable[tuple[int, int]]) -> Count:
        """Count the runs that overlap a span, of those that saw a membership in one of these ranges."""
        least = most = 0
        for begin, end in listed:
            low, high = bisect_left(self._seen, begin), bisect_left(self._seen, end)
            meeting, elsewhere = self._count(low, high, span)
            most += meeting
            least += meeting - elsewhere if self._certain else 0
        return Count(least, most)

    def _count(self, low: int, high: int, span: Span) -> tuple[int, int]:
        """How many of these consecutive runs overlap a span, and how many of those also overlap a neighbour.

        Runs that began within the span overlap it; only those that began just before it or end just after it are looked
        at.
        """
        if not self._in_order:
            met = [run for run in self._runs[low:high] if run.meets(span)]
            return len(met), sum(not run.meets_no_other(span) for run in met)
        first, last = bisect_left(self._starts, span.first), bisect_right(self._starts, span.last)
        inside_low, inside_high = max(low, first), max(max(low, first), min(high, last))
        early = self._early(low, min(high, inside_low), span)
        late = self._late(inside_low, inside_high, span)
        elsewhere = sum(not run.meets_no_other(span) for run in early) + late
        return len(early) + inside_high - inside_low, elsewhere

    def _early(self, low: int, high: int, span: Span) -> list[Run]:
        """Those that began before the span, and meet it."""
        begun = span.first - self._longest if span.first - _LONG_AGO > self._longest else _LONG_AGO
        return [run for run in self._runs[max(low, bisect_left(self._starts, begun)) : high] if run.meets(span)]

    def _late(self, low: int, high: int, span: Span) -> int:
        """How many of those that began within the span reach the next one."""
        if span.after == _NEVER or not self._certain:
            return 0
        begun = max(span.first, span.after - self._longest)
        return sum(run.end >= span.after for run in self._runs[max(low, bisect_left(self._starts, begun)) : high])


class RunIndex:
    """All runs, by what they were to ask; brought up to date before each look at some targets."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[bytes, Run]] = {}
        self._named: defaultdict[Target, list[int]] = defaultdict(list)
        self._open: set[int] = set()
        self._last = -(2**63)
        self._groups: list[RunGroup] = []

    def run(self, run_id: int) -> Run | None:
        """A run, by its id."""
        found = self._runs.get(run_id)
        return None if found is None else found[1]

    def update(self, connection: Connection) -> bool:
        """Take in what began or ended since the last time; False where a run cannot be read."""
        try:
            rows = connection.execute(_RUNS, {"after": self._last, "again": sorted(self._open)}).all()
            for row in rows:
                self._take(row)
            if rows:
                self._groups = list(self._grouped())
        except (ValueError, LookupError, TypeError):
            return False
        return True

    def count(self, of: Target, span: Span, listed: Memberships) -> Count:
        """How many runs were to ask a target in the time of a span."""
        named = [self._runs[run_id][1] for run_id in self._named.get(of, ())]
        met = [run for run in named if run.meets(span)]
        least, most = sum(run.certain and run.meets_no_other(span) for run in met), len(met)
        for group in self._groups:
            if group.includes(of) and group.schedules & listed.schedules:
                counted = group.count(span, listed.by(group.schedules))
                least, most = least + counted.least, most + counted.most
        return Count(least, most)

    def _take(self, row: Row[Any]) -> None:
        self._last = max(self._last, row.id)
        (self._open.discard if row.sealed else self._open.add)(row.id)
        scope = json.loads(row.scope)
        seen = int(scope.pop("membership_id"))
        certain = bool(row.sealed and not row.pruned and row.status != "aborted")
        run = Run(seen, row.started_at, row.finished_at or _NEVER, certain)
        if row.pruned and row.unanswered:  # the sums show it without the issues: nobody was observed in it
            run = run._replace(start=_NEVER, end=_NEVER)
        if scope.keys() != {_BY_NAME}:
            self._runs[row.id] = (encode(scope), run)
            return
        if row.id not in self._runs:
            for org_id, user_id, expression in scope[_BY_NAME]:
                self._named[Target(org_id, user_id, expression)].append(row.id)
        self._runs[row.id] = (b"", run)

    def _grouped(self) -> Iterator[RunGroup]:
        by_group: defaultdict[tuple[bytes, bool], list[Run]] = defaultdict(list)
        for key, run in self._runs.values():
            if key:
                by_group[key, run.certain].append(run)
        for (key, certain), runs in by_group.items():
            yield RunGroup(json.loads(key), runs, certain=certain)


class RunTimes:
    """The times of all runs, with overlapping ones merged: memory grows with the pauses between runs."""

    def __init__(self, times: Iterable[tuple[dt.datetime, dt.datetime | None]]) -> None:
        """Times from beginning to end (None: still under way), sorted by beginning."""
        self._starts: list[dt.datetime] = []
        self._ends: list[dt.datetime] = []
        for started_at, finished_at in times:
            until = finished_at or _NEVER
            if self._ends and started_at <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], until)
            else:
                self._starts.append(started_at)
                self._ends.append(until)

    def __contains__(self, moment: dt.datetime) -> bool:
        place = bisect_right(self._starts, moment) - 1
        return place >= 0 and moment <= self._ends[place]


NO_RUNS_KNOWN: Final = RunTimes([(_LONG_AGO, None)])
"""Used if nothing is known about runs: every time is possible."""


def run_times(connection: Connection) -> RunTimes:
    """The run times in a database. Times that cannot be read are left to the check of the seals."""
    try:
        with connection.execute(_TIMES, execution_options=STREAMED) as rows:
            return RunTimes((row.started_at, row.finished_at) for row in rows)
    except ValueError:
        return NO_RUNS_KNOWN
