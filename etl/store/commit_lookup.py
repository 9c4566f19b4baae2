"""Whether a transaction was committed if its COMMIT got no answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, select, tuple_

from etl.domain.model import Outcome
from etl.schema import change_set, observation, sync_issue
from etl.store.commit import Applied


def was_committed(connection: Connection, outcomes: Sequence[Outcome], applied: Applied) -> bool:
    """Whether the transaction in which ``outcomes`` were ``applied`` was committed: looked up, not guessed.

    A transaction is there completely or not at all, so one trace is enough. But it must be a trace of this transaction:
    a batch that was settled twice, because its worker was thought dead, leaves two issues of one run for the same
    targets.

    | what the transaction wrote | its trace | why nobody else leaves it |
    |---|---|---|
    | a version | its hash | it covers the time of the answer |
    | an issue | its id | an id is assigned once |
    | only spans | the times of one of them | both times belong to one answer |
    """
    won = [outcome for outcome in outcomes if outcome.fence.target_id not in applied.stale]
    return connection.execute(_trace(won, applied).limit(1)).first() is not None


def _trace(won: Sequence[Outcome], applied: Applied) -> Select[Any]:
    for outcome in won:
        if outcome.change_set is not None:
            version = (change_set.c.target_id == outcome.fence.target_id, change_set.c.hash == outcome.hash)
            return select(change_set.c.id).where(*version)
    if applied.issue_id is not None:
        return select(sync_issue.c.id).where(sync_issue.c.id == applied.issue_id)
    spans = [(o.fence.target_id, o.span.last_at, o.span.last_asked_at) for o in won if o.span is not None]
    seen = tuple_(observation.c.target_id, observation.c.last_at, observation.c.last_asked_at)
    return select(observation.c.id).where(seen.in_(spans))
