"""The trail page by page, the newest change first.

``listings.CHANGES`` streams the same rows from the view, all from one moment, for readers of the whole trail. A page is
selected differently, so that it costs what it shows and not what there is: first the newest change sets, by their own
counts and an index, and only then their changes. A test compares the two.
"""

# ruff: noqa: S608 - every piece of a statement is a constant of this file; what comes from outside is bound

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, text

from etl.domain.kinds import DELTA_KINDS
from etl.report.names import WHOLE, contains_sql, id_sql, id_value, pattern
from etl.report.rows import ListChange, sql_columns
from etl.schema import UtcTime

KIND_SQL: Final = "c.kind || ''"
"""The kind of a change as a condition asks for it: see ``etl.schema.CHANGE_KIND``."""
_NEWEST_SETS: Final = (500, 2_500, 12_500)
"""Where to look for a name: in so many of the newest change sets, then in more, then in all."""
_Conditions = dict[str, dict[str, Any]]
"""Conditions of a statement, each with the values that are bound to it."""


class Position(NamedTuple):
    """A row's place in the trail; the page after it begins with the next older one."""

    observed_at: dt.datetime
    change_set_id: int
    flow_id: str
    kind: str


def newest(
    connection: Connection,
    *,
    org: str = "",
    user: str = "",
    flow: str = "",
    name: str = "",
    kind: Sequence[str] = DELTA_KINDS,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    after: Position | None = None,
    limit: int,
) -> list[ListChange]:
    """The newest ``limit`` changes that are older than ``after``; ``since`` is included, ``until`` is not.

    ``org``, ``user`` and ``flow`` are parts of ids, or whole ids with ``names.WHOLE`` in front; ``name`` is a part of
    the old or the new name.
    """
    dialect = connection.dialect.name
    sets: _Conditions = {f"({' OR '.join(f's.{each} > 0' for each in kind)})": {}}
    for column, asked in (("org_id", org), ("user_id", user)):
        if asked:
            sets[id_sql(dialect, f"t.{column}", column, asked)] = {column: id_value(asked)}
    if since is not None:
        sets["s.observed_at >= :since"] = {"since": since}
    if until is not None:
        sets["s.observed_at < :until"] = {"until": until}
    if after is not None:
        place = {"after_at": after.observed_at, "after_id": after.change_set_id}
        sets["(s.observed_at, s.id) <= (:after_at, :after_id)"] = place
    sets |= _with_workflow(dialect, flow)
    changes = _of_changes(dialect, kind, flow, name, after)
    bound = {name: value for values in (*sets.values(), *changes.values()) for name, value in values.items()}
    # Each selected change set has a wanted change, so ``limit`` of them are enough. Not so if a workflow or a name is
    # asked for: then it may have none, and older ones are looked at only if the newest ones do not suffice.
    for most in (*_NEWEST_SETS, None) if flow or name else (limit,):
        sql = _statement(sets, changes, most, each_by_index=dialect == "postgresql" and most is not None)
        found = _fetch(connection, sql, {"limit": limit, **bound, **({"sets": most} if most else {})})
        if len(found) == limit:
            break
    return found


def _fetch(connection: Connection, sql: str, values: Mapping[str, Any]) -> list[ListChange]:
    times = (bindparam(name, type_=UtcTime) for name, value in values.items() if isinstance(value, dt.datetime))
    statement = text(sql).bindparams(*times).columns(*sql_columns(ListChange))
    return [ListChange(*row) for row in connection.execute(statement, values)]


def _statement(sets: _Conditions, changes: _Conditions, most: int | None, *, each_by_index: bool) -> str:
    """``each_by_index``: OFFSET 0 has PostgreSQL look up the changes of each change set. It takes a name for rare, and
    would read the whole table instead."""
    theirs = f"workflow_change c WHERE c.change_set_id = p.id AND {' AND '.join(changes)}"
    return f"""
    SELECT p.id, p.run_id, p.org_id, p.user_id, p.expression, c.flow_id, c.kind, c.old_name, c.new_name, c.old_cycle,
           c.new_cycle, c.old_editable, c.new_editable, p.last_unchanged_at, p.observed_at
    FROM (SELECT s.id, s.run_id, t.org_id, t.user_id, t.expression, s.last_unchanged_at, s.observed_at
          FROM change_set s JOIN target t ON t.id = s.target_id
          WHERE {" AND ".join(sets)}
          ORDER BY s.observed_at DESC, s.id DESC{" LIMIT :sets" if most else ""}) p
    CROSS JOIN {f"LATERAL (SELECT c.* FROM {theirs} OFFSET 0) c" if each_by_index else theirs}
    ORDER BY p.observed_at DESC, p.id DESC, c.flow_id DESC, c.kind DESC LIMIT :limit
    """


def _with_workflow(dialect: str, flow: str) -> _Conditions:
    """Use the index on workflows if a whole id is asked for. PostgreSQL takes an array for short; with IN it looks
    through all change sets, the newest first, for those of a workflow that changed long ago."""
    if not flow.startswith(WHOLE):
        return {}
    theirs = "SELECT change_set_id FROM workflow_change WHERE flow_id = :flow"
    found = f"s.id = ANY (ARRAY({theirs}))" if dialect == "postgresql" else f"s.id IN ({theirs})"
    return {found: {"flow": id_value(flow)}}


def _of_changes(dialect: str, kinds: Sequence[str], flow: str, name: str, after: Position | None) -> _Conditions:
    found: _Conditions = {f"{KIND_SQL} IN ({', '.join(map(repr, kinds))})": {}}
    if after is not None:
        place = {"after_flow": after.flow_id, "after_kind": after.kind}
        found["(p.observed_at, p.id, c.flow_id, c.kind) < (:after_at, :after_id, :after_flow, :after_kind)"] = place
    if flow:
        found[id_sql(dialect, "c.flow_id", "flow", flow)] = {"flow": id_value(flow)}
    if name:
        named = " OR ".join(contains_sql(dialect, column, "name") for column in ("c.old_name", "c.new_name"))
        found[f"({named})"] = {"name": pattern(name)}
    return found
