"""Seals that were kept elsewhere, one per line, and their comparison with the trail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, bindparam, select

from etl.database import reading
from etl.domain import seal
from etl.schema import run_seal, trail
from etl.verify.finding import Finding, shown
from etl.verify.heads import Digest, Time

_AT_ONCE: Final = 1_000
_SEALS: Final = (
    select(run_seal.c.id, run_seal.c.seal, run_seal.c.sealed_at)
    .where(run_seal.c.id > bindparam("after"))
    .order_by(run_seal.c.id)
    .limit(_AT_ONCE)
)
_THESE: Final = select(run_seal.c.id, run_seal.c.seal, run_seal.c.sealed_at).where(
    run_seal.c.id.in_(bindparam("ids", expanding=True))
)
_TRAILS: Final = select(trail.c.trail_id, trail.c.first_seal).order_by(trail.c.id)


class KeptSeal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line that keeps a seal."""

    trail_id: str
    id: int
    seal: Digest
    sealed_at: Time


def seal_lines(engine: Engine, *, after: int = 0) -> Iterator[dict[str, Any]]:
    """Each seal after number ``after`` as a line to keep, by number. Raises DatabaseError."""
    while True:
        with reading(engine) as connection:
            rows = connection.execute(_SEALS, {"after": after}).all()
            trails = _trails(connection)
        yield from (seal.kept_line(_trail_of(trails, row.id), *row) for row in rows)
        if len(rows) < _AT_ONCE:
            return
        after = rows[-1].id


def latest_seal_line(engine: Engine) -> Iterator[dict[str, Any]]:
    """The last seal as a line to keep, if there is one."""
    with reading(engine) as connection:
        last = connection.execute(select(run_seal.c.id).order_by(run_seal.c.id.desc()).limit(1)).scalar()
    yield from () if last is None else seal_lines(engine, after=last - 1)


def altered_seals(connection: Connection, kept: Sequence[tuple[int, KeptSeal]]) -> Iterator[Finding]:
    """Differences from the kept seals, which are given with their line numbers."""
    trails = _trails(connection)
    found = {row.id: row for row in connection.execute(_THESE, {"ids": sorted({each.id for _, each in kept})})}
    for line, each in kept:
        row = found.get(each.id)
        there = None if row is None else KeptSeal(trail_id=_trail_of(trails, each.id), **row._mapping)
        if there == each:
            continue
        name = "seal" if there is None or there.seal != each.seal else "trail_id"
        name = "sealed_at" if there is not None and (there.seal, there.trail_id) == (each.seal, each.trail_id) else name
        expected = f"{shown(getattr(each, name))}, as line {line} keeps it"
        what = "missing" if there is None else shown(getattr(there, name))
        told = f"{what}: altered, or restored from before seal {each.id}"
        yield Finding(seal_id=each.id, what=f"run_seal {each.id}.{name}", expected=expected, found=told)


def _trails(connection: Connection) -> Sequence[tuple[str, int]]:
    return [(trail_id, first) for trail_id, first in connection.execute(_TRAILS)]


def _trail_of(trails: Sequence[tuple[str, int]], number: int) -> str:
    """The trail in which a seal was made: the last one that had begun."""
    begun = [trail_id for trail_id, first in trails if first <= number]
    return begun[-1] if begun else ""
