"""The kept answers, in their original bytes."""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

from sqlalchemy import Engine, select

from etl.domain import answers
from etl.domain.model import Target
from etl.report.fetch import short_transaction
from etl.schema import TARGET_KEY, answer, change_set, target


class VersionAnswer(NamedTuple):
    """The answer that made a version; ``kept`` is None if it is not archived."""

    version: int
    observed_at: dt.datetime
    data_hash: str
    kept: answers.KeptAnswer | None


def answer_of(engine: Engine, of: Target, version: int | None = None) -> VersionAnswer | None:
    """The answer that made a version of a target (default: the latest); None if there is no such version.

    Raises DatabaseError.
    """
    mine = zip(TARGET_KEY, of, strict=True)
    query = (
        select(
            *(change_set.c.version, change_set.c.observed_at, change_set.c.data_hash),
            *(answer.c.body, answer.c.length, answer.c.encoding),
        )
        .join_from(change_set, target, target.c.id == change_set.c.target_id)
        .outerjoin(answer, answer.c.data_hash == change_set.c.data_hash)
        .where(*(column == value for column, value in mine))
        .order_by(change_set.c.version.desc())
        .limit(1)
    )
    if version is not None:
        query = query.where(change_set.c.version == version)
    with short_transaction(engine) as connection:
        row = connection.execute(query).first()
    if row is None:
        return None
    number, observed_at, data_hash, body, length, encoding = row
    kept = None if body is None else answers.KeptAnswer(data_hash, bytes(body), length, encoding)
    return VersionAnswer(number, observed_at, data_hash, kept)
