"""The seals: each linked to the one before, and each what the tables make of its run.

Two passes, in memory that grows with the targets of a run and not with the trail. The first follows the seals by their
number. The second goes through the runs by theirs, beside everything that names a run: versions, issues, memberships,
holds, pruned issues. Each run is compared as of one moment; the service may go on writing.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, Row, bindparam, func, select, text

from etl.database import reading
from etl.domain import seal
from etl.domain.chain import encode
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import Target
from etl.schema import DIGEST_OF_NONE, UtcTime, org_event, run_seal, sync_run, target, trail, workflow_detail
from etl.verify.finding import Broken, Finding, Verbatim
from etl.verify.rows import any_time

_SEALS_AT_ONCE: Final = 2_000
_RUNS_AT_ONCE: Final = 500
_HIGHEST: Final = 2**63 - 1
_STREAMED: Final = {"stream_results": True, "yield_per": 2_000}


class Sealing(msgspec.Struct):
    """What the passes went through."""

    seals: int = 0
    last: int = 0
    unsealed_runs: int = 0
    """Those that have not ended."""
    unsealed_versions: int = 0


def seals(engine: Engine, *, since: int = 0, went: Sealing | None = None) -> Iterator[Finding]:
    """What is wrong with the seals after number ``since``, and with the runs that they seal. Raises DatabaseError."""
    went = went if went is not None else Sealing()
    yield from _Links(engine, since, went).follow()
    yield from _Runs(engine, since, went).compare()


# ---------------------------------------------------------------------------------------------- from seal to seal

_SEALS: Final = (
    select(run_seal, *(column.label(f"its_{column.name}") for column in sync_run.c))
    .outerjoin(sync_run, sync_run.c.id == run_seal.c.run_id)
    .where(run_seal.c.id > bindparam("after"))
    .order_by(run_seal.c.id)
    .limit(_SEALS_AT_ONCE)
)
_TRAILS: Final = select(trail).order_by(trail.c.id)
_BEFORE: Final = select(run_seal.c.seal, run_seal.c.sealed_at).where(run_seal.c.id == bindparam("id"))
_LONG_AGO: Final = dt.datetime.min.replace(tzinfo=dt.UTC)


class _Links:
    """The way along the seals; it ends with the first one that is missing."""

    def __init__(self, engine: Engine, since: int, went: Sealing) -> None:
        self._engine = engine
        self._went = went
        self._number = since
        self._seal: str | None = None
        self._sealed_at = _LONG_AGO
        self._trails: Sequence[Row[Any]] = ()
        self._trail_id = ""

    def follow(self) -> Iterator[Finding]:
        try:
            yield from self._follow()
        except Broken as broken:
            yield broken.of_run(None)

    def _follow(self) -> Iterator[Finding]:
        more = True
        while more:
            with reading(self._engine) as connection, any_time(connection):
                if not self._trails:
                    self._begin(connection)
                rows = connection.execute(_SEALS, {"after": self._number}).all()
                more = len(rows) == _SEALS_AT_ONCE
                heads = () if more else connection.execute(_TRAILS).all()
            for row in rows:
                yield from self._link(row)
            if heads:
                self._require_head(heads[-1])

    def _begin(self, connection: Connection) -> None:
        self._trails = connection.execute(_TRAILS).all()
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
        self._number, self._went.last = number, number
        self._went.seals += 1
        try:
            self._require(row, place)
        except Broken as broken:
            yield broken.of_run(row.run_id, number)
        self._seal, self._sealed_at = row.seal, max(row.sealed_at, self._sealed_at)

    def _enter(self, number: int) -> None:
        """The trails that begin with this seal, one copied from the other."""
        for each in self._trails:
            if each.first_seal == number:
                self._seal = seal.genesis(each.trail_id, each.created_at, self._seal)
                self._trail_id = each.trail_id

    def _require(self, row: Row[Any], place: str) -> None:
        _require(f"{place}.format", seal.FORMAT, row.format)
        _require(f"{place}.parent", self._seal, row.parent)
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

    def _require_head(self, head: Row[Any]) -> None:
        """The trail knows its last seal, so that a last one that was cut off is missed."""
        if head.first_seal > self._number:
            self._enter(head.first_seal)
        _require("trail.last_seal", self._number, head.last_seal)
        _require("trail.head", self._seal, head.head)
        if head.first_seal <= self._number:
            _require("trail.sealed_at", self._sealed_at, head.sealed_at)


def _require(what: str, expected: Any, found: Any) -> None:
    if expected != found:
        raise Broken(what, expected, found)


# -------------------------------------------------------------------------------------------------- from run to run

_RUNS: Final = (
    select(
        sync_run,
        run_seal.c.id.label("seal_id"),
        *(run_seal.c[f"{name}_digest"].label(f"sealed_{name}") for name in seal.Digests.__struct_fields__),
    )
    .outerjoin(run_seal, run_seal.c.run_id == sync_run.c.id)
    .where(sync_run.c.id > bindparam("after"))
    .order_by(sync_run.c.id)
    .limit(_RUNS_AT_ONCE)
)
_OF_TARGET: Final = "t.org_id, t.user_id, t.expression"
_FROM: Final = "FROM {table} e JOIN target t ON t.id = e.target_id WHERE e.run_id BETWEEN :low AND :high"
_VERSIONS: Final = text(
    f"SELECT e.run_id, e.target_id, {_OF_TARGET}, e.version, e.observed_at, e.hash, e.baseline, e.added, e.removed, "
    f"e.cycle_changed, e.renamed, e.editable_changed {_FROM.format(table='change_set')} "
    f"ORDER BY e.run_id, {_OF_TARGET}, e.version"
).columns(observed_at=UtcTime())
_ISSUES: Final = text(
    f"SELECT e.run_id, e.target_id, {_OF_TARGET}, e.verdict, e.error_code, e.missing "
    f"{_FROM.format(table='sync_issue')} ORDER BY e.run_id, {_OF_TARGET}, e.id"
)
_MEMBERSHIPS: Final = text(
    f"SELECT e.run_id, {_OF_TARGET}, e.run_id, e.schedule, e.kind, e.at "
    f"{_FROM.format(table='target_membership')} ORDER BY e.run_id, e.id"
).columns(at=UtcTime())
_HOLDS: Final = text(
    f"SELECT e.run_id, {_OF_TARGET}, e.run_id, e.kind, e.at, e.flow_ids, e.data_hash "
    f"{_FROM.format(table='hold_event')} ORDER BY e.run_id, e.id"
).columns(at=UtcTime())
_PRUNED: Final = text(
    "SELECT e.run_id, e.run_id, e.pruned_run_id, e.at FROM pruned_issues e "
    "WHERE e.run_id BETWEEN :low AND :high ORDER BY e.run_id, e.id"
).columns(at=UtcTime())
_WERE_PRUNED: Final = text(
    "SELECT DISTINCT pruned_run_id FROM pruned_issues WHERE pruned_run_id BETWEEN :low AND :high"
)
_OF_ORGANISATION: Final = (
    select(org_event.c.run_id.label("of_run"), *(org_event.c[name] for name in seal.OrganisationEvent._fields))
    .where(org_event.c.run_id.between(bindparam("low"), bindparam("high")))
    .order_by(org_event.c.run_id, org_event.c.event_id)
)
_DETAILS: Final = (
    select(workflow_detail.c.run_id.label("of_run"), *(workflow_detail.c[name] for name in seal.DetailEvent._fields))
    .where(workflow_detail.c.run_id.between(bindparam("low"), bindparam("high")))
    .order_by(workflow_detail.c.run_id, workflow_detail.c.id)
)
_EVENTS: Final = (_MEMBERSHIPS, _HOLDS, _DETAILS, _OF_ORGANISATION, _PRUNED)
"""In the order of the rules."""
_FLOW_IDS: Final = 6
"""Which of the columns of a hold is an array, not text."""


class Asked(NamedTuple):
    """The targets that a run was to ask."""

    digest: str
    target_ids: frozenset[int]


class _Runs:
    """The way through all runs, beside what names them."""

    def __init__(self, engine: Engine, since: int, went: Sealing) -> None:
        self._engine = engine
        self._since = since
        self._went = went
        self._scopes: dict[bytes, tuple[int, Asked]] = {}

    def compare(self) -> Iterator[Finding]:
        after, more = -_HIGHEST, True
        while more:
            with reading(self._engine) as connection, any_time(connection), ExitStack() as opened:
                runs = connection.execute(_RUNS, {"after": after}).all()
                more = len(runs) == _RUNS_AT_ONCE
                high = runs[-1].id if more else _HIGHEST
                yield from self._compare_some(connection, opened, runs, after + 1, high)
            after = high

    def _compare_some(
        self, connection: Connection, opened: ExitStack, runs: Sequence[Row[Any]], low: int, high: int
    ) -> Iterator[Finding]:
        span = {"low": low, "high": high}

        def by_run(query: Any) -> _ByRun:
            found = connection.execute(query, span, execution_options=_STREAMED)
            opened.callback(found.close)
            return _ByRun(found)

        pruned = set(connection.execute(_WERE_PRUNED, span).scalars())
        versions, issues = by_run(_VERSIONS), by_run(_ISSUES)
        events = [by_run(query) for query in _EVENTS]
        for run in runs:
            strange = [each for each in (versions, issues, *events) if each.passed_over(run.id)]
            yield from (each.finding() for each in strange)
            found = _Found(run, versions.take(run.id), issues.take(run.id), [each.take(run.id) for each in events])
            if run.seal_id is None or run.seal_id > self._since:
                yield from self._compare_run(connection, found, was_pruned=run.id in pruned)
        for each in (versions, issues, *events):
            if each.passed_over(_HIGHEST):
                yield each.finding()

    def _compare_run(self, connection: Connection, found: _Found, *, was_pruned: bool) -> Iterator[Finding]:
        run = found.run
        try:
            if run.status == "running":
                self._require_unsealed(found)
            else:
                self._require_sealed(found, self._asked(connection, run), was_pruned=was_pruned)
        except Broken as broken:
            yield broken.of_run(run.id, run.seal_id)
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            yield Broken("sync_run", Verbatim("readable"), Verbatim(f"not: {error}")).of_run(run.id, run.seal_id)

    def _require_unsealed(self, found: _Found) -> None:
        self._went.unsealed_runs += 1
        self._went.unsealed_versions += sum(1 for _ in found.versions)
        for name in ("finished_at", "seal_id"):
            if getattr(found.run, name) is not None:
                place = "run_seal" if name == "seal_id" else f"sync_run.{name}"
                raise Broken(place, Verbatim("null, since the run has not ended"), getattr(found.run, name))

    def _require_sealed(self, found: _Found, asked: Asked, *, was_pruned: bool) -> None:
        run = found.run
        if run.seal_id is None:
            raise Broken("run_seal", Verbatim("a seal, since the run has ended"), Verbatim("missing"))
        if run.closed_at is None:
            raise Broken("sync_run.closed_at", Verbatim("a time, since the run has ended"), None)
        _require("sync_run.targets_digest", asked.digest, run.targets_digest)
        _require("run_seal.targets_digest", asked.digest, run.sealed_targets)
        sums = _Sums(run, asked)
        issues = seal.digest_of(map(sums.issue, found.issues))
        versions = seal.digest_of(map(sums.version, found.versions))
        sums.require(was_pruned=was_pruned)
        _require("run_seal.change_sets_digest", versions, run.sealed_change_sets)
        if not was_pruned:
            _require("run_seal.issues_digest", issues, run.sealed_issues)
        events = seal.digest_of_lists(map(_event, rows) for rows in found.events)
        _require("run_seal.events_digest", events, run.sealed_events)

    def _asked(self, connection: Connection, run: Row[Any]) -> Asked:
        """What the scope of a run names, by the memberships that it saw."""
        scope = json.loads(run.scope)
        seen = scope.pop("membership_id")
        if scope.keys() == {"targets"}:
            return _by_name(connection, [Target(*each) for each in scope["targets"]])
        key = encode(scope)
        known = self._scopes.get(key)
        if known is None or known[0] != seen:
            known = self._scopes[key] = (seen, _by_membership(connection, scope, seen))
        return known[1]


class _Found(NamedTuple):
    """A run, and the rows that name it."""

    run: Row[Any]
    versions: Iterable[Row[Any]]
    issues: Iterable[Row[Any]]
    events: Sequence[Iterable[Row[Any]]]


class _ByRun:
    """Rows in the order of the runs that they name, which is their first column."""

    def __init__(self, rows: Iterable[Row[Any]]) -> None:
        self._groups = groupby(rows, itemgetter(0))
        self._passed: int | None = None
        self._advance()

    def take(self, run_id: int) -> Iterator[Row[Any]]:
        """The rows of a run, to be read before those of the next one are taken."""
        if self._run_id != run_id:
            return iter(())
        self._is_taken = True
        return self._rows

    def passed_over(self, run_id: int) -> bool:
        """Whether there are rows of a run that is not there, before this one; ``finding`` tells of the last."""
        self._passed = None
        while self._run_id is not None and self._run_id < run_id:
            if not self._is_taken:
                self._passed = self._run_id
            self._advance()
        return self._passed is not None

    def finding(self) -> Finding:
        nothing = f"without rows of run {self._passed}, which does not exist"
        return Finding(run_id=self._passed, what="run_id", expected=nothing, found="with some")

    def _advance(self) -> None:
        self._is_taken = False
        self._run_id: int | None
        self._rows: Iterator[Row[Any]]
        self._run_id, self._rows = next(self._groups, (None, iter(())))


class _Sums:
    """What the rows of a run add up to, one row after the other; each is where it must be, and gives its bytes."""

    def __init__(self, run: Row[Any], asked: Asked) -> None:
        self._run = run
        self._asked = asked
        self._with_issue = set[int]()
        self._counts: Counter[str] = Counter()

    def issue(self, row: Row[Any]) -> bytes:
        """Those of a run come before its versions."""
        self._require_asked("sync_issue", row, None)
        self._with_issue.add(row.target_id)
        self._counts[row.verdict] += 1
        return encode(list(row)[2:])

    def version(self, row: Row[Any]) -> bytes:
        run = self._run
        if not run.started_at <= row.observed_at <= run.finished_at:
            within = Verbatim(f"in the time of its run, {run.started_at} to {run.finished_at}")
            raise Broken("change_set.observed_at", within, row.observed_at, row.version, _target(row))
        self._require_asked("change_set", row, row.version)
        self._counts["changed"] += row.target_id not in self._with_issue
        for kind in CHANGE_KINDS:
            self._counts[kind] += getattr(row, kind)
        return encode(row.hash)

    def require(self, *, was_pruned: bool) -> None:
        """The sums of the run are those; what was unchanged left no row, and is the rest."""
        run = self._run
        if was_pruned:
            _require("sync_issue", 0, len(self._with_issue))
        by_issues = () if was_pruned else ("changed", "held", "failed", "stale")
        for name in (*by_issues, *CHANGE_KINDS):
            _require(f"sync_run.{name}", self._counts[name], getattr(run, name))
        others = run.changed + run.held + run.failed + run.stale
        _require("sync_run.unchanged", 0 if run.status == "aborted" else run.targets - others, run.unchanged)
        if run.status != "aborted":
            trouble = run.failed + run.held
            status = "succeeded" if not trouble else "failed" if run.failed == run.targets else "partial"
            _require("sync_run.status", status, run.status)

    def _require_asked(self, table: str, row: Row[Any], version: int | None) -> None:
        if row.target_id not in self._asked.target_ids:
            none = Verbatim("a run that was to ask this target")
            raise Broken(f"{table}.run_id", none, self._run.id, version, _target(row))


def _target(row: Row[Any]) -> Target:
    return Target(row.org_id, row.user_id, row.expression)


_KEYS: Final = (target.c.org_id, target.c.user_id, target.c.expression)
_TARGETS_OF: Final = """
    SELECT DISTINCT t.id, t.org_id, t.user_id, t.expression
    FROM target_membership m JOIN target t ON t.id = m.target_id
    WHERE m.schedule IN :schedules AND m.kind = 'joined' AND m.id <= :seen
      AND m.id = (SELECT max(l.id) FROM target_membership l
                  WHERE l.schedule = m.schedule AND l.target_id = m.target_id AND l.id <= :seen)
      {only}
    ORDER BY t.org_id, t.user_id, t.expression
"""


def _by_membership(connection: Connection, scope: Mapping[str, Any], seen: int) -> Asked:
    schedules, given = scope["schedules"], {"seen": seen}
    if not schedules:
        return Asked(DIGEST_OF_NONE, frozenset())
    only = ""
    for name in ("org_id", "user_id"):
        if scope[name] is not None:
            only, given[name] = f"{only} AND t.{name} = :{name}", scope[name]
    query = text(_TARGETS_OF.format(only=only)).bindparams(bindparam("schedules", expanding=True))
    with connection.execute(query, {**given, "schedules": schedules}, execution_options=_STREAMED) as rows:
        return _asked(rows)


def _by_name(connection: Connection, targets: Sequence[Target]) -> Asked:
    ids = set[int]()
    for each in targets:
        mine = zip(_KEYS, each, strict=True)
        ids |= set(
            connection.execute(select(target.c.id).where(*(column == value for column, value in mine))).scalars()
        )
    return Asked(seal.targets_digest(targets), frozenset(ids))


def _asked(rows: Iterable[Row[Any]]) -> Asked:
    ids = list[int]()

    def keys() -> Iterator[bytes]:
        for row in rows:
            ids.append(row[0])
            yield encode(list(row[1:]))

    digest = seal.digest_of(keys())
    return Asked(digest, frozenset(ids))


def _event(row: Row[Any]) -> bytes:
    values: list[Any] = list(row[1:])
    if "flow_ids" in row._mapping:
        values[_FLOW_IDS] = json.loads(row.flow_ids)
    return seal.encoded_event(values)


def last_seal(engine: Engine) -> int:
    """The number of the latest seal; 0 where there is none."""
    with reading(engine) as connection:
        latest: int = connection.execute(select(func.coalesce(func.max(run_seal.c.id), 0))).scalar_one()
    return latest
