"""How complete a trail is: which targets were to be asked, which answered, gaps, and holds, each with the seal that
proves it."""

from __future__ import annotations

import datetime as dt
import json
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, Select, func, or_, select

from etl.database import STREAMED, reading
from etl.domain.model import Target
from etl.errors import DatabaseError
from etl.report.listings import GAPS
from etl.report.names import WHOLE
from etl.report.runs import Scopes
from etl.schema import (
    TARGET_KEY,
    change_set,
    hold_event,
    pruned_issues,
    run_seal,
    sync_issue,
    sync_run,
    target,
    target_membership,
)


class CoveredTarget(NamedTuple):
    """What the sealed runs of a period say about a target that they were to ask."""

    org_id: str
    user_id: str
    expression: str
    schedules: str
    """The schedules that listed it in the period."""
    asked: int
    """How many runs were to ask it."""
    answered: int
    held: int
    """How many runs doubted its answer, completely or in part."""
    failed: int
    stale: int
    unknown: int
    """How many runs do not tell: they were aborted, or their issues were deleted."""
    unobserved_seconds: int
    """The total length of its gaps within the period."""
    first_seal: int
    last_seal: int


class SealedGap(NamedTuple):
    """A gap in the observations of a target; ``gap_to`` is None while it is open."""

    org_id: str
    user_id: str
    expression: str
    gap_from: dt.datetime
    gap_to: dt.datetime | None
    changed_inside: bool | None
    before_seal: int | None
    """The seal of the last run that observed it before."""
    after_seal: int | None
    """The seal of the first run that observed it again."""


class Hold(NamedTuple):
    """The beginning of a hold, or how it ended."""

    seal_id: int
    run_id: int
    at: dt.datetime
    org_id: str
    user_id: str
    expression: str
    kind: str
    flow_ids: Sequence[str]
    """Of removals."""
    doubted: Sequence[Sequence[Any]]
    """Of other changes, each ``[flow_id, kind, new value]``."""


_TARGET: Final = ("org_id", "user_id", "expression")
UNANSWERED: Final = ("seal_id", "run_id", "started_at", *_TARGET, "verdict", "error_code")
MEMBERSHIPS: Final = ("seal_id", "run_id", "at", *_TARGET, "kind", "schedule")


class Coverage(NamedTuple):
    """The result for a period: runs that were sealed at or after ``since`` and before ``until``."""

    since: dt.datetime | None
    until: dt.datetime
    runs: int
    """How many runs were to ask any of the targets."""
    unsealed_runs: int
    """How many runs are under way, about which nothing is said."""
    seals: tuple[int, int] | None
    """The first and the last seal that prove it; None if no run asked for a target."""
    targets: Sequence[CoveredTarget]
    unanswered: Sequence[Any]
    """Targets that did not succeed in a run: rows with the columns ``UNANSWERED``."""
    gaps: Sequence[SealedGap]
    holds: Sequence[Hold]
    memberships: Sequence[Any]
    """Targets that came into a schedule or left it, were retired or came back: rows with the columns ``MEMBERSHIPS``.
    """


def coverage(
    engine: Engine,
    now: dt.datetime,
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    org: str | None = None,
    user: str | None = None,
) -> Coverage:
    """How complete the trail of a period is, for an organisation, a user or all. Raises DatabaseError."""
    try:
        with reading(engine) as connection:
            return _CoverageReader(connection, since, until or now, org, user).coverage()
    except (ValueError, TypeError, LookupError) as error:  # a scope or a hold that no run wrote
        raise DatabaseError(f"The database holds what cannot be read ({error}): run `flowtrail verify`.") from error


class _AskingRun(NamedTuple):
    """A run that asked some of the targets."""

    seal_id: int
    started_at: dt.datetime
    finished_at: dt.datetime
    certain: bool
    """Whether it observed each target for which it has no issue."""
    inside: bool
    """Whether it was sealed in the period."""
    targets: frozenset[int]


_STARTED_AT: Final = attrgetter("started_at")


class _CoverageReader:
    """Reads the database, at one moment."""

    def __init__(
        self,
        connection: Connection,
        since: dt.datetime | None,
        until: dt.datetime,
        org: str | None,
        user: str | None,
    ) -> None:
        self._connection = connection
        self._since = since
        self._until = until
        self._whose = {name: asked for name, asked in (("org", org), ("user", user)) if asked is not None}
        rows = connection.execute(self._mine(select(target.c.id, *TARGET_KEY)))
        self._targets = {number: Target(*key) for number, *key in rows}
        self._asking = list(self._runs())
        self._by_start = sorted(self._asking, key=_STARTED_AT)
        self._longest = max((run.finished_at - run.started_at for run in self._asking), default=dt.timedelta(0))

    def coverage(self) -> Coverage:
        """The whole result."""
        gaps = list(self._gaps())
        seals = [run.seal_id for run in self._asking if run.inside]
        under_way = select(func.count()).where(sync_run.c.status == "running", sync_run.c.finished_at.is_(None))
        return Coverage(
            since=self._since,
            until=self._until,
            runs=len(seals),
            unsealed_runs=self._connection.execute(under_way).scalar_one(),
            seals=(seals[0], seals[-1]) if seals else None,
            targets=list(self._covered(gaps)),
            unanswered=list(self._listed(UNANSWERED, sync_issue, *TARGET_KEY)),
            gaps=gaps,
            holds=[Hold(*row[:-2], *map(json.loads, row[-2:])) for row in self._listed(Hold._fields, hold_event)],
            memberships=list(self._listed(MEMBERSHIPS, target_membership)),
        )

    def _listed(self, names: Sequence[str], of: Any, *order: ColumnElement[Any]) -> Iterator[Any]:
        """These columns of the rows of a table that belong to runs that were sealed in the period, by seal."""
        elsewhere = {"seal_id": run_seal.c.id.label("seal_id"), "started_at": sync_run.c.started_at}
        elsewhere |= {column.name: column for column in TARGET_KEY}
        rows = _joined(select(*(elsewhere[name] if name in elsewhere else of.c[name] for name in names)), of)
        return self._rows(rows.order_by(run_seal.c.id, *order, of.c.id))

    def _mine(self, query: Select[Any]) -> Select[Any]:
        return query.where(*(target.c[f"{name}_id"] == asked for name, asked in self._whose.items()))

    def _rows(self, query: Select[Any]) -> Iterator[Any]:
        """Rows of runs that were sealed in the period."""
        query = self._mine(query).where(run_seal.c.sealed_at < self._until)
        if self._since is not None:
            query = query.where(run_seal.c.sealed_at >= self._since)
        with self._connection.execute(query, execution_options=STREAMED) as found:
            yield from found

    def _runs(self) -> Iterator[_AskingRun]:
        """Every run that was sealed before the end of the period and asked for any of the targets, by its seal."""
        pruned = set(self._connection.execute(select(pruned_issues.c.pruned_run_id).distinct()).scalars())
        scopes, known = Scopes(), dict[str, frozenset[int]]()
        columns = (run_seal.c.id, run_seal.c.run_id, run_seal.c.sealed_at)
        of_run = (sync_run.c.scope, sync_run.c.status, sync_run.c.started_at, sync_run.c.finished_at)
        query = select(*columns, *of_run).join(sync_run, sync_run.c.id == run_seal.c.run_id)
        rows = self._connection.execute(query.where(run_seal.c.sealed_at < self._until).order_by(run_seal.c.id)).all()
        for seal_id, run_id, sealed_at, scope, status, started_at, finished_at in rows:
            asked = scopes.targets_of(self._connection, scope)
            if asked.digest not in known:
                known[asked.digest] = frozenset(asked.target_ids & self._targets.keys())
            if mine := known[asked.digest]:
                inside = self._since is None or sealed_at >= self._since
                certain = status != "aborted" and run_id not in pruned
                yield _AskingRun(seal_id, started_at, finished_at, certain, inside, mine)

    # ------------------------------------------------------------------------------------------- target by target

    def _covered(self, gaps: Sequence[SealedGap]) -> Iterator[CoveredTarget]:
        certain, unknown = Counter[int](), Counter[int]()
        first, last = dict[int, int](), dict[int, int]()
        by_list = defaultdict[frozenset[int], list[_AskingRun]](list)
        for run in self._asking:  # most of them asked the same targets
            if run.inside:
                by_list[run.targets].append(run)
        for targets, runs in by_list.items():
            sure = sum(run.certain for run in runs)
            for number in targets:
                certain[number] += sure
                unknown[number] += len(runs) - sure
                first[number] = min(first.get(number, runs[0].seal_id), runs[0].seal_id)
                last[number] = max(last.get(number, 0), runs[-1].seal_id)
        issues = self._counted_issues()
        made = self._made_by_uncertain()
        silent = self._unobserved(gaps)
        schedules = self._schedules()
        for number, key in sorted(self._targets.items(), key=lambda each: each[1]):
            if number not in first:
                continue
            held, failed, stale = (issues[number, verdict] for verdict in ("held", "failed", "stale"))
            yield CoveredTarget(
                *key,
                schedules=", ".join(sorted(schedules.get(number, ()))),
                asked=certain[number] + unknown[number],
                answered=certain[number] + made[number] - held - failed - stale,
                held=held,
                failed=failed,
                stale=stale,
                unknown=unknown[number] - made[number],
                unobserved_seconds=silent[key],
                first_seal=first[number],
                last_seal=last[number],
            )

    def _counted_issues(self) -> Counter[tuple[int, str]]:
        """The issues of runs about which everything is known, counted."""
        columns = (sync_issue.c.target_id, sync_issue.c.verdict)
        certain = select(*columns, func.count()).where(sync_run.c.status != "aborted")
        found = self._rows(_joined(certain, sync_issue).group_by(*columns))
        return Counter({(number, verdict): count for number, verdict, count in found})

    def _made_by_uncertain(self) -> Counter[int]:
        """Versions of runs that were aborted, or whose issues were deleted: each proves an answer."""
        gone = select(pruned_issues.c.pruned_run_id)
        query = select(change_set.c.target_id, func.count(change_set.c.run_id.distinct())).where(
            or_(sync_run.c.status == "aborted", sync_run.c.id.in_(gone))
        )
        return Counter(dict(map(tuple, self._rows(_joined(query, change_set).group_by(change_set.c.target_id)))))

    def _schedules(self) -> Mapping[int, Collection[str]]:
        """The schedules that listed each target in the period."""
        found = defaultdict[int, set[str]](set)
        columns = (target_membership.c.target_id, target_membership.c.schedule)
        moves = select(*columns, target_membership.c.kind, target_membership.c.at).where(columns[1].is_not(None))
        moves = self._mine(moves.join(target, target.c.id == target_membership.c.target_id))
        rows: Iterator[Any] = iter(self._connection.execute(moves.order_by(target_membership.c.id)))
        for number, schedule, kind, at in rows:
            if kind == "joined" and at < self._until:
                found[number].add(schedule)
            elif kind == "left" and self._since is not None and at < self._since:
                found[number].discard(schedule)
        return found

    # ------------------------------------------------------------------------------------------------------- gaps

    def _gaps(self) -> Iterator[SealedGap]:
        """The gaps that overlap the period."""
        whose = {name: WHOLE + asked for name, asked in self._whose.items()}
        asked: dict[str, Any] = {**whose, "since": self._since, "until": self._until}
        order = (*_TARGET, "gap_from")
        ids = {key: number for number, key in self._targets.items()}
        for row in self._connection.execute(GAPS.select(self._connection.dialect.name, order=order, **asked)):
            gap = GAPS.row_type(*row)
            number = ids[Target(*gap[:3])]
            seals = [None if at is None else self._seal_of(number, at) for at in (gap.gap_from, gap.gap_to)]
            yield SealedGap._make((*gap, *seals))

    def _seal_of(self, number: int, at: dt.datetime) -> int | None:
        """The seal of the run that asked for a target then."""
        begin = bisect_left(self._by_start, at - self._longest, key=_STARTED_AT)
        end = bisect_right(self._by_start, at, key=_STARTED_AT)
        near = (run for run in self._by_start[begin:end] if run.finished_at >= at and number in run.targets)
        return min((run.seal_id for run in near), default=None)

    def _unobserved(self, gaps: Sequence[SealedGap]) -> Counter[Target]:
        seconds = Counter[Target]()
        for gap in gaps:
            begin = max(gap.gap_from, self._since or gap.gap_from)
            end = min(gap.gap_to or self._until, self._until)
            seconds[Target(*gap[:3])] += max(0, (end - begin) // dt.timedelta(seconds=1))
        return seconds


def _joined(query: Select[Any], of: Any) -> Select[Any]:
    """The query joined with the run, its seal and the target of each row."""
    return (
        query.join_from(of, target, target.c.id == of.c.target_id)
        .join(run_seal, run_seal.c.run_id == of.c.run_id)
        .join(sync_run, sync_run.c.id == of.c.run_id)
    )
