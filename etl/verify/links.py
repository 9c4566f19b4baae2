"""Follows the seals: each must link to the one before, and agree with the row of its run."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, bindparam, exists, select

from etl.database import reading
from etl.domain import seal
from etl.schema import run_seal, sync_run, trail
from etl.verify.finding import Broken, Finding, Verbatim, require, shown
from etl.verify.rows import BEFORE_ALL, any_time
from etl.verify.sealing import Sealing
from etl.verify.signatures import PublicKey, Signatures

_SEALS_AT_ONCE: Final = 2_000
_SEALS: Final = (
    select(run_seal, *(column.label(f"its_{column.name}") for column in sync_run.c))
    .outerjoin(sync_run, sync_run.c.id == run_seal.c.run_id)
    .where(run_seal.c.id > bindparam("after"))
    .order_by(run_seal.c.id)
    .limit(_SEALS_AT_ONCE)
)
_TRAILS: Final = select(trail).order_by(trail.c.id)
_BEFORE: Final = select(run_seal.c.seal, run_seal.c.sealed_at).where(run_seal.c.id == bindparam("id"))
_SIGNED: Final = exists().where(run_seal.c.id <= bindparam("id"), run_seal.c.signature.is_not(None))
_LONG_AGO: Final = dt.datetime.min.replace(tzinfo=dt.UTC)


class Links:
    """Follows the seals, up to the first missing one."""

    def __init__(self, engine: Engine, since: int, sealing: Sealing, keys: Sequence[PublicKey] = ()) -> None:
        self._engine = engine
        self._keys = keys
        self._sealing = sealing
        self._number = since
        self._seal: str | None = None
        self._sealed_at = _LONG_AGO
        self._trails: Sequence[Row[Any]] = ()
        self._trail_id = ""
        self._signatures = Signatures((), sealing, signed_before=False)

    def follow(self) -> Iterator[Finding]:
        try:
            yield from self._follow()
        except Broken as broken:
            yield broken.of_run(None)
        else:
            yield from self._signatures.none_at_all()

    def _follow(self) -> Iterator[Finding]:
        after, more = self._number or BEFORE_ALL, True
        while more:
            with reading(self._engine) as connection, any_time(connection):
                if not self._trails:
                    self._begin(connection)
                rows = connection.execute(_SEALS, {"after": after}).all()
                more = len(rows) == _SEALS_AT_ONCE
                heads = () if more else connection.execute(_TRAILS).all()
            for row in rows:
                yield from self._link(row)
            after = self._number
            if heads:
                self._require_head(heads)

    def _begin(self, connection: Connection) -> None:
        self._trails = connection.execute(_TRAILS).all()
        signed = connection.execute(select(_SIGNED), {"id": self._number}).scalar_one()
        self._signatures = Signatures(self._keys, self._sealing, signed_before=signed)
        if self._number:
            before = connection.execute(_BEFORE, {"id": self._number}).first()
            if before is None:
                raise Broken("run_seal", Verbatim(f"a seal {self._number}"), Verbatim("missing"))
            self._seal, self._sealed_at = before
        for each in self._trails:
            if each.first_seal <= self._number:
                self._trail_id = each.trail_id

    def _link(self, row: Row[Any]) -> Iterator[Finding]:
        number = self._number + 1
        place = f"run_seal {number}"
        if row.id != number:
            raise Broken("run_seal.id", Verbatim(f"{number}, after the seal {number - 1}"), row.id)
        self._enter(number)
        self._number, self._sealing.last = number, number
        self._sealing.seals += 1
        try:
            self._require(row, place)
        except Broken as broken:
            yield broken.of_run(row.run_id, number)
        try:
            self._signatures.require(row, self._trail_id)
        except Broken as broken:
            yield broken.of_run(row.run_id, number)
        self._seal, self._sealed_at = row.seal, max(row.sealed_at, self._sealed_at)

    def _enter(self, number: int) -> None:
        """Enter the trails that begin with this seal, each copied from the one before."""
        for each in self._trails:
            if each.first_seal == number:
                self._seal = seal.genesis(each.trail_id, each.created_at, self._seal)
                self._trail_id = each.trail_id

    def _require(self, row: Row[Any], place: str) -> None:
        require(f"{place}.format", seal.FORMAT, row.format)
        require(f"{place}.parent", self._seal, row.parent)
        if row.its_status is None:
            raise Broken(f"{place}.run_id", Verbatim("a run"), Verbatim(f"{row.run_id}, which is not there"))
        if row.its_finished_at is None:
            raise Broken("sync_run.finished_at", Verbatim("a time, since the run is sealed"), None)
        if not self._sealed_at <= row.sealed_at >= row.its_finished_at >= row.its_started_at:
            order = Verbatim(f"after the end of its run at {row.its_finished_at}, and after {self._sealed_at}")
            raise Broken(f"{place}.sealed_at", order, row.sealed_at)
        computed = self._computed(row)
        if computed != row.seal:
            by = Verbatim(f"'{computed}' by the row of its run, and its digests")
            raise Broken(f"{place}.seal", by, row.seal)

    def _computed(self, row: Row[Any]) -> str:
        run = seal.SealedRun(
            run_id=row.run_id,
            schedule=row.its_schedule,
            origin=row.its_origin,
            scheduled_for=row.its_scheduled_for,
            missed=row.its_missed,
            status=row.its_status,
            started_at=row.its_started_at,
            finished_at=row.its_finished_at,
            sums=[getattr(row, f"its_{name}") for name in seal.SUMS],
        )
        digests = seal.Digests(
            targets=row.targets_digest,
            change_sets=row.change_sets_digest,
            issues=row.issues_digest,
            events=row.events_digest,
        )
        return seal.seal_hash(row.parent, self._trail_id, row.id, run, digests, row.sealed_at)

    def _require_head(self, trails: Sequence[Row[Any]]) -> None:
        """Raise Broken unless the trail's head is the last seal: this reveals seals that were cut off."""
        least, head = 1, trails[-1]
        for each in trails:
            if not least <= each.first_seal <= self._number + 1:
                within = Verbatim(f"from {least} to {self._number + 1}")
                raise Broken(f"trail.first_seal of {shown(each.trail_id)}", within, each.first_seal)
            least = each.first_seal
        if head.first_seal > self._number:
            self._enter(head.first_seal)
        require("trail.last_seal", self._number, head.last_seal)
        require("trail.head", self._seal, head.head)
        if head.first_seal <= self._number:
            require("trail.sealed_at", self._sealed_at, head.sealed_at)
