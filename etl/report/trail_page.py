"""The trail page by page, the newest change first.

``listings.CHANGES`` streams the same rows from the view, all from one moment, for readers of the whole trail. A page is
selected differently, so that it costs what it shows and not what there is: first the newest change sets, by their own
counts and an index, and only then their changes. A test compares the two.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, text

from etl.domain.kinds import DELTA_KINDS
from etl.report.names import WHOLE, contains_sql, id_sql, id_value, pattern
from etl.report.reading import sql
from etl.report.rows import ListChange, sql_columns
from etl.schema import UtcTime

KIND_SQL: Final = "c.kind || ''"
"""The kind of a change as a condition asks for it: see ``etl.schema.CHANGE_KIND``."""
_NEWEST_SETS: Final = (500, 2_500, 12_500)
"""Where to look for a name: in so many of the newest change sets, then in more, then in all."""
_HAS_WORKFLOW: Final = {
    "sqlite": "s.id IN (SELECT change_set_id FROM workflow_change WHERE flow_id = :flow)",
    "postgresql": "s.id = ANY (ARRAY(SELECT change_set_id FROM workflow_change WHERE flow_id = :flow))",
}
"""Uses the index on workflows. PostgreSQL takes an array for short; with IN it looks through all change sets, the
newest first, for those of a workflow that changed long ago."""
_BY_INDEX: Final = "LATERAL (SELECT c.* FROM {} OFFSET 0) c"
"""Has PostgreSQL look up the changes of each change set. It takes a name for rare, and would read the whole table."""


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
    named = (contains_sql(dialect, column, "name") for column in ("c.old_name", "c.new_name"))
    sets = _conditions(
        (kind, f"({' OR '.join(f's.{each} > 0' for each in kind)})"),
        (org, id_sql(dialect, "t.org_id", "org", org)),
        (user, id_sql(dialect, "t.user_id", "user", user)),
        (since, "s.observed_at >= :since"),
        (until, "s.observed_at < :until"),
        (after, "(s.observed_at, s.id) <= (:observed_at, :change_set_id)"),
        (flow.startswith(WHOLE), _HAS_WORKFLOW[dialect]),
    )
    changes = "workflow_change c WHERE c.change_set_id = p.id AND " + _conditions(
        (kind, f"{KIND_SQL} IN ({', '.join(map(repr, kind))})"),
        (after, "(p.observed_at, p.id, c.flow_id, c.kind) < (:observed_at, :change_set_id, :flow_id, :kind)"),
        (flow, id_sql(dialect, "c.flow_id", "flow", flow)),
        (name, f"({' OR '.join(named)})"),
    )
    given = {"org": id_value(org), "user": id_value(user), "flow": id_value(flow), "name": pattern(name)}
    times = {"since": since, "until": until, "observed_at": after and after.observed_at}
    known = [bindparam(each, type_=UtcTime) for each, at in times.items() if at is not None]
    values = {**given, **times, **(after._asdict() if after else {}), "limit": limit}
    # Each selected change set has a wanted change, so ``limit`` of them are enough. Not so if a workflow or a name is
    # asked for: then it may have none, and older ones are looked at only if the newest ones do not suffice.
    for most in (*_NEWEST_SETS, None) if flow or name else (limit,):
        by_index = dialect == "postgresql" and most is not None
        statement = sql("newest_changes").format(
            sets=sets, most=" LIMIT :sets" if most else "", changes=_BY_INDEX.format(changes) if by_index else changes
        )
        rows = connection.execute(
            text(statement).bindparams(*known).columns(*sql_columns(ListChange)), {**values, "sets": most}
        )
        found = [ListChange(*row) for row in rows]
        if len(found) == limit:
            break
    return found


def _conditions(*conditions: tuple[object, str]) -> str:
    """Those that are asked for."""
    return " AND ".join(condition for asked, condition in conditions if asked)
