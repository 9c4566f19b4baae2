"""What a failure writes: an issue of the run, and at its target the error and one more failure. Its list stays.

| row | column | after a failure |
|---|---|---|
| ``target`` | ``last_error_code``, ``last_error`` | why; a refusal (62101) stays if this tells nothing about it |
| | ``consecutive_failures`` | one more |
| | ``observation_id`` | null: its span has ended, and the next answer opens another |
| ``sync_issue`` | ``verdict``, ``error_code``, ``message``, ``attempts`` | ``failed``, and why |

What is held, or came too late (``stale``), is an issue, too.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any, Final

from sqlalchemy import Boolean, Connection, and_, bindparam, case, insert, or_, update

from etl.domain.model import REFUSED_FOR_GOOD, TELLS_NOTHING, Issue, Outcome
from etl.schema import sync_issue, target
from etl.store.bulk import execute_many

STALE: Final = "a newer observation of this target was committed first"

_STAYS_REFUSED: Final = and_(
    bindparam("tells_nothing", type_=Boolean), or_(*(target.c.last_error_code == code for code in REFUSED_FOR_GOOD))
)
"""A failure that says nothing about a target that EnOS refuses does not end the refusal."""
_FAILED: Final = (
    update(target)
    .where(target.c.id == bindparam("target_id"))
    .values(
        consecutive_failures=target.c.consecutive_failures + 1,
        last_error_code=case((_STAYS_REFUSED, target.c.last_error_code), else_=bindparam("error_code")),
        last_error=case((_STAYS_REFUSED, target.c.last_error), else_=bindparam("message")),
        observation_id=None,
    )
)
_FIRST_ISSUE: Final = insert(sync_issue).returning(sync_issue.c.id)


def write_failures(
    connection: Connection, run_id: int, outcomes: Iterable[Outcome], stale: Container[int]
) -> int | None:
    """Write what ``outcomes`` say of failures, holds, and the targets that are ``stale``. Returns the id of the first
    issue."""
    told = (o for o in outcomes if o.issue is not None or o.fence.target_id in stale)
    rows = [_issue_row(run_id, outcome, outcome.fence.target_id in stale) for outcome in told]
    failed = [_failure(**row) for row in rows if row["verdict"] == "failed"]
    execute_many(connection, _FAILED, failed)
    first = [connection.execute(_FIRST_ISSUE, row).scalar_one() for row in rows[:1]]
    execute_many(connection, insert(sync_issue), rows[1:])
    return first[0] if first else None


def _failure(target_id: int, error_code: str, message: str, **_: Any) -> dict[str, Any]:
    tells_nothing = error_code in TELLS_NOTHING
    return {"target_id": target_id, "error_code": error_code, "message": message, "tells_nothing": tells_nothing}


def _issue_row(run_id: int, outcome: Outcome, is_stale: bool) -> dict[str, Any]:
    issue = outcome.issue or Issue(None, STALE)
    return {
        "run_id": run_id,
        "target_id": outcome.fence.target_id,
        "verdict": "stale" if is_stale else outcome.verdict,
        "error_code": issue.error_code,
        "message": f"{STALE}; this answer: {issue.message}" if is_stale and outcome.issue else issue.message,
        "attempts": issue.attempts,
        "missing": issue.missing,
    }
