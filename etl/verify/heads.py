"""The ends of the chains and the seals, to be kept where nobody who can change the database can change them, and
compared later."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from sqlalchemy import Connection, Engine, Row, and_, bindparam, func, select, tuple_

from etl.database import reading
from etl.domain.model import Span, Target
from etl.domain.seal import kept_line
from etl.report.runs import TRAIL_OF_SEAL
from etl.schema import TARGET_KEY, change_set, observation, run_seal, target
from etl.verify.rows import as_read, pages, rows_of
from etl.verify.seals import last_seal

_AT_ONCE: Final = 500
_SEALS_AT_ONCE: Final = 1_000
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Time = Annotated[dt.datetime, msgspec.Meta(tz=True)]


class KeptSeal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line that keeps a seal."""

    trail_id: str
    id: int
    seal: Digest
    sealed_at: Time


class Head(msgspec.Struct, frozen=True):
    """The end of a target's chain: the content of a line of ``flowtrail verify --head``."""

    org_id: str
    user_id: str
    expression: str
    version: int
    hash: Digest
    state_digest: Digest
    spans: Sequence[Span]
    """The spans of the version, by ``first_at``; no hash covers them yet."""
    open: bool
    """Whether the last of the spans was still open."""
    taken_at: Time

    def __post_init__(self) -> None:
        if any(at.tzinfo is None for span in self.spans for at in (span.first_at, span.last_asked_at, span.last_at)):
            raise ValueError("Expected `datetime` with a timezone component - at `$.spans`")

    @property
    def target(self) -> Target:
        return Target(self.org_id, self.user_id, self.expression)


def decoded(line: bytes) -> KeptSeal | Head:
    """What a line keeps. A name in a head may contain `trail_id`, too. Raises MsgspecError or UnicodeError if it keeps
    neither."""
    if b"trail_id" in line:
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.json.decode(line, type=KeptSeal)
    return msgspec.json.decode(line, type=Head)


_LATEST: Final = (
    select(func.max(change_set.c.version))
    .where(change_set.c.target_id == target.c.id)
    .correlate(target)
    .scalar_subquery()
)
_HEAD: Final = select(
    target.c.id,
    *TARGET_KEY,
    change_set.c.version,
    change_set.c.hash,
    change_set.c.state_digest,
    target.c.observation_id.is_not(None).label("open"),
).join_from(target, change_set, and_(change_set.c.target_id == target.c.id, change_set.c.version == _LATEST))
_HEADS_OF: Final = _HEAD.where(target.c.id.in_(bindparam("ids", expanding=True))).order_by(target.c.id)
_VERSIONS_AT_ONCE: Final = 10_000
_VERSIONS: Final = select(target.c.id, target.c.version).where(target.c.version > 0)
_SPANS: Final = (
    select(
        observation.c.target_id,
        observation.c.version,
        *(observation.c[name] for name in Span.__struct_fields__),
    )
    .where(tuple_(observation.c.target_id, observation.c.version).in_(bindparam("versions", expanding=True)))
    .order_by(observation.c.first_at, observation.c.id)
)
_TARGETS: Final = select(target.c.id, *TARGET_KEY).where(tuple_(*TARGET_KEY).in_(bindparam("targets", expanding=True)))
KEPT_SEALS: Final = select(TRAIL_OF_SEAL.label("trail_id"), run_seal.c.id, run_seal.c.seal, run_seal.c.sealed_at)
Version = tuple[int, int]
"""A target's id, and one of its versions."""


def heads(engine: Engine, now: dt.datetime) -> Iterator[dict[str, Any]]:
    """The head of every target that was ever observed, ready to be printed as a line of JSON.

    Times are RFC 3339 in UTC; ``taken_at`` is ``now``. Raises DatabaseError if the database cannot be read.
    """

    def taken(connection: Connection, found: Sequence[Row[Any]]) -> Iterator[dict[str, Any]]:
        return iter(_taken(connection, found, now).values())

    return pages(engine, _HEAD, target.c.id, taken, at_once=_AT_ONCE)


def heads_of(engine: Engine, target_ids: Sequence[int], now: dt.datetime) -> dict[int, dict[str, Any]]:
    """As ``heads``, for some targets, by their ids; targets without a version are left out."""
    with reading(engine) as connection:
        return _taken(connection, rows_of(connection, _HEADS_OF, ids=list(target_ids)), now)


def _taken(connection: Connection, found: Sequence[Row[Any]], now: dt.datetime) -> dict[int, dict[str, Any]]:
    spans = spans_of(connection, [(row.id, row.version) for row in found])
    taken = {}
    for row in found:
        names = (row.org_id, row.user_id, row.expression)
        head = Head(*names, row.version, row.hash, row.state_digest, spans[row.id, row.version], row.open, now)
        taken[row.id] = msgspec.to_builtins(head)
    return taken


def versions(engine: Engine) -> Iterator[Version]:
    """The id and the version of every target that was ever observed, by id, in short transactions."""
    return map(tuple, pages(engine, _VERSIONS, target.c.id, as_read, at_once=_VERSIONS_AT_ONCE))


def ids_of(connection: Connection, targets: Sequence[Target]) -> dict[Target, int]:
    """The ids of those of ``targets`` that the database has."""
    return {Target(*names): number for number, *names in map(tuple, rows_of(connection, _TARGETS, targets=targets))}


def spans_of(connection: Connection, versions: Sequence[Version]) -> Mapping[Version, Sequence[Span]]:
    """The spans of these versions, by ``first_at``."""
    spans: defaultdict[Version, list[Span]] = defaultdict(list)
    if versions:
        for target_id, version, *span in map(tuple, rows_of(connection, _SPANS, versions=versions)):
            spans[target_id, version].append(Span(*span))
    return spans


def seal_lines(engine: Engine, *, after: int = 0) -> Iterator[dict[str, Any]]:
    """Each seal after number ``after`` as a line to keep, by number. Raises DatabaseError."""
    rows = pages(engine, KEPT_SEALS, run_seal.c.id, as_read, at_once=_SEALS_AT_ONCE, after=after)
    return (kept_line(row.trail_id, row.id, row.seal, row.sealed_at) for row in rows)


def latest_seal_line(engine: Engine) -> Iterator[dict[str, Any]]:
    """The last seal as a line to keep, if there is one."""
    return seal_lines(engine, after=last_seal(engine) - 1)
