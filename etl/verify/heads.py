"""The ends of the chains, to be kept where nobody who can alter the database can alter them, and compared later."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, Executable, Row, and_, bindparam, func, select, tuple_

from etl.database import reading
from etl.errors import DatabaseError
from etl.model import Span, Target
from etl.schema import change_set, observation, target
from etl.verify.finding import Finding, Told, shown
from etl.verify.rows import BEFORE_ALL

_AT_ONCE: Final = 500
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Time = Annotated[dt.datetime, msgspec.Meta(tz=True)]


class KeptSpan(msgspec.Struct, frozen=True, kw_only=True):
    """A span as it was when the head was taken."""

    first_at: Time
    last_asked_at: Time
    last_at: Time
    observations: int
    longest_gap_seconds: int
    interrupted: bool


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a target's chain: what a line of ``flowtrail verify --head`` holds."""

    org_id: str
    user_id: str
    expression: str
    version: int
    hash: Digest
    state_digest: Digest
    spans: list[KeptSpan]
    """Those of the version, by ``first_at``, which no hash proves yet."""
    open: bool
    """Whether the last of the spans was still open."""
    taken_at: Time

    @property
    def target(self) -> Target:
        return Target(self.org_id, self.user_id, self.expression)


class _Kept(NamedTuple):
    line: int
    head: Head


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
_HEADS: Final = _HEAD.where(target.c.id > bindparam("after")).order_by(target.c.id).limit(_AT_ONCE)
_HEADS_OF: Final = _HEAD.where(target.c.id.in_(bindparam("ids", expanding=True))).order_by(target.c.id)
_VERSIONS_AT_ONCE: Final = 10_000
_VERSIONS: Final = (
    select(target.c.id, target.c.version)
    .where(target.c.version > 0, target.c.id > bindparam("after"))
    .order_by(target.c.id)
    .limit(_VERSIONS_AT_ONCE)
)
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
_TARGETS: Final = select(target.c.id, target.c.org_id, target.c.user_id, target.c.expression).where(
    tuple_(target.c.org_id, target.c.user_id, target.c.expression).in_(bindparam("targets", expanding=True))
)
_CHANGE_SETS: Final = select(
    change_set.c.target_id, change_set.c.version, change_set.c.hash, change_set.c.state_digest
).where(tuple_(change_set.c.target_id, change_set.c.version).in_(bindparam("versions", expanding=True)))

Version = tuple[int, int]
"""A target's id, and one of its versions."""


def heads(engine: Engine, now: dt.datetime) -> Iterator[dict[str, Any]]:
    """The head of every target that was ever observed, ready to be printed as a line of JSON.

    Times are RFC 3339 in UTC; ``taken_at`` is ``now``. Raises DatabaseError where the database cannot be read.
    """
    after = BEFORE_ALL
    while True:
        with reading(engine) as connection:
            found = _rows(connection, _HEADS, after=after)
            spans = _spans(connection, [(row.id, row.version) for row in found])
        for row in found:
            yield _head(row, spans[row.id, row.version], now)
        if len(found) < _AT_ONCE:
            return
        after = found[-1].id


def heads_of(engine: Engine, target_ids: Sequence[int], now: dt.datetime) -> dict[int, dict[str, Any]]:
    """As ``heads``, of some targets, by their ids; those without a version are left out."""
    with reading(engine) as connection:
        found = _rows(connection, _HEADS_OF, ids=list(target_ids))
        spans = _spans(connection, [(row.id, row.version) for row in found])
    return {row.id: _head(row, spans[row.id, row.version], now) for row in found}


def versions(engine: Engine) -> Iterator[tuple[int, int]]:
    """The id and the version of every target that was ever observed, by id, in short transactions."""
    after = BEFORE_ALL
    while True:
        with reading(engine) as connection:
            found = _rows(connection, _VERSIONS, after=after)
        yield from ((row.id, row.version) for row in found)
        if len(found) < _VERSIONS_AT_ONCE:
            return
        after = found[-1].id


def ids_of(engine: Engine, targets: Sequence[Target]) -> dict[Target, int]:
    """The ids of those of ``targets`` that the database has."""
    with reading(engine) as connection:
        return _ids_of(connection, targets)


def against(engine: Engine, lines: Iterable[str | bytes]) -> Iterator[Finding]:
    """Prove that what ``heads`` printed once is still there; yield what is not, and the lines that are no heads.

    A kept version must have its hash, and its spans must be there, the one that was open perhaps longer. Whether the
    hashes are true is for ``verify`` to say. Raises DatabaseError where the database cannot be read.
    """
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    read = 0
    while chunk := list(islice(numbered, _AT_ONCE)):
        read += len(chunk)
        kept: list[_Kept] = []
        for number, line in chunk:
            try:
                kept.append(_Kept(number, msgspec.json.decode(line, type=Head)))
            except (msgspec.MsgspecError, UnicodeError) as error:
                head = "a head as `flowtrail verify --head` prints it"
                yield Finding(what=f"line {number}", expected=head, found=f"not: {shown(Told(error))}")
        with reading(engine) as connection:
            findings = list(_compare_all(connection, kept))
        yield from findings
    if not read:
        yield Finding(what="the file of kept heads", expected="one line a target", found="empty")


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


def _ids_of(connection: Connection, targets: Sequence[Target]) -> dict[Target, int]:
    return {Target(*names): number for number, *names in map(tuple, _rows(connection, _TARGETS, targets=targets))}


def _compare_all(connection: Connection, kept: Sequence[_Kept]) -> Iterator[Finding]:
    targets = sorted({each.head.target for each in kept})
    ids = _ids_of(connection, targets)
    versions = sorted({(ids[head.target], head.version) for _, head in kept if head.target in ids})
    found = {(row.target_id, row.version): row for row in _rows(connection, _CHANGE_SETS, versions=versions)}
    spans = _spans(connection, versions)
    for line, head in kept:
        version = (ids.get(head.target, 0), head.version)
        finding = _compare(head, found.get(version), spans.get(version, ()))
        if finding is not None:
            what, expected, there = finding
            told = f"{expected}, as line {line} keeps it"
            yield Finding(target=head.target, version=head.version, what=what, expected=told, found=there)


def _compare(head: Head, row: Row[Any] | None, spans: Sequence[Span]) -> tuple[str, str, str] | None:
    """What is wrong first: the thing, what was kept of it, what is there."""
    if row is None:
        return "change_set", f"there with hash '{head.hash}'", "missing"
    if (row.hash, row.state_digest) != (head.hash, head.state_digest):
        name = "hash" if row.hash != head.hash else "state_digest"
        return f"change_set.{name}", shown(getattr(head, name)), shown(getattr(row, name))
    for number, kept in enumerate(head.spans):
        there = spans[number] if number < len(spans) else None
        may_have_grown = head.open and number == len(head.spans) - 1
        if there is None or not _goes_on(kept, there, may_have_grown):
            return "observation", f"the span {_told(kept)}", "missing" if there is None else _told(there)
    return None


def _goes_on(kept: KeptSpan, there: Span, may_have_grown: bool) -> bool:
    same = msgspec.structs.astuple(kept) == msgspec.structs.astuple(there)
    grew = (
        (kept.first_at, kept.interrupted) == (there.first_at, there.interrupted)
        and kept.last_at < there.last_asked_at
        and kept.observations < there.observations
        and kept.longest_gap_seconds <= there.longest_gap_seconds
    )
    return same or (may_have_grown and grew)


def _told(span: KeptSpan | Span) -> str:
    return (
        f"from {span.first_at} to {span.last_at}, last asked at {span.last_asked_at}, {span.observations} observations"
        f", longest gap {span.longest_gap_seconds} s, {'' if span.interrupted else 'not '}interrupted"
    )


def _spans(connection: Connection, versions: Sequence[Version]) -> Mapping[Version, Sequence[Span]]:
    spans: defaultdict[Version, list[Span]] = defaultdict(list)
    if versions:
        for target_id, version, *span in map(tuple, _rows(connection, _SPANS, versions=versions)):
            spans[target_id, version].append(Span(*span))
    return spans


def _rows(connection: Connection, statement: Executable, **values: Any) -> Sequence[Row[Any]]:
    try:
        return connection.execute(statement, values).all()
    except ValueError as error:
        raise DatabaseError(f"The database holds what cannot be read ({error}): run `flowtrail verify`.") from error
