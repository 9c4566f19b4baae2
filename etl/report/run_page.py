"""The list of runs, and one run: what it found, what failed (by cause), and what it wrote."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Select, select, text

from etl.report.rows import RunVersion
from etl.schema import TARGET_KEY, change_set, sync_issue, target


class IssueCause(NamedTuple):
    """Why targets had an issue in a run."""

    verdict: str
    error_code: str | None
    targets: int
    organisations: int
    example: str


def causes(connection: Connection, run_id: int) -> list[IssueCause]:
    """The causes of a run's issues, the most frequent first."""
    return [IssueCause(*row) for row in connection.execute(_CAUSES, {"run": run_id})]


_CAUSES: Final = text("""
    SELECT i.verdict, i.error_code, count(*), count(DISTINCT t.org_id), min(i.message)
      FROM sync_issue i JOIN target t ON t.id = i.target_id
     WHERE i.run_id = :run GROUP BY i.verdict, i.error_code ORDER BY 3 DESC, 1, 2
    """)


def issues(run_id: int) -> Select[Any]:
    """``RunIssue``, by target."""
    names = ("verdict", "error_code", "message", "attempts", "missing")
    columns = (*TARGET_KEY, *(sync_issue.c[name] for name in names))
    chosen = select(*columns).join_from(sync_issue, target, target.c.id == sync_issue.c.target_id)
    return chosen.where(sync_issue.c.run_id == run_id).order_by(*TARGET_KEY, sync_issue.c.id)


def versions(run_id: int) -> Select[Any]:
    """``RunVersion``, by target."""
    columns = (*TARGET_KEY, *(change_set.c[name] for name in RunVersion._fields[3:]))
    chosen = select(*columns).join_from(change_set, target, target.c.id == change_set.c.target_id)
    return chosen.where(change_set.c.run_id == run_id).order_by(*TARGET_KEY, change_set.c.version)
