"""Compares heads that were kept elsewhere, and seals, with the trail: all is still there, nothing was inserted before.

| against a head of version N, taken at T | |
|---|---|
| version N has another hash, or is missing | replaced, or cut off |
| a span of version N is not as it was, or was open and has not grown as spans do | altered |
| version N+1, a new span of N, or the new end of its open span is dated T or before | inserted: at T it was not there |
| the version after the last one that the file names (of a target that it does not name: the first) is dated before the
  last T of the whole file | inserted, or invented: at T it would have been named |

What is dated before T may have been observed and not committed yet. So the last two cases require that no run was under
way from that date to T.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, Row, bindparam, or_, select, tuple_

from etl.database import reading
from etl.domain import seal
from etl.domain.model import Span, Target
from etl.errors import DatabaseError
from etl.schema import TARGET_KEY, UnreadableTime, change_set, run_seal, sync_run, target, trail
from etl.verify.finding import Finding, Verbatim, shown
from etl.verify.heads import Digest, Head, KeptSpan, Time, ids_in, spans_of
from etl.verify.rows import pages, rows_of

_AT_ONCE: Final = 500
_TARGETS_AT_ONCE: Final = 5_000
_SEALS_AT_ONCE: Final = 1_000
_NEVER: Final = dt.datetime.min.replace(tzinfo=dt.UTC)


class KeptSeal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line that keeps a seal."""

    trail_id: str
    id: int
    seal: Digest
    sealed_at: Time


class _Kept(NamedTuple):
    line: int
    head: Head


class _Difference(NamedTuple):
    """What is wrong with a head: the version, the object, what was kept, and what is there."""

    version: int
    what: str
    expected: str
    found: str


_CHANGE_SETS: Final = select(
    change_set.c.target_id,
    change_set.c.version,
    change_set.c.hash,
    change_set.c.state_digest,
    change_set.c.observed_at,
).where(tuple_(change_set.c.target_id, change_set.c.version).in_(bindparam("versions", expanding=True)))
_DATED_BEFORE: Final = (
    select(change_set.c.version, change_set.c.observed_at)
    .where(change_set.c.target_id == bindparam("target_id"), change_set.c.version > bindparam("version"))
    .where(change_set.c.observed_at <= bindparam("taken_at"))
    .order_by(change_set.c.version)
)
_UNDER_WAY: Final = (
    select(sync_run.c.id)
    .where(sync_run.c.started_at <= bindparam("claimed_at"))
    .where(or_(sync_run.c.finished_at.is_(None), sync_run.c.finished_at >= bindparam("taken_at")))
    .limit(1)
)
_TARGETS: Final = select(target.c.id, *TARGET_KEY, target.c.version).where(target.c.version > 0)
_SEALS: Final = select(run_seal.c.id, run_seal.c.seal, run_seal.c.sealed_at)
_THESE: Final = _SEALS.where(run_seal.c.id.in_(bindparam("ids", expanding=True)))
_TRAILS: Final = select(trail.c.trail_id, trail.c.first_seal).order_by(trail.c.id)


def against(
    engine: Engine, lines: Iterable[str | bytes], *, is_whole: Callable[[], bool] = lambda: True
) -> Iterator[Finding]:
    """Prove that what ``heads`` once printed is still there, and that nothing was inserted before it since; yield what
    is wrong, and lines that are not heads.

    ``is_whole`` is called at the end: if the end of the file is missing, it is unknown which targets it lacks.
    ``verify`` checks the hashes. Raises DatabaseError if the database cannot be read.
    """
    try:
        yield from _against(engine, lines, is_whole)
    except DatabaseError as error:
        if not isinstance(error.__cause__, UnreadableTime):
            raise
        yield Finding(what="what is compared with the kept heads", expected="readable", found=f"not: {error.__cause__}")


def _against(engine: Engine, lines: Iterable[str | bytes], is_whole: Callable[[], bool]) -> Iterator[Finding]:
    comparison = _Comparison(engine)
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    while chunk := list(islice(numbered, _AT_ONCE)):
        yield from comparison.take(chunk)
    if not comparison.lines:
        yield Finding(what="the file of kept heads", expected="one line a target", found="empty")
    elif is_whole():
        yield from comparison.unnamed()


class _Comparison:
    """One pass over a file of heads; memory holds two numbers for each target that it names."""

    def __init__(self, engine: Engine) -> None:
        self.lines = 0
        self._engine = engine
        self._named: dict[int, int] = {}
        """The last version of each target, by its id."""
        self._doubted: set[int] = set()
        """Targets with a finding."""
        self._taken_at = _NEVER
        """The latest time at which a head was taken."""

    def take(self, chunk: Sequence[tuple[int, str | bytes]]) -> Iterator[Finding]:
        """What is wrong with these lines, or with what they name."""
        self.lines += len(chunk)
        kept: list[_Kept] = []
        seals: list[tuple[int, KeptSeal]] = []
        for number, line in chunk:
            try:
                found = _decoded(line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass"))
                if isinstance(found, KeptSeal):
                    seals.append((number, found))
                else:
                    kept.append(_Kept(number, found))
            except (msgspec.MsgspecError, UnicodeError) as error:
                head = "a head as `flowtrail verify --head` prints it"
                yield Finding(what=f"line {number}", expected=head, found=f"not: {shown(Verbatim(error))}")
        latest = max((each.head.taken_at for each in kept), default=_NEVER)
        self._taken_at = max(self._taken_at, latest)
        with reading(self._engine) as connection:
            findings = [*self._compare_all(connection, kept), *altered_seals(connection, seals)]
        yield from findings

    def unnamed(self) -> Iterator[Finding]:
        """The first version of each target that the file would name if it had been there at its last time."""
        expected = f"after {self._taken_at}, since nothing that was kept until then names the version"
        for row, version, observed_at in pages(
            self._engine, _TARGETS, target.c.id, self._early, at_once=_TARGETS_AT_ONCE
        ):
            named = Target(row.org_id, row.user_id, row.expression)
            what, there = "change_set.observed_at", shown(observed_at)
            yield Finding(target=named, version=version, what=what, expected=expected, found=there)

    def _early(
        self, connection: Connection, targets: Sequence[Row[Any]]
    ) -> Iterator[tuple[Row[Any], int, dt.datetime]]:
        following = {row.id: self._named.get(row.id, 0) + 1 for row in targets}
        wanted = [(row.id, following[row.id]) for row in targets if row.version >= following[row.id]]
        dated = {row.target_id: row.observed_at for row in rows_of(connection, _CHANGE_SETS, versions=wanted)}
        for row in targets:
            if row.id in dated and row.id not in self._doubted and _is_early(connection, dated[row.id], self._taken_at):
                yield row, following[row.id], dated[row.id]

    def _compare_all(self, connection: Connection, kept: Sequence[_Kept]) -> Iterator[Finding]:
        ids = ids_in(connection, sorted({each.head.target for each in kept}))
        for _, head in kept:
            if head.target in ids:
                number = ids[head.target]
                self._named[number] = max(head.version, self._named.get(number, 0))
        versions = sorted({(ids[head.target], head.version) for _, head in kept if head.target in ids})
        wanted = sorted({(number, each) for number, version in versions for each in (version, version + 1)})
        rows = {(row.target_id, row.version): row for row in rows_of(connection, _CHANGE_SETS, versions=wanted)}
        spans = spans_of(connection, versions)
        for line, head in kept:
            number = ids.get(head.target, 0)
            there = spans.get((number, head.version), ())
            wrong = _altered(head, rows.get((number, head.version)), there)
            if wrong is None:
                follower = rows.get((number, head.version + 1))
                wrong = _inserted(connection, head, there) or _inserted_version(connection, head, follower)
            if wrong is not None:
                self._doubted.add(number)
                version, what, expected, found = wrong
                told = f"{expected}, as line {line} keeps it"
                yield Finding(target=head.target, version=version, what=what, expected=told, found=found)


def _decoded(line: bytes) -> KeptSeal | Head:
    """A name in a head may contain `trail_id`, too. Raises MsgspecError or UnicodeError if it is neither."""
    if b"trail_id" in line:
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.json.decode(line, type=KeptSeal)
    return msgspec.json.decode(line, type=Head)


def _altered(head: Head, row: Row[Any] | None, spans: Sequence[Span]) -> _Difference | None:
    """How the version, or a span of it, differs from what was kept."""
    if row is None:
        return _Difference(head.version, "change_set", f"there with hash '{head.hash}'", "missing")
    if (row.hash, row.state_digest) != (head.hash, head.state_digest):
        name = "hash" if row.hash != head.hash else "state_digest"
        return _Difference(head.version, f"change_set.{name}", shown(getattr(head, name)), shown(getattr(row, name)))
    for number, kept in enumerate(head.spans):
        there = spans[number] if number < len(spans) else None
        may_have_grown = head.open and number == len(head.spans) - 1
        if there is None or not _is_continued(kept, there, may_have_grown):
            found = "missing" if there is None else _described(there)
            return _Difference(head.version, "observation", f"the span {_described(kept)}", found)
    return None


def _inserted(connection: Connection, head: Head, spans: Sequence[Span]) -> _Difference | None:
    """Whether something new in the version's spans is dated before the head was taken."""
    for number, span in enumerate(spans[: len(head.spans) + 1]):
        is_new = number == len(head.spans)
        if not is_new and span.observations == head.spans[number].observations:
            continue
        if _is_early(connection, span.first_at if is_new else span.last_at, head.taken_at):
            expected = f"without observations until {head.taken_at} that were not there then"
            return _Difference(head.version, "observation", expected, f"the span {_described(span)}")
    return None


def _inserted_version(connection: Connection, head: Head, follower: Row[Any] | None) -> _Difference | None:
    """Whether the next version is dated before the head was taken; if it is not, no later one can be."""
    if follower is None or follower.observed_at > head.taken_at:
        return None
    place = {"target_id": follower.target_id, "version": head.version, "taken_at": head.taken_at}
    for row in rows_of(connection, _DATED_BEFORE, **place):
        if _is_early(connection, row.observed_at, head.taken_at):
            expected = f"after {head.taken_at}, when version {head.version} was the last one"
            return _Difference(row.version, "change_set.observed_at", expected, shown(row.observed_at))
    return None


def _is_early(connection: Connection, at: dt.datetime, taken_at: dt.datetime) -> bool:
    """Whether what is dated ``at`` should have been there at ``taken_at``, unless a run was under way in between."""
    if at > taken_at:
        return False
    return not rows_of(connection, _UNDER_WAY, claimed_at=at, taken_at=taken_at)


def _is_continued(kept: KeptSpan, there: Span, may_have_grown: bool) -> bool:
    same = msgspec.structs.astuple(kept) == msgspec.structs.astuple(there)
    grew = (
        (kept.first_at, kept.interrupted) == (there.first_at, there.interrupted)
        and kept.last_at < there.last_asked_at
        and kept.observations < there.observations
        and kept.longest_gap_seconds <= there.longest_gap_seconds
    )
    return same or (may_have_grown and grew)


def _described(span: KeptSpan | Span) -> str:
    return (
        f"from {span.first_at} to {span.last_at}, last asked at {span.last_asked_at}, {span.observations} observations"
        f", longest gap {span.longest_gap_seconds} s, {'' if span.interrupted else 'not '}interrupted"
    )


# ------------------------------------------------------------------------------------------ seals


def seal_lines(engine: Engine, *, after: int = 0) -> Iterator[dict[str, Any]]:
    """Each seal after number ``after`` as a line to keep, by number. Raises DatabaseError."""

    def lines(connection: Connection, rows: Sequence[Row[Any]]) -> Iterator[dict[str, Any]]:
        trails = _trails(connection)
        return (seal.kept_line(_trail_of(trails, row.id), row.id, row.seal, row.sealed_at) for row in rows)

    return pages(engine, _SEALS, run_seal.c.id, lines, at_once=_SEALS_AT_ONCE, after=after)


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
