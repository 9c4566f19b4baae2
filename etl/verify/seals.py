"""Checks the seals: each must link to the one before and agree with the tables about its run, and what signs or stamps
it must be about it.

Two passes, in memory that grows with the targets of a run and not with the trail. The first follows the seals by number
(``Links``). The second goes through the runs by id (``runs``), with everything that names one. Each run is compared as
of one moment; the service may continue to write.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine, Row, bindparam, exists, func, select

from etl.database import reading
from etl.domain import seal
from etl.domain.seal import signed_bytes
from etl.errors import SigningError
from etl.report.runs import TRAIL_OF_SEAL
from etl.schema import acknowledgement, run_seal, seal_timestamp, sync_run, trail
from etl.verify.finding import Broken, Finding, Verbatim, require, shown
from etl.verify.rows import BEFORE_ALL, as_read, pages
from etl.verify.runs import Sealing, compare_runs

if TYPE_CHECKING:  # its libraries come with an extra
    from etl.signing.keys import PublicKey
    from etl.signing.timestamps import Authorities

_SEALS_AT_ONCE: Final = 2_000
_SEALS: Final = select(run_seal, *(column.label(f"its_{column.name}") for column in sync_run.c)).outerjoin(
    sync_run, sync_run.c.id == run_seal.c.run_id
)
_TRAILS: Final = select(trail).order_by(trail.c.id)
_BEFORE: Final = select(run_seal.c.seal, run_seal.c.sealed_at).where(run_seal.c.id == bindparam("id"))
_SIGNED: Final = exists().where(run_seal.c.id <= bindparam("id"), run_seal.c.signature.is_not(None))
_ACKNOWLEDGED: Final = select(*(acknowledgement.c[name] for name in seal.ACKNOWLEDGEMENT)).where(
    acknowledgement.c.id > bindparam("after")
)
_LONG_AGO: Final = dt.datetime.min.replace(tzinfo=dt.UTC)
_STAMPS_AT_ONCE: Final = 500
_STAMPS: Final = select(seal_timestamp, run_seal.c.run_id, run_seal.c.seal, TRAIL_OF_SEAL.label("trail_id")).outerjoin(
    run_seal, run_seal.c.id == seal_timestamp.c.seal_id
)


def seals(
    engine: Engine, *, since: int = 0, sealing: Sealing | None = None, keys: Sequence[PublicKey] = ()
) -> Iterator[Finding]:
    """What is wrong with the seals after number ``since``, and with the runs that they seal. Raises DatabaseError.

    If ``keys`` are given, every signature must be by one of them.
    """
    sealing = sealing if sealing is not None else Sealing()
    yield from Links(engine, since, sealing, keys).follow()
    yield from compare_runs(engine, since, sealing)


def last_seal(engine: Engine) -> int:
    """The number of the latest seal; 0 if there is none."""
    with reading(engine) as connection:
        latest: int = connection.execute(select(func.coalesce(func.max(run_seal.c.id), 0))).scalar_one()
    return latest


# ------------------------------------------------------------------------------------------------------ signatures


class Signatures:
    """Follows the seals. Without public keys it only notices missing signatures."""

    def __init__(self, keys: Sequence[PublicKey], sealing: Sealing) -> None:
        self.signed = False
        """Whether a seal before the next one is signed."""
        self._keys = {key.key_id: key for key in keys}
        self._went = sealing
        self._stranger: str | None = None
        """The key of the previous seal if it is none of them: of consecutive seals with one unknown key, only the first
        is reported."""

    def require(self, row: Row[Any], trail_id: str) -> None:
        """Raise Broken if the signature of a seal is missing, or is not by one of the keys."""
        place = f"run_seal {row.id}.signature"
        if row.signature is None or row.key_id is None:
            if self.signed or row.signature is not row.key_id:
                raise Broken(place, Verbatim("there, since a seal before it is signed"), row.signature)
            return
        self.signed = True
        self._went.signed += 1
        if not self._keys:
            return
        key = self._keys.get(row.key_id)
        stranger, self._stranger = self._stranger, None if key else row.key_id
        if key is None:
            if row.key_id == stranger:
                return
            given = " or ".join(f"'{key_id}'" for key_id in self._keys)
            wanted = Verbatim(f"{given}, the public key that was given")
            raise Broken(f"run_seal {row.id}.key_id", wanted, Verbatim(f"'{row.key_id}', from this seal on"))
        if not key.accepts(row.signature, signed_bytes(trail_id, row.id, row.seal)):
            raise Broken(place, Verbatim(f"made with the key '{row.key_id}' over '{row.seal}'"), row.signature)

    def none_at_all(self) -> Iterator[Finding]:
        """A finding if keys were given and no seal is signed."""
        if self._keys and self._went.seals and not self.signed:
            wanted = "on some seal, since a public key was given"
            yield Finding(what="run_seal.signature", expected=wanted, found=f"on none of {self._went.seals}")


# ----------------------------------------------------------------------------------------------------------- links


class Links:
    """Follows the seals, up to the first missing one."""

    def __init__(self, engine: Engine, since: int, sealing: Sealing, keys: Sequence[PublicKey] = ()) -> None:
        self._engine = engine
        self._sealing = sealing
        self._number = since
        self._seal: str | None = None
        self._sealed_at = _LONG_AGO
        self._acknowledged: deque[Row[Any]] = deque()
        """What no seal so far covers, by time: a seal covers what was made since the one before, until its own time."""
        self._read_acknowledgement = self._last_acknowledgement = 0
        """The highest id that was read, and that of the last one that a seal so far covers."""
        self._trails: Sequence[Row[Any]] = ()
        self._trail_id = ""
        self._signatures = Signatures(keys, sealing)

    def follow(self) -> Iterator[Finding]:
        try:
            yield from self._follow()
        except Broken as broken:
            yield broken.of()
        else:
            yield from self._signatures.none_at_all()

    def _follow(self) -> Iterator[Finding]:
        heads: Sequence[Row[Any]] = ()

        def read(connection: Connection, rows: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
            nonlocal heads
            if not self._trails:
                self._begin(connection)
            self._read_acknowledgements(connection)
            heads = connection.execute(_TRAILS).all() if len(rows) < _SEALS_AT_ONCE else ()
            return rows

        after = self._number or BEFORE_ALL
        for row in pages(self._engine, _SEALS, run_seal.c.id, read, at_once=_SEALS_AT_ONCE, after=after, tolerant=True):
            yield from self._link(row)
        if heads:
            self._require_head(heads)

    def _begin(self, connection: Connection) -> None:
        self._trails = connection.execute(_TRAILS).all()
        self._signatures.signed = connection.execute(select(_SIGNED), {"id": self._number}).scalar_one()
        if self._number:
            before = connection.execute(_BEFORE, {"id": self._number}).first()
            if before is None:
                raise Broken("run_seal", Verbatim(f"a seal {self._number}"), Verbatim("missing"))
            self._seal, self._sealed_at = before
            self._read_acknowledgements(connection)
            self._last_acknowledgement = max((row.id for row in self._made_until(self._sealed_at)), default=0)
        for each in self._trails:
            if each.first_seal <= self._number:
                self._trail_id = each.trail_id

    def _read_acknowledgements(self, connection: Connection) -> None:
        """Read those that have come since the last time."""
        found = connection.execute(_ACKNOWLEDGED, {"after": self._read_acknowledgement}).all()
        self._acknowledged = deque(sorted([*self._acknowledged, *found], key=attrgetter("made_at", "id")))
        self._read_acknowledgement = max((row.id for row in found), default=self._read_acknowledgement)

    def _made_until(self, at: dt.datetime | None) -> list[Row[Any]]:
        """Take the acknowledgements until then; None: all that are left."""
        taken = []
        while self._acknowledged and (at is None or self._acknowledged[0].made_at <= at):
            taken.append(self._acknowledged.popleft())
        return taken

    def _link(self, row: Row[Any]) -> Iterator[Finding]:
        number = self._number + 1
        if row.id != number:
            raise Broken("run_seal.id", Verbatim(f"{number}, after the seal {number - 1}"), row.id)
        self._enter(number)
        self._number, self._sealing.last = number, number
        self._sealing.seals += 1
        for require_it in (self._require, self._signatures.require, self._require_acknowledgements):
            try:
                require_it(row, self._trail_id)
            except Broken as broken:
                yield broken.of(run_id=row.run_id, seal_id=number)
        self._seal, self._sealed_at = row.seal, max(row.sealed_at, self._sealed_at)

    def _enter(self, number: int) -> None:
        """Enter the trails that begin with this seal, each copied from the one before."""
        for each in self._trails:
            if each.first_seal == number:
                self._seal = seal.genesis(each.trail_id, each.created_at, self._seal)
                self._trail_id = each.trail_id

    def _require(self, row: Row[Any], trail_id: str) -> None:
        place = f"run_seal {row.id}"
        require(f"{place}.format", seal.FORMAT, row.format)
        require(f"{place}.parent", self._seal, row.parent)
        if row.its_status is None:
            raise Broken(f"{place}.run_id", Verbatim("a run"), Verbatim(f"{row.run_id}, which is not there"))
        if row.its_finished_at is None:
            raise Broken("sync_run.finished_at", Verbatim("a time, since the run is sealed"), None)
        if not self._sealed_at <= row.sealed_at >= row.its_finished_at >= row.its_started_at:
            order = Verbatim(f"after the end of its run at {row.its_finished_at}, and after {self._sealed_at}")
            raise Broken(f"{place}.sealed_at", order, row.sealed_at)
        computed = _computed(row, trail_id)
        if computed != row.seal:
            by = Verbatim(f"'{computed}' by the row of its run, and its digests")
            raise Broken(f"{place}.seal", by, row.seal)

    def _require_acknowledgements(self, row: Row[Any], trail_id: str) -> None:
        made = self._made_until(max(row.sealed_at, self._sealed_at))
        require("run_seal.acknowledgements_digest", seal.acknowledgements_digest(made), row.acknowledgements_digest)
        self._require_numbers(made)

    def _require_numbers(self, made: Sequence[Row[Any]]) -> None:
        """Raise Broken unless these are the next ones, and none is missing."""
        for row in made:
            number, self._last_acknowledgement = self._last_acknowledgement + 1, row.id
            require("acknowledgement.id", number, row.id)

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
        unsealed = self._made_until(None)
        self._require_numbers(unsealed)
        require("trail.acknowledged_at", unsealed[-1].made_at if unsealed else None, head.acknowledged_at)
        require("trail.last_seal", self._number, head.last_seal)
        require("trail.head", self._seal, head.head)
        if head.first_seal <= self._number:
            require("trail.sealed_at", self._sealed_at, head.sealed_at)


def _computed(row: Row[Any], trail_id: str) -> str:
    named = (name for name in seal.SealedRun.__struct_fields__ if name not in ("run_id", "sums"))
    run = seal.SealedRun(
        run_id=row.run_id,
        sums=[getattr(row, f"its_{name}") for name in seal.SUMS],
        **{name: getattr(row, f"its_{name}") for name in named},
    )
    digests = seal.Digests(**{name: getattr(row, f"{name}_digest") for name in seal.Digests.__struct_fields__})
    return seal.seal_hash(row.parent, trail_id, row.id, run, digests, row.sealed_at)


# ----------------------------------------------------------------------------------------------------- time stamps


def timestamps(
    engine: Engine, *, since: int = 0, sealing: Sealing | None = None, authorities: Authorities | None = None
) -> Iterator[Finding]:
    """What is wrong with the time stamps of the seals after number ``since``. Raises DatabaseError.

    Without ``authorities``, only the seal and the time of a token are checked, not who made it.
    """
    sealing = sealing if sealing is not None else Sealing()

    after, key = since or BEFORE_ALL, seal_timestamp.c.seal_id
    for row in pages(engine, _STAMPS, key, as_read, at_once=_STAMPS_AT_ONCE, after=after, tolerant=True):
        try:
            _require_stamp(row, authorities)
        except Broken as broken:
            yield broken.of(run_id=row.run_id, seal_id=row.seal_id)
        sealing.stamped += 1
        sealing.last_stamp = (row.seal_id, row.stamped_at)


def _require_stamp(row: Row[Any], authorities: Authorities | None) -> None:
    place = f"seal_timestamp {row.seal_id}"
    if row.seal is None:
        raise Broken(f"{place}.seal_id", Verbatim("a seal"), Verbatim(f"{row.seal_id}, which is not there"))
    message, token = signed_bytes(row.trail_id, row.seal_id, row.seal), bytes(row.token)
    if hashlib.sha256(message).digest() not in token:
        raise Broken(f"{place}.token", Verbatim(f"a time stamp of '{row.seal}'"), Verbatim("of something else"))
    if authorities is None:
        if f"{row.stamped_at.astimezone(dt.UTC):%Y%m%d%H%M%S}".encode() not in token:
            raise Broken(f"{place}.stamped_at", Verbatim("the time in its token"), row.stamped_at)
        return
    try:
        stamped_at = authorities.time_of(token, message)
    except SigningError as error:
        raise Broken(f"{place}.token", Verbatim("of an authority that is trusted"), Verbatim(f"not: {error}")) from None
    if stamped_at != row.stamped_at:
        raise Broken(f"{place}.stamped_at", stamped_at, row.stamped_at)
