"""What EnOS said, kept beside the trail: the bytes of answers, and the details of changed workflows."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection, func, insert, select

from etl.domain.answers import Detail
from etl.domain.kinds import DELTA_KINDS
from etl.domain.model import Outcome
from etl.schema import CHANGE_KIND, answer, change_set, target, workflow_change, workflow_detail
from etl.store import seals
from etl.store.bulk import insert_new

CHANGES_WITH_DETAILS: Final = tuple(kind for kind in DELTA_KINDS if kind != "removed")
"""After these changes a user sees the workflow, so details can be asked for."""


class Changed(NamedTuple):
    """A workflow that a run found changed, and a user who sees it."""

    org_id: str
    flow_id: str
    user_id: str


def changed_workflows(connection: Connection, run_id: int, most: int) -> list[Changed]:
    """The first ``most`` workflows that the run's versions changed, each once, however many users see it.

    What only a directory lists has nobody in whose name it could be asked for.
    """
    found = (
        select(target.c.org_id, workflow_change.c.flow_id, func.min(target.c.user_id))
        .join_from(change_set, target, target.c.id == change_set.c.target_id)
        .join(workflow_change, workflow_change.c.change_set_id == change_set.c.id)
        .where(change_set.c.run_id == run_id, target.c.user_id != "", CHANGE_KIND.in_(CHANGES_WITH_DETAILS))
        .group_by(target.c.org_id, workflow_change.c.flow_id)
        .order_by(target.c.org_id, workflow_change.c.flow_id)
    )
    return [Changed(*row) for row in connection.execute(found.limit(most))]


def details_were_added(connection: Connection, run_id: int, found: Sequence[Detail]) -> bool:
    """Whether the rows that ``add_details`` made were committed."""
    last = found[-1]
    mine = (workflow_detail.c.run_id == run_id, workflow_detail.c.org_id == last.org_id)
    there = select(workflow_detail.c.id).where(*mine, workflow_detail.c.flow_id == last.flow_id)
    return connection.execute(there.limit(1)).first() is not None


def add_details(connection: Connection, run_id: int, details: Sequence[Detail], *, keep_body: bool) -> None:
    """Append what EnOS said, in the given order. Raises RunClosed if the run is sealed already."""
    seals.require_unsealed(connection, run_id)
    rows = [
        {
            **msgspec.structs.asdict(detail),
            "run_id": run_id,
            "body": zlib.compress(detail.body) if keep_body else None,
        }
        for detail in details
    ]
    connection.execute(insert(workflow_detail), rows)


def keep_answers(connection: Connection, run_id: int, outcomes: Iterable[Outcome]) -> None:
    """Append those answers of ``outcomes`` that are not there yet.

    The transaction locks nothing after this: two with the same answer wait for each other here, in the order of the
    hashes, and for nothing else.
    """
    given = {outcome.kept.data_hash: outcome.kept for outcome in outcomes if outcome.kept is not None}
    rows = [{**msgspec.structs.asdict(given[each]), "first_run_id": run_id} for each in sorted(given)]
    if rows:
        insert_new(connection, answer, rows)
