"""What runs wrote: versions and issues, the kept answers in their original bytes, and the seals."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, Select, select, text

from etl.domain import answers
from etl.domain.model import Target
from etl.domain.seal import signed_bytes
from etl.report.reading import short_transaction, stream
from etl.report.rows import RunVersion
from etl.schema import TARGET_KEY, answer, change_set, run_seal, seal_timestamp, sync_issue, sync_run, target, trail


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


# --------------------------------------------------------------------------------------------------------- the seals


class Seal(NamedTuple):
    """A seal, and its run."""

    id: int
    run_id: int
    schedule: str | None
    origin: str
    status: str
    finished_at: dt.datetime
    sealed_at: dt.datetime
    trail_id: str
    seal: str
    key_id: str | None
    signature: str | None
    stamped_at: dt.datetime | None
    """When an authority stamped it, by the authority's clock."""

    @property
    def message(self) -> bytes:
        """The bytes that are signed and stamped."""
        return signed_bytes(self.trail_id, self.id, self.seal)


_TRAIL: Final = (
    select(trail.c.trail_id)
    .where(trail.c.first_seal <= run_seal.c.id)
    .order_by(trail.c.id.desc())
    .limit(1)
    .correlate(run_seal)
)
"""The trail of a seal: the last one that had begun."""
_SEALS: Final[Select[Any]] = (
    select(
        *(run_seal.c.id, run_seal.c.run_id, sync_run.c.schedule, sync_run.c.origin, sync_run.c.status),
        *(sync_run.c.finished_at, run_seal.c.sealed_at, _TRAIL.scalar_subquery(), run_seal.c.seal),
        *(run_seal.c.key_id, run_seal.c.signature, seal_timestamp.c.stamped_at),
    )
    .join(sync_run, sync_run.c.id == run_seal.c.run_id)
    .outerjoin(seal_timestamp, seal_timestamp.c.seal_id == run_seal.c.id)
    .order_by(run_seal.c.id.desc())
)


def seals(engine: Engine, most: int | None) -> Iterator[Seal]:
    """The newest seals, the newest first. Raises DatabaseError if the database refuses."""
    return stream(engine, _SEALS.limit(most), Seal)


def seal(engine: Engine, number: int) -> Seal | None:
    """The seal with this number, if there is one. Raises DatabaseError if the database refuses."""
    with short_transaction(engine) as connection:
        row = connection.execute(_SEALS.where(run_seal.c.id == number)).first()
    return None if row is None else Seal(*row)


def token(engine: Engine, number: int) -> bytes | None:
    """The time stamp of a seal (a CMS ContentInfo in DER), if it has one."""
    with short_transaction(engine) as connection:
        found = connection.execute(select(seal_timestamp.c.token).where(seal_timestamp.c.seal_id == number)).scalar()
    return None if found is None else bytes(found)
