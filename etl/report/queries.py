"""What people and files read: the lists now and as of a moment, the runs, the problems."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, TypeVar

from sqlalchemy import BindParameter, Connection, Engine, bindparam, text

from etl.database import reading
from etl.domain.holds import HeldSet, shown_set
from etl.domain.model import Target, cycle_code
from etl.report import listings, runs
from etl.report.asof import Way, cheaper_way, flows_statement, targets_statement
from etl.report.listings import ListView
from etl.report.names import WHOLE, contains_sql, pattern
from etl.report.reading import stream
from etl.report.rows import (
    HeldWorkflow,
    ListChange,
    ListState,
    ListWorkflow,
    ListWorkflowAsOf,
    OrgWorkflow,
    OrgWorkflowEvent,
    OrgWorkflowState,
    ProblemCause,
    SyncRun,
    TargetAsOf,
    TargetHealth,
)
from etl.report.runs import IssueCause

T = TypeVar("T", bound=tuple[Any, ...])
_IDS: Final = ("org", "user", "flow")


class Report:
    """The reading side of a database whose schema is current. Safe to use from several threads.

    Every method returns its rows as they are read, all from one moment, in constant memory, as NamedTuples whose fields
    are the columns of the view behind them. Without a filter it finds everything; ``etl.report.listings`` has the
    filters of each list, and its order, which ``newest_first`` reverses. ``org``, ``user`` and ``flow`` are whole ids
    here. ``limit`` keeps the first rows. Every method raises DatabaseError if the database refuses.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def _rows(self, listing: ListView[T], asked: dict[str, Any]) -> Iterator[T]:
        whole = {name: WHOLE + asked[name] for name in _IDS if asked.get(name) is not None}
        return listing.rows(self._engine, **{**asked, **whole})

    def flows(self, **asked: Any) -> Iterator[ListWorkflow]:
        """``list_workflow``."""
        return self._rows(listings.FLOWS, asked)

    def changes(self, **asked: Any) -> Iterator[ListChange]:
        """``list_change``; what ``seals`` brought is in the order in which change sets were numbered."""
        numbered = {"order": ("change_set_id", "flow_id", "kind")} if asked.get("seals") else {}
        return self._rows(listings.CHANGES, {**asked, **numbered})

    def history(self, **asked: Any) -> Iterator[ListState]:
        """``list_history``: each state of each workflow and how long it lasted."""
        return self._rows(listings.HISTORY, asked)

    def events(self, **asked: Any) -> Iterator[OrgWorkflowEvent]:
        """``org_workflow_event``, in the order of its numbers; ``user`` finds that user's access events."""
        return self._rows(listings.EVENTS, asked)

    def workflows(self, **asked: Any) -> Iterator[OrgWorkflow]:
        """``org_workflow``."""
        return self._rows(listings.WORKFLOWS, asked)

    def workflows_as_of(self, at: dt.datetime, **asked: Any) -> Iterator[OrgWorkflowState]:
        """The states of ``org_workflow_history`` at ``at``, one per workflow."""
        return self._rows(listings.STATES, {**asked, "at": at})

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
        named = "" if name is None else contains_sql(self._engine.dialect.name, "listed.flow_name", "flow_name")
        parameters: list[BindParameter[str]] = [] if name is None else [bindparam("flow_name", pattern(name))]
        if way is None:
            with reading(self._engine) as connection:
                way = cheaper_way(connection, at, flow)
        statement = flows_statement(way, at, filters, named, "", parameters)
        return stream(self._engine, statement, ListWorkflowAsOf)

    def targets_as_of(
        self, at: dt.datetime, *, org: str | None = None, user: str | None = None
    ) -> Iterator[TargetAsOf]:
        """One row for each target that was not retired by ``at``, also with an empty list.

        A target that had not been observed by then is ``unobserved``, without ``observed_before`` and ``flow_count``:
        nobody knows what it saw.
        """
        filters = {column: value for column, value in {"org_id": org, "user_id": user}.items() if value is not None}
        return stream(self._engine, targets_statement(at, filters), TargetAsOf)

    def health(self) -> Iterator[TargetHealth]:
        """``target_health`` without retired targets."""
        return self._rows(listings.TARGETS, {})

    def problems(self, *, limit: int | None = None) -> Iterator[TargetHealth]:
        """The rows of ``health`` whose last attempt failed, or of which something is held."""
        return self._rows(listings.TARGETS, {"show": "problems", "limit": limit})

    def causes(self) -> list[ProblemCause]:
        """The causes of ``problems``, the most frequent first; a target that fails and is held counts in both."""
        with reading(self._engine) as connection:
            return causes(connection)

    def holds(self, *, org: str | None = None) -> Iterator[HeldWorkflow]:
        """Each workflow of which something is held, and the latest reason why, by organisation, user, expression,
        flow_id.

        ``missing_since`` is when an answer lacked the workflow first.
        """
        return self._rows(listings.HELD_WORKFLOWS, {"org": org})

    def held_sets(self, *, org: str | None = None) -> Iterator[HeldSet]:
        """What is held of each target, by organisation, user and expression."""
        for (*key, since), rows in groupby(self.holds(org=org), key=itemgetter(0, 1, 2, 3)):
            yield shown_set(Target(*key), since, ((row.flow_id, row.doubted) for row in rows))

    def runs(self, **asked: Any) -> Iterator[SyncRun]:
        """``sync_run``, the latest first."""
        return self._rows(listings.RUNS, asked)

    def causes_of_run(self, run_id: int) -> list[IssueCause]:
        """Why targets of a run did not go through, the most frequent cause first."""
        with reading(self._engine) as connection:
            return runs.causes(connection, run_id)


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
