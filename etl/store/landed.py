"""Whether a transaction was committed whose COMMIT got no answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, select

from etl.model import Outcome
from etl.schema import change_set, observation, sync_issue


def landed(connection: Connection, run_id: int, outcomes: Sequence[Outcome]) -> bool:
    """Whether the transaction of ``outcomes``, whose COMMIT got no answer, was committed: looked up, not guessed.

    It is all there or not at all, so the strongest trace that the batch leaves is enough.
    """
    ids = [outcome.fence.target_id for outcome in outcomes]
    traces: list[Select[Any]] = [
        select(sync_issue.c.id).where(sync_issue.c.run_id == run_id, sync_issue.c.target_id.in_(ids))
    ]
    for outcome, made in [(o, o.change_set) for o in outcomes if o.change_set is not None][:1]:
        version = (change_set.c.target_id == outcome.fence.target_id, change_set.c.version == made.version)
        traces.append(select(change_set.c.id).where(*version, change_set.c.hash == outcome.hash))
    if any(connection.execute(trace.limit(1)).first() for trace in traces):
        return True
    spans = [(o.fence.target_id, o.span.last_at, o.span.last_asked_at) for o in outcomes if o.span is not None]
    return any(_is_there(connection, *span) for span in spans[:1])


def _is_there(connection: Connection, target_id: int, last_at: Any, last_asked_at: Any) -> bool:
    seen = select(observation.c.id).where(
        observation.c.target_id == target_id,
        observation.c.last_at == last_at,
        observation.c.last_asked_at == last_asked_at,
    )
    return connection.execute(seen.limit(1)).first() is not None
