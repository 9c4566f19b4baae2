"""Checks the seals: each must link to the one before, and agree with the tables about its run.

Two passes, in memory that grows with the targets of a run and not with the trail. The first follows the seals by number
(``links``). The second goes through the runs by id (``runs``), with everything that names one. Each run is compared as
of one moment; the service may continue to write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Engine, func, select

from etl.database import reading
from etl.schema import run_seal
from etl.verify.finding import Finding
from etl.verify.links import Links
from etl.verify.runs import Runs
from etl.verify.sealing import Sealing
from etl.verify.signatures import PublicKey


def seals(
    engine: Engine, *, since: int = 0, sealing: Sealing | None = None, keys: Sequence[PublicKey] = ()
) -> Iterator[Finding]:
    """What is wrong with the seals after number ``since``, and with the runs that they seal. Raises DatabaseError.

    If ``keys`` are given, every signature must be by one of them.
    """
    sealing = sealing if sealing is not None else Sealing()
    yield from Links(engine, since, sealing, keys).follow()
    yield from Runs(engine, since, sealing).compare()


def last_seal(engine: Engine) -> int:
    """The number of the latest seal; 0 if there is none."""
    with reading(engine) as connection:
        latest: int = connection.execute(select(func.coalesce(func.max(run_seal.c.id), 0))).scalar_one()
    return latest
