"""The ends of the chains, to be kept where nobody who can change the database can change them, and compared later."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from sqlalchemy import Connection, Engine, Row, and_, bindparam, func, select, tuple_

from etl.database import reading
from etl.domain.model import Span, Target
from etl.schema import TARGET_KEY, change_set, observation, target
from etl.verify.rows import as_read, pages, rows_of

_AT_ONCE: Final = 500
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Time = Annotated[dt.datetime, msgspec.Meta(tz=True)]


class KeptSpan(msgspec.Struct, frozen=True, kw_only=True):
    """A span at the time when the head was taken."""

    first_at: Time
    last_asked_at: Time
    last_at: Time
    observations: int
    longest_gap_seconds: int
    interrupted: bool


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a target's chain: the content of a line of ``flowtrail verify --head``."""

    org_id: str
    user_id: str
    expression: str
    version: int
    hash: Digest
    state_digest: Digest
    spans: list[KeptSpan]
    """The spans of the version, by ``first_at``; no hash covers them yet."""
    open: bool
    """Whether the last of the spans was still open."""
    taken_at: Time

    @property
    def target(self) -> Target:
        return Target(self.org_id, self.user_id, self.expression)


_LATEST: Final = (
    select(func.max(change_set.c.version))
    .where(change_set.c.target_id == target.c.id)
    .correlate(target)
    .scalar_subquery()
)
_HEAD: Final = select(
    target.c.id,
    target.c.org_id,
    target.c.user_id,
    target.c.expression,
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
        observation.c.first_at,
        observation.c.last_asked_at,
        observation.c.last_at,
        observation.c.observations,
        observation.c.longest_gap_seconds,
        observation.c.interrupted,
    )
    .where(tuple_(observation.c.target_id, observation.c.version).in_(bindparam("versions", expanding=True)))
    .order_by(observation.c.first_at, observation.c.id)
)
_TARGETS: Final = select(target.c.id, *TARGET_KEY).where(tuple_(*TARGET_KEY).in_(bindparam("targets", expanding=True)))
Version = tuple[int, int]
"""A target's id, and one of its versions."""


def heads(engine: Engine, now: dt.datetime) -> Iterator[dict[str, Any]]:
    """The head of every target that was ever observed, ready to be printed as a line of JSON.

    Times are RFC 3339 in UTC; ``taken_at`` is ``now``. Raises DatabaseError if the database cannot be read.
    """

    def taken(connection: Connection, found: Sequence[Row[Any]]) -> Iterator[dict[str, Any]]:
        spans = spans_of(connection, [(row.id, row.version) for row in found])
        return (_head(row, spans[row.id, row.version], now) for row in found)

    return pages(engine, _HEAD, target.c.id, taken, at_once=_AT_ONCE)


def heads_of(engine: Engine, target_ids: Sequence[int], now: dt.datetime) -> dict[int, dict[str, Any]]:
    """As ``heads``, for some targets, by their ids; targets without a version are left out."""
    with reading(engine) as connection:
        found = rows_of(connection, _HEADS_OF, ids=list(target_ids))
        spans = spans_of(connection, [(row.id, row.version) for row in found])
    return {row.id: _head(row, spans[row.id, row.version], now) for row in found}


def versions(engine: Engine) -> Iterator[tuple[int, int]]:
    """The id and the version of every target that was ever observed, by id, in short transactions."""
    return map(tuple, pages(engine, _VERSIONS, target.c.id, as_read, at_once=_VERSIONS_AT_ONCE))


def ids_of(engine: Engine, targets: Sequence[Target]) -> dict[Target, int]:
    """The ids of those of ``targets`` that the database has."""
    with reading(engine) as connection:
        return ids_in(connection, targets)


def _head(row: Row[Any], spans: Sequence[Span], now: dt.datetime) -> dict[str, Any]:
    head = Head(
        org_id=row.org_id,
        user_id=row.user_id,
        expression=row.expression,
        version=row.version,
        hash=row.hash,
        state_digest=row.state_digest,
        spans=[KeptSpan(**msgspec.structs.asdict(span)) for span in spans],
        open=row.open,
        taken_at=now,
    )
    builtins: dict[str, Any] = msgspec.to_builtins(head)
    return builtins


def ids_in(connection: Connection, targets: Sequence[Target]) -> dict[Target, int]:
    """As ``ids_of``, on a connection that is open."""
    return {Target(*names): number for number, *names in map(tuple, rows_of(connection, _TARGETS, targets=targets))}


def spans_of(connection: Connection, versions: Sequence[Version]) -> Mapping[Version, Sequence[Span]]:
    """The spans of these versions, by ``first_at``."""
    spans: defaultdict[Version, list[Span]] = defaultdict(list)
    if versions:
        for target_id, version, *span in map(tuple, rows_of(connection, _SPANS, versions=versions)):
            spans[target_id, version].append(Span(*span))
    return spans
