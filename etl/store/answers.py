"""The archive of answers: the bytes that made a version, or in which a hold was seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
from sqlalchemy import Connection, bindparam, select

from etl.domain.model import Outcome
from etl.schema import answer
from etl.store.bulk import insert_new

_KNOWN: Final = select(answer.c.data_hash).where(answer.c.data_hash.in_(bindparam("hashes", expanding=True)))


def keep(connection: Connection, run_id: int, outcomes: Iterable[Outcome]) -> None:
    """Append those answers of ``outcomes`` that are not there yet.

    The transaction locks nothing after this: two with the same answer wait for each other here, in the order of the
    hashes, and for nothing else.
    """
    given = {outcome.kept.data_hash: outcome.kept for outcome in outcomes if outcome.kept is not None}
    if not given:
        return
    known = set(connection.execute(_KNOWN, {"hashes": list(given)}).scalars())
    new = [{**msgspec.structs.asdict(given[each]), "first_run_id": run_id} for each in sorted(given.keys() - known)]
    if new:
        insert_new(connection, answer, new)
