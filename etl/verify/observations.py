"""Compares the spans that no hash covers yet, those of latest versions, with the runs that asked in their time.

Every sealed run that was to ask a target, and has no issue for it, observed it once, in its own time. So a span has as
many observations as there are such runs. Runs that also overlap a neighbouring span may count for either; runs that
were aborted, have not ended, or have lost their issues may count or not. The first and the last observation of a span
each lie in the time of such a run.

Runs are grouped by what they were to ask (``RunGroup``). The runs of a group are in the order in which they saw
memberships, which is that of their beginnings. So a target that was listed from one membership to another was asked by
consecutive runs, and most of these are counted without looking at each.
"""

from __future__ import annotations

import datetime as dt
import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, Connection, Engine, Row, bindparam, select

from etl.database import STREAMED
from etl.domain.chain import encode
from etl.domain.model import Target
from etl.schema import UtcTime, sync_run, target
from etl.verify.finding import Finding
from etl.verify.rows import by_target, pages, statements

_AT_ONCE: Final = 2_000
_LONG_AGO: Final = dt.datetime.min.replace(tzinfo=dt.UTC)
_NEVER: Final = dt.datetime.max.replace(tzinfo=dt.UTC)
_BY_NAME: Final = "targets"
_SQL: Final = statements("observations")
_TARGETS: Final[Any] = select(target.c.id)
_SPANS: Final = _SQL["spans"].columns(first_at=UtcTime(), last_at=UtcTime(), ended_at=UtcTime())
_ISSUES, _MOVES = _SQL["issues"], _SQL["moves"]
_RUNS: Final = (
    _SQL["runs"]
    .bindparams(bindparam("again", expanding=True, type_=BigInteger()))
    .columns(started_at=UtcTime(), finished_at=UtcTime())
)
_OBSERVED: Final = "in the time of a run that observed the target"
_TIMES: Final = select(sync_run.c.started_at, sync_run.c.finished_at).order_by(sync_run.c.started_at)


class Between(NamedTuple):
    """The time of a span, and the end and beginning of its neighbours."""

    first: dt.datetime
    last: dt.datetime
    before: dt.datetime
    after: dt.datetime


class RunTime(NamedTuple):
    """The time of a run, and what it had seen."""

    seen: int
    """The highest membership that it saw."""
    start: dt.datetime
    end: dt.datetime
    certain: bool
    """Whether it observed each target that it was to ask and for which it has no issue."""

    def meets(self, span: Between) -> bool:
        """Whether it overlaps a span."""
        return self.start <= span.last and self.end >= span.first

    def meets_no_other(self, span: Between) -> bool:
        """Whether it overlaps no neighbour of a span."""
        return self.start > span.before and self.end < span.after


class Count(NamedTuple):
    """How many observations a span may have."""

    least: int
    most: int


Moves = Sequence[tuple[int, str, bool]]
"""When schedules listed a target: membership, schedule, whether it joined; in the order of their ids."""


def listed_by(moves: Moves, schedules: frozenset[str]) -> Iterator[tuple[int, int]]:
    """Ranges of memberships (end exclusive) in which any of these schedules listed the target."""
    listed: set[str] = set()
    since = 0
    for number, schedule, joined in moves:
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

    def __init__(self, named: Mapping[str, Any], runs: Iterable[RunTime], *, certain: bool) -> None:
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

    def count(self, span: Between, listed: Iterable[tuple[int, int]]) -> Count:
        """Count the runs that overlap a span, of those that saw a membership in one of these ranges."""
        least = most = 0
        for begin, end in listed:
            alone, others = self._meeting(bisect_left(self._seen, begin), bisect_left(self._seen, end), span)
            most += alone + len(others)
            least += alone + sum(run.meets_no_other(span) for run in others) if self._certain else 0
        return Count(least, most)

    def _meeting(self, low: int, high: int, span: Between) -> tuple[int, list[RunTime]]:
        """Of consecutive runs, how many certainly overlap a span alone, and the others that overlap it.

        Those that began within the span, and so long before the next one that none can last until then, overlap it
        alone. Those are looked at that began a little earlier or later.
        """
        if not self._in_order:
            return 0, [run for run in self._runs[low:high] if run.meets(span)]
        begun = _earlier(span.first, self._longest)
        until = _earlier(span.after, self._longest) if self._certain else _NEVER
        places = (
            bisect_left(self._starts, begun),
            bisect_left(self._starts, span.first),
            min(bisect_left(self._starts, until), bisect_right(self._starts, span.last)),
            bisect_right(self._starts, span.last),
        )
        early, inside, late, end = (min(max(low, place), high) for place in places)
        late = max(inside, late)
        some = [*self._runs[early:inside], *self._runs[late:end]]
        return late - inside, [run for run in some if run.meets(span)]


def _earlier(at: dt.datetime, by: dt.timedelta) -> dt.datetime:
    return at - by if at - _LONG_AGO > by else _LONG_AGO


class RunIndex:
    """All runs, by what they were to ask; brought up to date before each look at some targets."""

    def __init__(self) -> None:
        self.runs: dict[int, RunTime] = {}
        self._keys: dict[int, bytes] = {}
        """What those that name no targets were to ask."""
        self._named: defaultdict[Target, list[int]] = defaultdict(list)
        self._open: set[int] = set()
        self._last = -(2**63)
        self._groups: list[RunGroup] = []

    def update(self, connection: Connection) -> bool:
        """Take in what began or ended since the last time; False where a run cannot be read."""
        try:
            rows = connection.execute(_RUNS, {"after": self._last, "again": sorted(self._open)}).all()
            for row in rows:
                self._take(row)
            self._last = max([self._last, *(row.id for row in rows)])  # one that cannot be read is met again
            if rows:
                self._groups = list(self._grouped())
        except (ValueError, LookupError, TypeError):
            return False
        return True

    def count(self, of: Target, span: Between, moves: Moves) -> Count:
        """How many runs were to ask a target in the time of a span."""
        met = [run for number in self._named.get(of, ()) if (run := self.runs[number]).meets(span)]
        least, most = sum(run.certain and run.meets_no_other(span) for run in met), len(met)
        for group in self._groups:
            if group.includes(of):
                counted = group.count(span, listed_by(moves, group.schedules))
                least, most = least + counted.least, most + counted.most
        return Count(least, most)

    def _take(self, row: Row[Any]) -> None:
        (self._open.discard if row.sealed else self._open.add)(row.id)
        scope = json.loads(row.scope)
        seen = int(scope.pop("membership_id"))
        certain = bool(row.sealed and not row.pruned and row.status != "aborted")
        run = RunTime(seen, row.started_at, row.finished_at or _NEVER, certain)
        if row.pruned and row.unanswered:  # the sums show it without the issues: nobody was observed in it
            run = run._replace(start=_NEVER, end=_NEVER)
        if scope.keys() != {_BY_NAME}:
            self._keys[row.id] = encode(scope)
        elif row.id not in self.runs:
            for org_id, user_id, expression in scope[_BY_NAME]:
                self._named[Target(org_id, user_id, expression)].append(row.id)
        self.runs[row.id] = run

    def _grouped(self) -> Iterator[RunGroup]:
        by_group: defaultdict[tuple[bytes, bool], list[RunTime]] = defaultdict(list)
        for number, key in self._keys.items():
            by_group[key, self.runs[number].certain].append(self.runs[number])
        for (key, certain), runs in by_group.items():
            yield RunGroup(json.loads(key), runs, certain=certain)


# ------------------------------------------------------------------------------------------ comparing


class _Asked(NamedTuple):
    """Who asked a target, and in which runs it has an issue.

    A run whose answer came too late (``stale``) may have been overtaken by itself: with a cluster, two processes may
    settle the same batch.
    """

    of: Target
    runs: RunIndex
    moves: Moves
    issues: Sequence[tuple[RunTime, bool]]
    """The run, and whether its answer was stale."""

    def may_be(self, span: Between) -> Count:
        """How many observations the span may have: one of each run that asked and has no issue."""
        least, most = self.runs.count(self.of, span, self.moves)
        for run, was_stale in self.issues:
            if run.meets(span):
                least -= run.certain and run.meets_no_other(span)
                most -= not was_stale
        return Count(least, most)


def observations(engine: Engine) -> Iterator[Finding]:
    """The first span of each target that contradicts the runs of its time. Raises DatabaseError.

    If a run cannot be read, nothing is compared; the check of the seals reports that.
    """
    runs = RunIndex()

    def of_spans(connection: Connection, targets: Sequence[Row[Any]]) -> Iterator[tuple[Sequence[Row[Any]], _Asked]]:
        if not targets or not runs.update(connection):
            return
        within = {"first": targets[0].id, "last": targets[-1].id}
        spans, issues, moves = (by_target(connection, query, **within) for query in (_SPANS, _ISSUES, _MOVES))
        for number, rows in spans.items():
            of = Target(rows[0].org_id, rows[0].user_id, rows[0].expression)
            listed = [(move.id, move.schedule, move.kind == "joined") for move in moves.get(number, ())]
            found = [(runs.runs.get(row.run_id), row.verdict == "stale") for row in issues.get(number, ())]
            yield rows, _Asked(of, runs, listed, [(run, was_stale) for run, was_stale in found if run is not None])

    for rows, asked in pages(engine, _TARGETS, target.c.id, of_spans, at_once=_AT_ONCE, tolerant=True):
        yield from _compare(rows, asked)


def _compare(rows: Sequence[Row[Any]], asked: _Asked) -> Iterator[Finding]:
    befores = [rows[0].ended_at or _LONG_AGO, *(row.last_at for row in rows)]
    afters = [*(row.first_at for row in rows[1:]), _NEVER]
    for row, before, after in zip(rows, befores, afters, strict=False):
        wrong = _wrong(row, Between(row.first_at, row.last_at, before, after), asked)
        if wrong is not None:
            what, expected, found = wrong
            place = f"observation.{what}"
            yield Finding(target=asked.of, version=row.version, what=place, expected=expected, found=str(found))
            return


def _wrong(row: Row[Any], span: Between, asked: _Asked) -> tuple[str, str, object] | None:
    """The column, what it should be, and what it is."""
    least, most = asked.may_be(span)
    if least <= row.observations <= most:
        for name in ("first_at", "last_at"):
            at = getattr(row, name)
            if asked.may_be(Between(at, at, _LONG_AGO, _NEVER)).most < 1:
                return name, _OBSERVED, at
        return None
    if most < 1:
        return "first_at", _OBSERVED, span.first
    least = max(least, 1)
    wanted = f"{least}" if least == most else f"{least} to {most}"
    return "observations", f"{wanted}, by the runs that asked from {span.first} to {span.last}", row.observations


# ------------------------------------------------------------------------------------------ when anything was observed


class RunTimes:
    """The times of all runs, with overlapping ones merged: memory grows with the pauses between runs.

    Only when a run was under way can anything have been observed.
    """

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
