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
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from sqlalchemy import BindParameter, Connection, TextClause, TextualSelect, bindparam, text

from etl.domain.model import Target
from etl.report.reading import sql
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
) -> TextualSelect:
    """The list of each target at ``at``.

    ``filters`` are values of ``org_id``, ``user_id``, ``expression``, ``flow_id`` and ``cycle``; ``name_filter`` is a
    condition on ``flow_name``, or empty; ``condition`` as in ``targets_statement``.
    """
    statement = f"{sql('asof_known')},\n{sql(f'asof_{way}')}{sql('asof_flows')}".format(
        targets=_where("t", filters, *Target._fields) + (condition and f" AND {condition}"),
        changes=_OF_A_WORKFLOW if "flow_id" in filters else _OF_A_TARGET,
        flows=_where("c", filters, "flow_id"),
        listed=_where("listed", filters, "cycle") + (name_filter and f" AND {name_filter}"),
    )
    return _bound(statement, at, filters, parameters).columns(*sql_columns(ListWorkflowAsOf))


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
