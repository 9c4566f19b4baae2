"""Goes through all runs together with everything that names one: versions, issues, memberships, holds, pruned
issues."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    Row,
    Select,
    Table,
    bindparam,
    select,
    type_coerce,
)

from etl.database import STREAMED
from etl.domain import seal
from etl.domain.chain import encode
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import Target
from etl.report.runs import Scopes, ScopeTargets
from etl.schema import (
    TARGET_KEY,
    change_set,
    hold_event,
    org_event,
    pruned_issues,
    run_seal,
    sync_issue,
    sync_run,
    target,
    target_membership,
    workflow_detail,
)
from etl.verify.finding import Broken, Finding, Verbatim, require
from etl.verify.rows import BEFORE_ALL, pages

_RUNS_AT_ONCE: Final = 500
_HIGHEST: Final = 2**63 - 1
_RUNS: Final = select(
    sync_run,
    run_seal.c.id.label("seal_id"),
    *(run_seal.c[f"{name}_digest"].label(f"sealed_{name}") for name in seal.Digests.__struct_fields__),
).outerjoin(run_seal, run_seal.c.run_id == sync_run.c.id)


def _as_stored(column: Column[Any]) -> ColumnElement[Any]:
    """SQLite stores a boolean as a number, which may be another one than 0 and 1."""
    return type_coerce(column, Integer).label(column.name) if isinstance(column.type, Boolean) else column


def _by_run(table: Table, *columns: Any, order: Sequence[Column[Any]], of_target: bool = True) -> Select[Any]:
    """Rows that name the runs from ``low`` to ``high``, in the order of the runs, which are in the first column."""
    query = select(table.c.run_id.label("of_run"), *columns).where(
        table.c.run_id.between(bindparam("low"), bindparam("high"))
    )
    joined = query.join_from(table, target, target.c.id == table.c.target_id) if of_target else query
    return joined.order_by(table.c.run_id, *order)


def _columns(table: Table, names: Iterable[str]) -> list[ColumnElement[Any]]:
    return [_as_stored(table.c[name]) for name in names]


_VERSIONS: Final = _by_run(
    change_set,
    *(change_set.c.target_id, *TARGET_KEY),
    *_columns(change_set, ("version", "observed_at", "hash", *CHANGE_KINDS)),
    order=(*TARGET_KEY, change_set.c.version),
)
_ISSUES: Final = _by_run(
    sync_issue,
    *(sync_issue.c.target_id, *TARGET_KEY),
    *_columns(sync_issue, ("verdict", "error_code", "missing")),
    order=(*TARGET_KEY, sync_issue.c.id),
)
_MEMBERSHIPS: Final = _by_run(
    target_membership,
    *(*TARGET_KEY, *_columns(target_membership, ("run_id", "schedule", "kind", "at", "coverage_gap_seconds"))),
    order=[target_membership.c.id],
)
_HOLDS: Final = _by_run(
    hold_event,
    *(*TARGET_KEY, *_columns(hold_event, ("run_id", "kind", "at", "flow_ids", "doubted", "data_hash"))),
    order=[hold_event.c.id],
)
_PRUNED: Final = _by_run(
    pruned_issues,
    *_columns(pruned_issues, ("run_id", "pruned_run_id", "at")),
    order=[pruned_issues.c.id],
    of_target=False,
)
_OF_ORGANISATION: Final = _by_run(
    org_event, *_columns(org_event, seal.OrganisationEvent._fields), order=[org_event.c.event_id], of_target=False
)
_DETAILS: Final = _by_run(
    workflow_detail, *_columns(workflow_detail, seal.DetailEvent._fields), order=[workflow_detail.c.id], of_target=False
)
_WERE_PRUNED: Final = (
    select(pruned_issues.c.pruned_run_id)
    .distinct()
    .where(pruned_issues.c.pruned_run_id.between(bindparam("low"), bindparam("high")))
)
_EVENTS: Final = (_MEMBERSHIPS, _HOLDS, _DETAILS, _OF_ORGANISATION, _PRUNED)
"""In the order of the rules."""
_SCOPES: Final = (("targets", "membership_id"), ("schedules", "org_id", "user_id", "membership_id"))
"""The keys of a scope, in order."""
_FLAGS: Final = {
    "old_editable": "org_event",
    "new_editable": "org_event",
    "proven_for_all": "org_event",
    "locked": "workflow_detail",
}
"""The columns of events that are true or false."""
_ARRAYS: Final = ("flow_ids", "doubted")
"""The columns of a hold that are arrays instead of text."""


class Sealing(msgspec.Struct):
    """What the passes have read."""

    seals: int = 0
    last: int = 0
    signed: int = 0
    stamped: int = 0
    last_stamp: tuple[int, dt.datetime] | None = None
    """The latest seal that was stamped, and when, by its authority's clock."""
    unsealed_runs: int = 0
    """Runs that have not ended."""
    unsealed_versions: int = 0


class Runs:
    """Goes through all runs together with what names them."""

    def __init__(self, engine: Engine, since: int, sealing: Sealing) -> None:
        self._engine = engine
        self._since = since
        self._sealing = sealing
        self._scopes = Scopes()

    def compare(self) -> Iterator[Finding]:
        low = BEFORE_ALL

        def compare(connection: Connection, runs: Sequence[Row[Any]]) -> Iterator[Finding]:
            nonlocal low
            high = runs[-1].id if len(runs) == _RUNS_AT_ONCE else _HIGHEST
            with ExitStack() as opened:
                yield from self._compare_some(connection, opened, runs, low, high)
            low = high + 1

        return pages(self._engine, _RUNS, sync_run.c.id, compare, at_once=_RUNS_AT_ONCE, tolerant=True)

    def _compare_some(
        self, connection: Connection, opened: ExitStack, runs: Sequence[Row[Any]], low: int, high: int
    ) -> Iterator[Finding]:
        span = {"low": low, "high": high}

        def by_run(query: Any) -> _ByRun:
            found = connection.execute(query, span, execution_options=STREAMED)
            opened.callback(found.close)
            return _ByRun(found)

        pruned = set(connection.execute(_WERE_PRUNED, span).scalars())
        versions, issues = by_run(_VERSIONS), by_run(_ISSUES)
        events = [by_run(query) for query in _EVENTS]
        for run in runs:
            orphaned = [each for each in (versions, issues, *events) if each.passed_over(run.id)]
            yield from (each.finding() for each in orphaned)
            found = _Found(run, versions.take(run.id), issues.take(run.id), [each.take(run.id) for each in events])
            if run.seal_id is None or run.seal_id > self._since:
                yield from self._compare_run(connection, found, was_pruned=run.id in pruned)
        for each in (versions, issues, *events):
            if each.passed_over(_HIGHEST + 1):
                yield each.finding()

    def _compare_run(self, connection: Connection, found: _Found, *, was_pruned: bool) -> Iterator[Finding]:
        run = found.run
        try:
            if run.status == "running":
                self._require_unsealed(found)
            else:
                _require_scope(run.scope)
                self._require_sealed(found, self._scopes.targets_of(connection, run.scope), was_pruned=was_pruned)
        except Broken as broken:
            yield broken.of_run(run.id, run.seal_id)
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            yield Broken("sync_run", Verbatim("readable"), Verbatim(f"not: {error}")).of_run(run.id, run.seal_id)

    def _require_unsealed(self, found: _Found) -> None:
        self._sealing.unsealed_runs += 1
        self._sealing.unsealed_versions += sum(1 for _ in found.versions)
        for name in ("finished_at", "seal_id"):
            if getattr(found.run, name) is not None:
                place = "run_seal" if name == "seal_id" else f"sync_run.{name}"
                raise Broken(place, Verbatim("null, since the run has not ended"), getattr(found.run, name))

    def _require_sealed(self, found: _Found, asked: ScopeTargets, *, was_pruned: bool) -> None:
        run = found.run
        if run.seal_id is None:
            raise Broken("run_seal", Verbatim("a seal, since the run has ended"), Verbatim("missing"))
        if run.closed_at is None:
            raise Broken("sync_run.closed_at", Verbatim("a time, since the run has ended"), None)
        require("sync_run.targets_digest", asked.digest, run.targets_digest)
        require("run_seal.targets_digest", asked.digest, run.sealed_targets)
        sums = _Sums(run, asked)
        issues = seal.digest_of(map(sums.issue, found.issues))
        versions = seal.digest_of(map(sums.version, found.versions))
        sums.require(was_pruned=was_pruned)
        require("run_seal.change_sets_digest", versions, run.sealed_change_sets)
        if not was_pruned:
            require("run_seal.issues_digest", issues, run.sealed_issues)
        events = seal.digest_of_lists(map(_event, rows) for rows in found.events)
        require("run_seal.events_digest", events, run.sealed_events)


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
        """The rows of a run; read them before taking those of the next one."""
        if self._run_id != run_id:
            return iter(())
        self._is_taken = True
        return self._rows

    def passed_over(self, run_id: int) -> bool:
        """Whether there are rows of a missing run before this one; ``finding`` is about the last of these."""
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
    """Adds up the rows of a run, one after the other, checks their places, and returns their bytes."""

    def __init__(self, run: Row[Any], asked: ScopeTargets) -> None:
        self._run = run
        self._asked = asked
        self._with_issue = set[int]()
        self._counts: Counter[str] = Counter()

    def issue(self, row: Row[Any]) -> bytes:
        """Add an issue; the issues of a run come before its versions."""
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
        """Raise Broken unless these are the run's sums; unchanged targets left no row, and are the rest."""
        run = self._run
        if was_pruned:
            require("sync_issue", 0, len(self._with_issue))
        by_issues = () if was_pruned else ("changed", "held", "failed", "stale")
        for name in (*by_issues, *CHANGE_KINDS):
            require(f"sync_run.{name}", self._counts[name], getattr(run, name))
        others = run.changed + run.held + run.failed + run.stale
        require("sync_run.unchanged", 0 if run.status == "aborted" else run.targets - others, run.unchanged)
        if run.status != "aborted":
            unsuccessful = run.failed + run.held
            status = "succeeded" if not unsuccessful else "failed" if run.failed == run.targets else "partial"
            require("sync_run.status", status, run.status)

    def _require_asked(self, table: str, row: Row[Any], version: int | None) -> None:
        if row.target_id not in self._asked.target_ids:
            none = Verbatim("a run that was to ask this target")
            raise Broken(f"{table}.run_id", none, self._run.id, version, _target(row))


def _require_scope(scope: str) -> None:
    """Raise Broken unless a scope is written as runs write it: other readers might take another one for something
    else, as if a key is in it twice."""
    read = json.loads(scope)
    number = read.get("membership_id") if isinstance(read, dict) else None
    if type(number) is not int or tuple(read) not in _SCOPES or encode(read).decode() != scope:
        keys = " or ".join(", ".join(each) for each in _SCOPES)
        raise Broken("sync_run.scope", Verbatim(f"an object with {keys}, as runs write it"), scope)


def _target(row: Row[Any]) -> Target:
    return Target(row.org_id, row.user_id, row.expression)


def _event(row: Row[Any]) -> bytes:
    values: list[Any] = list(row[1:])
    for place, name in enumerate(row._fields[1:]):
        if name in _ARRAYS:
            text, values[place] = values[place], json.loads(values[place])
            if encode(values[place]).decode() != text:
                told = Verbatim("an array, as runs write it")
                raise Broken(f"hold_event.{name}", told, text, target=_target(row))
        if name in _FLAGS:
            if values[place] not in (0, 1, None):
                raise Broken(f"{_FLAGS[name]}.{name}", Verbatim("0, 1 or null"), values[place])
            values[place] = None if values[place] is None else bool(values[place])
    return seal.encoded_event(values)
