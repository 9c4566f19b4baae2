"""What a target saw at a moment T, and how well that is known; docs/asof.md explains the rules and gives recipes.

Three ways lead to the list at T, and all give the same result. *Replay* takes the latest change of each workflow until
T, by numbering them. *Group* finds the same by a maximum and looks it up: that takes SQLite half the time, but
PostgreSQL half as long again. (If several columns changed at once there is a row for each, with the whole state: its
last conditions leave one of them.) *Undo* takes the current list, and for each workflow that changed since T the old
values of its first change after T. The cheapest way is used, so that neither the history before T nor the one after it
is read for nothing. (CROSS JOIN tells SQLite the order of a join; for PostgreSQL it is an ordinary join.)
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from sqlalchemy import BindParameter, Connection, TextClause, TextualSelect, bindparam, text

from etl.domain.model import CYCLE_LABELS
from etl.report.rows import ListWorkflowAsOf, TargetAsOf, sql_columns
from etl.schema import UtcTime

Way = Literal["replay", "group", "undo"]

UNDO_COSTS: Final = 16
"""Undoing a change set costs at most as much as replaying this many."""

CONFIGURED_THEN: Final = """
          coalesce((SELECT m.kind FROM target_membership m
                    WHERE m.target_id = t.id AND m.schedule IS NULL AND m.at <= :at
                    ORDER BY m.at DESC, m.id DESC LIMIT 1), 'resumed') <> 'retired'"""
"""A condition on ``target t``: it was not retired at ``:at``."""

_SEEN: Final = """
known AS MATERIALIZED (
    SELECT t.id AS target_id, t.org_id, t.user_id, t.expression,
           (SELECT s.id FROM change_set s
            WHERE s.target_id = t.id AND s.observed_at <= :at
            ORDER BY s.observed_at DESC LIMIT 1) AS change_set_id
    FROM target t
    WHERE {configured}{targets}
),
seen AS MATERIALIZED (
    SELECT known.*, v.version, v.observed_at, v.flow_count,
           (SELECT o.id FROM observation o
            WHERE o.target_id = known.target_id AND o.version = v.version AND o.first_at <= :at
            ORDER BY o.id DESC LIMIT 1) AS span_id,
           (SELECT o.id FROM observation o
            WHERE o.target_id = known.target_id AND o.version >= v.version AND o.first_at > :at
            ORDER BY o.version, o.id LIMIT 1) AS next_span_id
    FROM known
    JOIN change_set v ON v.id = known.change_set_id
),
spans AS (
    SELECT seen.*, b.last_at, a.version AS next_version, a.interrupted,
           a.first_at AS next_at, n.observed_at AS changed_next_at,
           CASE WHEN b.last_at > :at THEN b.first_at ELSE b.last_at END AS seen_before
    FROM seen
    LEFT JOIN observation b ON b.id = seen.span_id
    LEFT JOIN observation a ON a.id = seen.next_span_id
    LEFT JOIN change_set n ON n.target_id = seen.target_id AND n.version = seen.version + 1
),
covered AS MATERIALIZED (
    SELECT target_id, org_id, user_id, expression, flow_count,
           CASE WHEN last_at >= :at THEN 'observed'
                WHEN last_at IS NULL OR next_version IS NULL THEN 'unobserved'
                WHEN next_version = version THEN 'unchanged_across_gap'
                WHEN interrupted THEN 'unobserved'
                ELSE 'between' END AS coverage,
           coalesce(seen_before, observed_at) AS observed_before,
           CASE WHEN last_at > :at THEN last_at
                WHEN changed_next_at < next_at OR next_at IS NULL THEN changed_next_at
                ELSE next_at END AS observed_after
    FROM spans
)"""

_OF_A_TARGET: Final = "seen CROSS JOIN change_set s CROSS JOIN workflow_change c"
_OF_A_WORKFLOW: Final = "workflow_change c CROSS JOIN change_set s CROSS JOIN seen"
"""One workflow has few changes, and its users many versions."""

_REPLAYED: Final = """
replayed AS (
    SELECT s.target_id, c.flow_id, c.kind, c.new_name, c.new_cycle, c.new_editable, s.observed_at AS changed_at,
           row_number() OVER story AS nth,
           max(CASE WHEN c.kind IN ('baseline', 'added') THEN s.observed_at END) OVER story AS first_listed_at
    FROM {changes}
    WHERE s.target_id = seen.target_id AND s.version <= seen.version AND c.change_set_id = s.id{flows}
    WINDOW story AS (PARTITION BY s.target_id, c.flow_id ORDER BY c.change_set_id DESC
                     ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
),
listed AS (
    SELECT target_id, flow_id, new_name AS flow_name, new_cycle AS cycle, new_editable AS editable,
           first_listed_at, changed_at
    FROM replayed
    WHERE nth = 1 AND kind <> 'removed'
)"""

_GROUPED: Final = """
grouped AS MATERIALIZED (
    SELECT s.target_id, c.flow_id, max(c.change_set_id) AS last_id,
           max(CASE WHEN c.kind IN ('baseline', 'added') THEN c.change_set_id END) AS first_id
    FROM {changes}
    WHERE s.target_id = seen.target_id AND s.version <= seen.version AND c.change_set_id = s.id{flows}
    GROUP BY s.target_id, c.flow_id
),
listed AS (
    SELECT g.target_id, g.flow_id, c.new_name AS flow_name, c.new_cycle AS cycle, c.new_editable AS editable,
           first.observed_at AS first_listed_at, last.observed_at AS changed_at
    FROM grouped g
    CROSS JOIN workflow_change c
    CROSS JOIN change_set last
    CROSS JOIN change_set first
    WHERE c.change_set_id = g.last_id AND c.flow_id = g.flow_id AND c.kind || '' <> 'removed'
      AND (c.kind || '' NOT IN ('renamed', 'editable_changed')
           OR c.old_cycle = c.new_cycle OR (c.old_cycle IS NULL AND c.new_cycle IS NULL))
      AND (c.kind || '' <> 'editable_changed'
           OR c.old_name = c.new_name OR (c.old_name IS NULL AND c.new_name IS NULL))
      AND last.id = g.last_id AND first.id = g.first_id
)"""

_UNDONE: Final = """
undone AS (
    SELECT s.target_id, seen.change_set_id, c.flow_id, c.kind, c.old_name, c.old_cycle, c.old_editable,
           row_number() OVER (PARTITION BY s.target_id, c.flow_id ORDER BY c.change_set_id) AS nth
    FROM {changes}
    WHERE s.target_id = seen.target_id AND s.observed_at > :at AND c.change_set_id = s.id{flows}
),
listed AS (
    SELECT c.target_id, c.flow_id, c.flow_name, c.cycle, c.editable, c.first_listed_at, c.changed_at
    FROM seen
    CROSS JOIN workflow c
    WHERE c.target_id = seen.target_id AND c.changed_at <= :at{flows}
    UNION ALL
    SELECT u.target_id, u.flow_id, u.old_name, u.old_cycle, u.old_editable,
           coalesce((SELECT w.first_listed_at FROM workflow w
                     WHERE w.target_id = u.target_id AND w.flow_id = u.flow_id AND w.first_listed_at <= :at),
                    (SELECT s.observed_at FROM workflow_change c JOIN change_set s ON s.id = c.change_set_id
                     WHERE c.flow_id = u.flow_id AND c.change_set_id <= u.change_set_id
                       AND c.kind IN ('baseline', 'added') AND s.target_id = u.target_id
                     ORDER BY c.change_set_id DESC LIMIT 1)),
           (SELECT s.observed_at FROM workflow_change c JOIN change_set s ON s.id = c.change_set_id
            WHERE c.flow_id = u.flow_id AND c.change_set_id <= u.change_set_id AND s.target_id = u.target_id
            ORDER BY c.change_set_id DESC LIMIT 1)
    FROM undone u
    WHERE u.nth = 1 AND u.kind NOT IN ('baseline', 'added')
)"""

_LISTED: Final[Mapping[Way, str]] = {"replay": _REPLAYED, "group": _GROUPED, "undo": _UNDONE}

_FLOWS: Final = """
SELECT covered.org_id, covered.user_id, covered.expression, listed.flow_id, listed.flow_name, listed.cycle,
       {cycle_label} AS cycle_label, listed.editable, listed.first_listed_at, listed.changed_at,
       covered.observed_before AS last_observed_at, NULL AS missing_since,
       covered.coverage, covered.observed_before, covered.observed_after
FROM listed
CROSS JOIN covered
WHERE covered.target_id = listed.target_id{listed}
ORDER BY covered.org_id, covered.user_id, covered.expression, listed.flow_id"""

_TARGETS: Final = """
SELECT org_id, user_id, expression, coverage, observed_before, observed_after, flow_count
FROM covered
UNION ALL
SELECT known.org_id, known.user_id, known.expression, 'unobserved', NULL,
       (SELECT s.observed_at FROM change_set s WHERE s.target_id = known.target_id
        ORDER BY s.observed_at LIMIT 1), NULL
FROM known
WHERE known.change_set_id IS NULL
ORDER BY org_id, user_id, expression"""

_NEWEST: Final = text("SELECT max(id) FROM change_set")
_THEN: Final = text("SELECT id FROM change_set WHERE observed_at <= :at ORDER BY observed_at DESC LIMIT 1")
_CHANGED_SINCE: Final = text("SELECT 1 FROM workflow_change WHERE flow_id = :flow_id AND change_set_id > :id LIMIT 1")


def targets_statement(
    filters: Mapping[str, Any], condition: str = "", *parameters: BindParameter[Any]
) -> TextualSelect:
    """One row for each target that was not retired by ``:at``, observed or not; ``filters`` as in ``flows_statement``.
    ``condition`` is a further condition on the table ``target t``, with its ``parameters``."""
    chosen = _where("t", filters, "org_id", "user_id") + (condition and f" AND {condition}")
    sql = f"WITH {_SEEN}{_TARGETS}".format(configured=CONFIGURED_THEN, targets=chosen)
    return _timed(text(sql)).bindparams(*parameters).columns(*sql_columns(TargetAsOf))


def flows_statement(
    way: Way,
    filters: Mapping[str, Any],
    name_filter: str = "",
    condition: str = "",
    parameters: Sequence[BindParameter[Any]] = (),
) -> TextualSelect:
    """The list of each target at ``:at``.

    ``filters`` are values of ``org_id``, ``user_id``, ``flow_id`` and ``cycle``, which are also the statement's
    parameters; ``name_filter`` is a condition on ``flow_name``, or empty; ``condition`` as in ``targets_statement``.
    """
    sql = f"WITH {_SEEN},{_LISTED[way]}{_FLOWS}".format(
        configured=CONFIGURED_THEN,
        targets=_where("t", filters, "org_id", "user_id") + (condition and f" AND {condition}"),
        changes=_OF_A_WORKFLOW if "flow_id" in filters else _OF_A_TARGET,
        flows=_where("c", filters, "flow_id"),
        listed=_where("listed", filters, "cycle") + (name_filter and f" AND {name_filter}"),
        cycle_label=_cycle_label(),
    )
    return _timed(text(sql)).bindparams(*parameters).columns(*sql_columns(ListWorkflowAsOf))


def cheaper_way(connection: Connection, at: dt.datetime, flow: str | None = None) -> Way:
    """By the number of change sets before and after ``at``, estimated from their ids. One workflow is replayed unless
    nothing of it would have to be undone."""
    then: int = connection.execute(_timed(_THEN), {"at": at}).scalar() or 0
    if flow is not None:
        return "replay" if connection.execute(_CHANGED_SINCE, {"flow_id": flow, "id": then}).first() else "undo"
    newest: int = connection.execute(_NEWEST).scalar() or 0
    if (newest - then) * UNDO_COSTS < then:
        return "undo"
    return "group" if connection.dialect.name == "sqlite" else "replay"


def _timed(statement: TextClause) -> TextClause:
    return statement.bindparams(bindparam("at", type_=UtcTime()))


def _where(alias: str, filters: Mapping[str, Any], *names: str) -> str:
    return "".join(f" AND {alias}.{name} = :{name}" for name in names if name in filters)


def _cycle_label() -> str:
    labels = " ".join(f"WHEN '{cycle}' THEN '{label}'" for cycle, label in CYCLE_LABELS.items())
    return f"CASE listed.cycle {labels} ELSE listed.cycle END"
