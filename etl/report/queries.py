"""What people and files read: the views, the list as of a moment, the runs, the problems."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Final

from sqlalchemy import Connection, Engine, select, text

from etl.database import reading
from etl.domain.holds import HeldSet, shown_set
from etl.domain.model import Target, cycle_code
from etl.report import statements
from etl.report.asof import Way, cheaper_way, flows_statement, targets_statement
from etl.report.names import any_contains, contains_sql, pattern
from etl.report.rows import (
    HeldWorkflow,
    ListChange,
    ListState,
    ListWorkflow,
    ListWorkflowAsOf,
    ProblemCause,
    SyncRun,
    TargetAsOf,
    TargetHealth,
    view,
)
from etl.report.stream import stream


class Report:
    """The reading side of a database whose schema is current. Safe to use from several threads.

    Every method returns its rows as they are read, all from one moment, in constant memory, as NamedTuples whose fields
    are the columns of the view behind them. Without a filter it finds everything. ``org``, ``user`` and ``flow`` are
    whole ids, ``name`` is a part of the name (a-z and A-Z are the same), ``cycle`` is EnOS's code or its label ("D" or
    "day"). Every method raises DatabaseError if the database refuses.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def flows(
        self,
        *,
        org: str | None = None,
        user: str | None = None,
        flow: str | None = None,
        name: str | None = None,
        cycle: str | None = None,
        limit: int | None = None,
    ) -> Iterator[ListWorkflow]:
        """``list_workflow``, by organisation, user, expression and flow_id; the first ``limit`` of them."""
        seen = view("list_workflow", ListWorkflow)
        found = statements.equal(seen, org_id=org, user_id=user, flow_id=flow, cycle=cycle_code(cycle))
        found += any_contains(self._engine.dialect.name, name, seen.c.flow_name)
        key = (seen.c.org_id, seen.c.user_id, seen.c.expression, seen.c.flow_id)
        return stream(self._engine, select(seen).where(*found).order_by(*key).limit(limit), ListWorkflow)

    def flows_as_of(
        self,
        at: dt.datetime,
        *,
        org: str | None = None,
        user: str | None = None,
        flow: str | None = None,
        name: str | None = None,
        cycle: str | None = None,
        way: Way | None = None,
    ) -> Iterator[ListWorkflowAsOf]:
        """The list that each target had at ``at`` (aware), by organisation, user, expression and flow_id.

        The columns are those of ``list_workflow`` as of then (``missing_since`` is not kept, and null), then
        ``coverage``, ``observed_before`` (the last recorded observation at or before ``at``, which is also
        ``last_observed_at``) and ``observed_after`` (the first one later than ``at``, or null). A target has no rows
        before its first observation and from its retirement on. ``way`` overrides the choice of the cheaper one.
        """
        given = {"org_id": org, "user_id": user, "flow_id": flow, "cycle": cycle_code(cycle)}
        filters = {column: value for column, value in given.items() if value is not None}
        condition, parameter = "", {}
        if name is not None:
            condition = contains_sql(self._engine.dialect.name, "listed.flow_name", "flow_name")
            parameter = {"flow_name": pattern(name)}
        statement = flows_statement(way or self._cheaper_way(at, flow), filters, condition)
        return stream(self._engine, statement, ListWorkflowAsOf, {"at": at, **filters, **parameter})

    def targets_as_of(
        self, at: dt.datetime, *, org: str | None = None, user: str | None = None
    ) -> Iterator[TargetAsOf]:
        """One row for each target that was not retired by ``at``, also with an empty list.

        A target that had not been observed by then is ``unobserved``, without ``observed_before`` and ``flow_count``:
        nobody knows what it saw.
        """
        filters = {column: value for column, value in {"org_id": org, "user_id": user}.items() if value is not None}
        return stream(self._engine, targets_statement(filters), TargetAsOf, {"at": at, **filters})

    def changes(
        self,
        *,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        org: str | None = None,
        user: str | None = None,
        kinds: Collection[str] = (),
        flow: str | None = None,
        name: str | None = None,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> Iterator[ListChange]:
        """``list_change`` from ``since`` on and before ``until`` (by ``observed_at``), in the order of the trail.

        ``name`` finds the old and the new name. ``limit`` keeps the first rows in the order that is asked for.
        """
        event = view("list_change", ListChange)
        found = statements.equal(event, org_id=org, user_id=user, flow_id=flow)
        found += any_contains(self._engine.dialect.name, name, event.c.old_name, event.c.new_name)
        found += [event.c.kind.in_(kinds)] if kinds else []
        found += [event.c.observed_at >= since] if since is not None else []
        found += [event.c.observed_at < until] if until is not None else []
        key = (event.c.observed_at, event.c.change_set_id, event.c.flow_id, event.c.kind)
        order = [column.desc() for column in key] if newest_first else key
        return stream(self._engine, select(event).where(*found).order_by(*order).limit(limit), ListChange)

    def history(
        self, *, flow: str | None = None, org: str | None = None, user: str | None = None
    ) -> Iterator[ListState]:
        """``list_history``: each state of each workflow and how long it lasted, by target and flow_id."""
        state = view("list_history", ListState)
        found = statements.equal(state, org_id=org, user_id=user, flow_id=flow)
        key = (state.c.org_id, state.c.user_id, state.c.expression, state.c.flow_id, state.c.valid_from)
        return stream(self._engine, select(state).where(*found).order_by(*key), ListState)

    def health(self) -> Iterator[TargetHealth]:
        """``target_health`` without retired targets, by organisation, user and expression."""
        return stream(self._engine, statements.targets(), TargetHealth)

    def problems(self, *, limit: int | None = None) -> Iterator[TargetHealth]:
        """The first ``limit`` rows of ``health`` whose last attempt failed, or of which something is held."""
        return stream(self._engine, statements.targets("problems").limit(limit), TargetHealth)

    def causes(self) -> list[ProblemCause]:
        """The causes of ``problems``, the most frequent first; a target that fails and is held counts in both."""
        with reading(self._engine) as connection:
            return causes(connection)

    def holds(self, *, org: str | None = None) -> Iterator[HeldWorkflow]:
        """Each workflow of which something is held, and the latest reason why, by organisation, user, expression,
        flow_id.

        ``missing_since`` is when an answer lacked the workflow first.
        """
        return stream(self._engine, statements.held_workflows(org=org), HeldWorkflow)

    def held_sets(self, *, org: str | None = None) -> Iterator[HeldSet]:
        """What is held of each target, by organisation, user and expression."""
        for (*key, since), rows in groupby(self.holds(org=org), key=itemgetter(0, 1, 2, 3)):
            yield shown_set(Target(*key), since, ((row.flow_id, row.doubted) for row in rows))

    def runs(self, *, limit: int | None = None) -> Iterator[SyncRun]:
        """``sync_run``, the latest first."""
        return stream(self._engine, statements.runs().limit(limit), SyncRun)

    def _cheaper_way(self, at: dt.datetime, flow: str | None) -> Way:
        with reading(self._engine) as connection:
            return cheaper_way(connection, at, flow)


def causes(connection: Connection) -> list[ProblemCause]:
    """``Report.causes``, within the caller's transaction."""
    return [ProblemCause._make(row) for row in connection.execute(_CAUSES)]


_CAUSES: Final = text("""
    SELECT cause, count(*) AS targets, count(DISTINCT org_id) AS organisations, max(consecutive_failures),
           min(last_error)
      FROM (SELECT last_error_code AS cause, org_id, consecutive_failures, last_error FROM target
             WHERE retired_at IS NULL AND consecutive_failures > 0
            UNION ALL
            SELECT 'held', org_id, consecutive_failures, NULL FROM target
             WHERE retired_at IS NULL AND held_since IS NOT NULL) AS problem
     GROUP BY cause ORDER BY targets DESC, cause
    """)
