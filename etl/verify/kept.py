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

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, Row, bindparam, or_, select, tuple_

from etl.database import reading
from etl.domain.model import Span, Target
from etl.errors import DatabaseError
from etl.schema import TARGET_KEY, UnreadableTime, change_set, run_seal, sync_run, target
from etl.verify.finding import Broken, Finding, Verbatim, require, shown
from etl.verify.heads import KEPT_SEALS, Head, KeptSeal, decoded, ids_of, spans_of
from etl.verify.rows import pages, rows_of

_AT_ONCE: Final = 500
_TARGETS_AT_ONCE: Final = 5_000
_NEVER: Final = dt.datetime.min.replace(tzinfo=dt.UTC)
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
_SEALS: Final = KEPT_SEALS.where(run_seal.c.id.in_(bindparam("ids", expanding=True)))


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
        heads: list[tuple[int, Head]] = []
        seals: list[tuple[int, KeptSeal]] = []
        for number, line in chunk:
            try:
                found = decoded(line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass"))
            except (msgspec.MsgspecError, UnicodeError) as error:
                head = "a head as `flowtrail verify --head` prints it"
                yield Finding(what=f"line {number}", expected=head, found=f"not: {shown(Verbatim(error))}")
            else:
                heads += [(number, found)] if isinstance(found, Head) else []
                seals += [(number, found)] if isinstance(found, KeptSeal) else []
        self._taken_at = max([self._taken_at, *(head.taken_at for _, head in heads)])
        with reading(self._engine) as connection:
            findings = [*self._compare_all(connection, heads), *_altered_seals(connection, seals)]
        yield from findings

    def unnamed(self) -> Iterator[Finding]:
        """The first version of each target that the file would name if it had been there at its last time."""
        return pages(self._engine, _TARGETS, target.c.id, self._early, at_once=_TARGETS_AT_ONCE)

    def _early(self, connection: Connection, targets: Sequence[Row[Any]]) -> Iterator[Finding]:
        expected = f"after {self._taken_at}, since nothing that was kept until then names the version"
        following = {row.id: self._named.get(row.id, 0) + 1 for row in targets}
        wanted = [(row.id, following[row.id]) for row in targets if row.version >= following[row.id]]
        dated = {row.target_id: row.observed_at for row in rows_of(connection, _CHANGE_SETS, versions=wanted)}
        for row in targets:
            if row.id in dated and row.id not in self._doubted and _is_early(connection, dated[row.id], self._taken_at):
                broken = Broken("change_set.observed_at", Verbatim(expected), dated[row.id], following[row.id])
                yield broken.of(Target(row.org_id, row.user_id, row.expression))

    def _compare_all(self, connection: Connection, heads: Sequence[tuple[int, Head]]) -> Iterator[Finding]:
        ids = ids_of(connection, sorted({head.target for _, head in heads}))
        versions = sorted({(ids[head.target], head.version) for _, head in heads if head.target in ids})
        for number, version in versions:
            self._named[number] = max(version, self._named.get(number, 0))
        wanted = sorted({(number, each) for number, version in versions for each in (version, version + 1)})
        rows = {(row.target_id, row.version): row for row in rows_of(connection, _CHANGE_SETS, versions=wanted)}
        spans = spans_of(connection, versions)
        for line, head in heads:
            number = ids.get(head.target, 0)
            there = spans.get((number, head.version), ())
            try:
                _require_unaltered(head, rows.get((number, head.version)), there)
                _require_no_new_span(connection, head, there)
                _require_no_new_version(connection, head, rows.get((number, head.version + 1)))
            except Broken as broken:
                self._doubted.add(number)
                wrong = broken.of(head.target)
                yield msgspec.structs.replace(wrong, expected=f"{wrong.expected}, as line {line} keeps it")


def _require_unaltered(head: Head, row: Row[Any] | None, spans: Sequence[Span]) -> None:
    """Raise Broken if the version, or a span of it, differs from what was kept."""
    if row is None:
        raise Broken("change_set", Verbatim(f"there with hash '{head.hash}'"), Verbatim("missing"), head.version)
    require("change_set.hash", head.hash, row.hash, head.version)
    require("change_set.state_digest", head.state_digest, row.state_digest, head.version)
    for number, kept in enumerate(head.spans):
        there = spans[number] if number < len(spans) else None
        may_have_grown = head.open and number == len(head.spans) - 1
        if there is None or not _is_continued(kept, there, may_have_grown):
            found = Verbatim("missing" if there is None else _described(there))
            raise Broken("observation", Verbatim(f"the span {_described(kept)}"), found, head.version)


def _require_no_new_span(connection: Connection, head: Head, spans: Sequence[Span]) -> None:
    """Raise Broken if something new in the version's spans is dated before the head was taken."""
    for number, span in enumerate(spans[: len(head.spans) + 1]):
        is_new = number == len(head.spans)
        if not is_new and span.observations == head.spans[number].observations:
            continue
        if _is_early(connection, span.first_at if is_new else span.last_at, head.taken_at):
            expected = Verbatim(f"without observations until {head.taken_at} that were not there then")
            raise Broken("observation", expected, Verbatim(f"the span {_described(span)}"), head.version)


def _require_no_new_version(connection: Connection, head: Head, follower: Row[Any] | None) -> None:
    """Raise Broken if the next version is dated before the head was taken; if it is not, no later one can be."""
    if follower is None or follower.observed_at > head.taken_at:
        return
    place = {"target_id": follower.target_id, "version": head.version, "taken_at": head.taken_at}
    for row in rows_of(connection, _DATED_BEFORE, **place):
        if _is_early(connection, row.observed_at, head.taken_at):
            expected = Verbatim(f"after {head.taken_at}, when version {head.version} was the last one")
            raise Broken("change_set.observed_at", expected, row.observed_at, row.version)


def _is_early(connection: Connection, at: dt.datetime, taken_at: dt.datetime) -> bool:
    """Whether what is dated ``at`` should have been there at ``taken_at``, unless a run was under way in between."""
    return at <= taken_at and not rows_of(connection, _UNDER_WAY, claimed_at=at, taken_at=taken_at)


def _is_continued(kept: Span, there: Span, may_have_grown: bool) -> bool:
    grew = (
        (kept.first_at, kept.interrupted) == (there.first_at, there.interrupted)
        and kept.last_at < there.last_asked_at
        and kept.observations < there.observations
        and kept.longest_gap_seconds <= there.longest_gap_seconds
    )
    return kept == there or (may_have_grown and grew)


def _described(span: Span) -> str:
    return (
        f"from {span.first_at} to {span.last_at}, last asked at {span.last_asked_at}, {span.observations} observations"
        f", longest gap {span.longest_gap_seconds} s, {'' if span.interrupted else 'not '}interrupted"
    )


def _altered_seals(connection: Connection, kept: Sequence[tuple[int, KeptSeal]]) -> Iterator[Finding]:
    """Differences from the kept seals, which are given with their line numbers."""
    found = {row.id: row for row in connection.execute(_SEALS, {"ids": sorted({each.id for _, each in kept})})}
    for line, each in kept:
        there = found.get(each.id)
        for name in ("seal", "trail_id", "sealed_at"):
            if there is None or getattr(there, name) != getattr(each, name):
                expected = f"{shown(getattr(each, name))}, as line {line} keeps it"
                what = "missing" if there is None else shown(getattr(there, name))
                problem = f"{what}: altered, or restored from before seal {each.id}"
                yield Finding(seal_id=each.id, what=f"run_seal {each.id}.{name}", expected=expected, found=problem)
                break
