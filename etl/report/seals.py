"""The seals of runs, for people."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine, Select, select

from etl.domain.seal import signed_bytes
from etl.report.reading import short_transaction
from etl.schema import run_seal, seal_timestamp, sync_run, trail

_AT_ONCE: Final = 500


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


def seals(engine: Engine) -> Iterator[Seal]:
    """All seals, the newest first. Raises DatabaseError if the database refuses."""
    before: int | None = None
    while True:
        some = _SEALS if before is None else _SEALS.where(run_seal.c.id < before)
        with short_transaction(engine) as connection:
            found = [Seal(*row) for row in connection.execute(some.limit(_AT_ONCE))]
        yield from found
        if len(found) < _AT_ONCE:
            return
        before = found[-1].id


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
