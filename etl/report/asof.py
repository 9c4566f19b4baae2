"""What a target saw at a moment T, and how well that is known; docs/asof.md explains the rules and gives recipes.

Three ways lead to the list at T, and all give the same result. *Replay* takes the latest change of each workflow until
T, by numbering them. *Group* finds the same by a maximum and looks it up: that takes SQLite half the time, but
PostgreSQL half as long again. *Undo* takes the current list, and for each workflow that changed since T the old values
of its first change after T. The cheapest way is used, so that neither the history before T nor the one after it is read
for nothing. The statements are in ``asof_*.sql``; only which of their conditions there are differs. (CROSS JOIN tells
SQLite the order of a join; for PostgreSQL it is an ordinary join.)
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from sqlalchemy import BindParameter, Connection, Engine, TextClause, TextualSelect, bindparam, text

from etl.database import reading
from etl.domain.model import Target, cycle_code
from etl.report.names import contains_sql, pattern
from etl.report.reading import sql, stream
from etl.report.rows import ListWorkflowAsOf, TargetAsOf, sql_columns
from etl.schema import UtcTime

Way = Literal["replay", "group", "undo"]

UNDO_COSTS: Final = 16
"""Undoing a change set costs at most as much as replaying this many."""

_OF_A_TARGET: Final = "seen CROSS JOIN change_set s CROSS JOIN workflow_change c"
_OF_A_WORKFLOW: Final = "workflow_change c CROSS JOIN change_set s CROSS JOIN seen"
"""One workflow has few changes, and its users many versions."""
_NEWEST: Final = text("SELECT max(id) FROM change_set")
_THEN: Final = text("SELECT id FROM change_set WHERE observed_at <= :at ORDER BY observed_at DESC LIMIT 1").bindparams(
    bindparam("at", type_=UtcTime)
)
_CHANGED_SINCE: Final = text("SELECT 1 FROM workflow_change WHERE flow_id = :flow_id AND change_set_id > :id LIMIT 1")


def flows_as_of(
    engine: Engine,
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

    The ids are whole. The columns are those of ``list_workflow`` as of then (``missing_since`` is not kept, and null),
    then ``coverage``, ``observed_before`` (the last recorded observation at or before ``at``, which is also
    ``last_observed_at``) and ``observed_after`` (the first one later than ``at``, or null). A target has no rows before
    its first observation and from its retirement on. ``way`` overrides the choice of the cheaper one. Raises
    DatabaseError.
    """
    filters = _given(org_id=org, user_id=user, flow_id=flow, cycle=cycle_code(cycle))
    named = "" if name is None else contains_sql(engine.dialect.name, "listed.flow_name", "flow_name")
    parameters: list[BindParameter[str]] = [] if name is None else [bindparam("flow_name", pattern(name))]
    if way is None:
        with reading(engine) as connection:
            way = cheaper_way(connection, at, flow)
    return stream(engine, flows_statement(way, at, filters, named, "", parameters), ListWorkflowAsOf)


def targets_as_of(
    engine: Engine, at: dt.datetime, *, org: str | None = None, user: str | None = None
) -> Iterator[TargetAsOf]:
    """One row for each target that was not retired by ``at``, also with an empty list. Raises DatabaseError.

    A target that had not been observed by then is ``unobserved``, without ``observed_before`` and ``flow_count``:
    nobody knows what it saw.
    """
    return stream(engine, targets_statement(at, _given(org_id=org, user_id=user)), TargetAsOf)


def _given(**filters: str | None) -> dict[str, str]:
    return {column: value for column, value in filters.items() if value is not None}


def targets_statement(
    at: dt.datetime, filters: Mapping[str, Any], condition: str = "", *parameters: BindParameter[Any]
) -> TextualSelect:
    """One row for each target that was not retired by ``at``, observed or not; ``filters`` as in ``flows_statement``.
    ``condition`` is a further condition on the table ``target t``, with its ``parameters``."""
    chosen = _where("t", filters, *Target._fields) + (condition and f" AND {condition}")
    statement = (sql("asof_known") + sql("asof_targets")).format(targets=chosen)
    return _bound(statement, at, filters, parameters).columns(*sql_columns(TargetAsOf))


def flows_statement(
    way: Way,
    at: dt.datetime,
    filters: Mapping[str, Any],
    name_filter: str = "",
    condition: str = "",
    parameters: Sequence[BindParameter[Any]] = (),
    *,
    rows: str = "asof_flows",
    row_type: type[tuple[Any, ...]] = ListWorkflowAsOf,
) -> TextualSelect:
    """The list of each target at ``at``.

    ``filters`` are values of ``org_id``, ``user_id``, ``expression``, ``flow_id`` and ``cycle``; ``name_filter`` is a
    condition on ``flow_name``, or empty; ``condition`` as in ``targets_statement``. ``rows`` names the statement's last
    part, whose columns are those of ``row_type``.
    """
    statement = f"{sql('asof_known')},\n{sql(f'asof_{way}')}{sql(rows)}".format(
        targets=_where("t", filters, *Target._fields) + (condition and f" AND {condition}"),
        changes=_OF_A_WORKFLOW if "flow_id" in filters else _OF_A_TARGET,
        flows=_where("c", filters, "flow_id"),
        listed=_where("listed", filters, "cycle") + (name_filter and f" AND {name_filter}"),
    )
    return _bound(statement, at, filters, parameters).columns(*sql_columns(row_type))


def cheaper_way(connection: Connection, at: dt.datetime, flow: str | None = None) -> Way:
    """By the number of change sets before and after ``at``, estimated from their ids. One workflow is replayed unless
    nothing of it would have to be undone."""
    then: int = connection.execute(_THEN, {"at": at}).scalar() or 0
    if flow is not None:
        return "replay" if connection.execute(_CHANGED_SINCE, {"flow_id": flow, "id": then}).first() else "undo"
    newest: int = connection.execute(_NEWEST).scalar() or 0
    if (newest - then) * UNDO_COSTS < then:
        return "undo"
    return "group" if connection.dialect.name == "sqlite" else "replay"


def _bound(
    statement: str, at: dt.datetime, filters: Mapping[str, Any], parameters: Sequence[BindParameter[Any]]
) -> TextClause:
    given: list[BindParameter[Any]] = [bindparam(name, value) for name, value in filters.items()]
    return text(statement).bindparams(bindparam("at", at, UtcTime), *given, *parameters)


def _where(alias: str, filters: Mapping[str, Any], *names: str) -> str:
    return "".join(f" AND {alias}.{name} = :{name}" for name in names if name in filters)
