"""Compares the spans that no hash covers yet, those of latest versions, with the runs that asked in their time.

Every sealed run that was to ask a target, and has no issue for it, observed it once, in its own time. So a span has as
many observations as there are such runs. Runs that also overlap a neighbouring span may count for either; runs that
were aborted, have not ended, or have lost their issues may count or not. The first and the last observation of a span
each lie in the time of such a run.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, and_, bindparam, exists, func, select

from etl.domain.model import Target
from etl.schema import TARGET_KEY, observation, sync_issue, sync_run, target, target_membership
from etl.verify.finding import Finding
from etl.verify.rows import pages
from etl.verify.run_index import Count, Memberships, RunIndex, Span

_AT_ONCE: Final = 2_000
_LONG_AGO: Final = dt.datetime.min.replace(tzinfo=dt.UTC)
_NEVER: Final = dt.datetime.max.replace(tzinfo=dt.UTC)

_before = observation.alias("before")
_LAST_BEFORE: Final = (
    select(_before.c.last_at)
    .where(_before.c.target_id == target.c.id, _before.c.version < target.c.version)
    .order_by(_before.c.version.desc(), _before.c.id.desc())
    .limit(1)
    .correlate(target)
    .scalar_subquery()
)
_LATEST: Final = and_(observation.c.target_id == target.c.id, observation.c.version == target.c.version)
_TARGETS: Final[Any] = select(target.c.id)
_SPANS: Final[Any] = (
    select(
        *(target.c.id, *TARGET_KEY, target.c.version),
        *(observation.c.first_at, observation.c.last_at, observation.c.observations),
        _LAST_BEFORE.label("before"),
    )
    .join(observation, _LATEST)
    .where(target.c.id.between(bindparam("first"), bindparam("last")))
    .order_by(target.c.id, observation.c.id)
)
_ISSUES: Final[Any] = (
    select(sync_issue.c.target_id, sync_issue.c.run_id, sync_issue.c.verdict)
    .join(target, target.c.id == sync_issue.c.target_id)
    .join(sync_run, sync_run.c.id == sync_issue.c.run_id)
    .where(
        sync_issue.c.target_id.between(bindparam("first"), bindparam("last")),
        exists().where(
            _LATEST,
            observation.c.last_at >= sync_run.c.started_at,
            observation.c.first_at <= func.coalesce(sync_run.c.finished_at, observation.c.first_at),
        ),
    )
    .order_by(sync_issue.c.target_id)
)
"""The issues of runs that overlap a span of the latest version."""
_MOVES: Final[Any] = (
    select(*(target_membership.c[name] for name in ("target_id", "id", "schedule", "kind")))
    .where(
        target_membership.c.target_id.between(bindparam("first"), bindparam("last")),
        target_membership.c.schedule.is_not(None),
    )
    .order_by(target_membership.c.target_id, target_membership.c.id)
)


class Issues:
    """The runs that have an issue of a target.

    A run whose answer came too late (``stale``) may have been overtaken by itself: with a cluster, two processes may
    settle the same batch.
    """

    def __init__(self, runs: RunIndex, rows: Iterable[Row[Any]]) -> None:
        found = [(row.verdict, run) for row in rows if (run := runs.run(row.run_id)) is not None]
        self._stale = [run for verdict, run in found if verdict == "stale"]
        self._others = [run for verdict, run in found if verdict != "stale"]

    def subtract_from(self, count: Count, span: Span) -> Count:
        """The count without the runs that did not observe the target."""
        return count.without(self._others, span).without(self._stale, span, perhaps=True)


def observations(engine: Engine) -> Iterator[Finding]:
    """The first span of each target that contradicts the runs of its time. Raises DatabaseError.

    If a run cannot be read, nothing is compared; the check of the seals reports that.
    """
    runs = RunIndex()

    def of_spans(connection: Connection, targets: Sequence[Row[Any]]) -> Iterator[tuple[Any, Issues, Memberships]]:
        if not targets or not runs.update(connection):
            return
        within = {"first": targets[0].id, "last": targets[-1].id}
        spans, issues, moves = (_by_target(connection, query, within) for query in (_SPANS, _ISSUES, _MOVES))
        for number, rows in spans.items():
            listed = Memberships((move.id, move.schedule, move.kind == "joined") for move in moves.get(number, ()))
            yield rows, Issues(runs, issues.get(number, ())), listed

    for rows, with_issue, listed in pages(engine, _TARGETS, target.c.id, of_spans, at_once=_AT_ONCE, tolerant=True):
        yield from _compare(rows, with_issue, runs, listed)


def _by_target(connection: Connection, query: Any, within: Mapping[str, int]) -> dict[int, list[Row[Any]]]:
    found: dict[int, list[Row[Any]]] = {}
    for row in connection.execute(query, within):
        found.setdefault(row[0], []).append(row)
    return found


def _compare(rows: Sequence[Row[Any]], with_issue: Issues, runs: RunIndex, listed: Memberships) -> Iterator[Finding]:
    of = Target(rows[0].org_id, rows[0].user_id, rows[0].expression)
    befores = [rows[0].before or _LONG_AGO, *(row.last_at for row in rows)]
    afters = [*(row.first_at for row in rows[1:]), _NEVER]
    for row, before, after in zip(rows, befores, afters, strict=False):
        span = Span(row.first_at, row.last_at, before, after)
        asked = with_issue.subtract_from(runs.count(of, span, listed), span)
        wrong = _wrong(row, span, asked) or _unwitnessed(of, span, with_issue, runs, listed)
        if wrong is not None:
            what, expected, found = wrong
            yield Finding(target=of, version=row.version, what=f"observation.{what}", expected=expected, found=found)
            return


def _wrong(row: Row[Any], span: Span, asked: Count) -> tuple[str, str, str] | None:
    """The column, what it should be, and what it is."""
    if asked.least <= row.observations <= asked.most:
        return None
    if asked.most < 1:
        return "first_at", "in the time of a run that observed the target", str(span.first)
    least = max(asked.least, 1)
    wanted = f"{least}" if least == asked.most else f"{least} to {asked.most}"
    by = f"{wanted}, by the runs that asked from {span.first} to {span.last}"
    return "observations", by, str(row.observations)


def _unwitnessed(
    of: Target, span: Span, with_issue: Issues, runs: RunIndex, listed: Memberships
) -> tuple[str, str, str] | None:
    for name in ("first", "last"):
        at = getattr(span, name)
        moment = Span(at, at, _LONG_AGO, _NEVER)
        if with_issue.subtract_from(runs.count(of, moment, listed), moment).most < 1:
            return f"{name}_at", "in the time of a run that observed the target", str(at)
    return None
