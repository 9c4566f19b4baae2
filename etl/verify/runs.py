"""Goes through all runs together with everything that names one: versions, issues, memberships, holds, pruned
issues."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from operator import itemgetter
from typing import Any, Final

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
    metadata,
    pruned_issues,
    run_seal,
    sync_issue,
    sync_run,
    target,
)
from etl.verify.finding import Broken, Finding, Verbatim, require
from etl.verify.rows import BEFORE_ALL, Stream, pages

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


def _by_run(table: Table, names: Iterable[str], *order: Column[Any]) -> Select[Any]:
    """The rows that name the runs from ``low`` to ``high``, by these, which are in the first column, and by ``order``.

    Columns that the table does not have are those of its target.
    """
    columns = (_as_stored(table.c[name] if name in table.c else target.c[name]) for name in names)
    query = select(table.c.run_id.label("of_run"), *columns)
    if "target_id" in table.c:
        query = query.join_from(table, target, target.c.id == table.c.target_id)
    within = table.c.run_id.between(bindparam("low"), bindparam("high"))
    return query.where(within).order_by(table.c.run_id, *order)


_NAME_A_RUN: Final = (
    _by_run(
        change_set,
        ("target_id", *Target._fields, "version", "observed_at", "hash", *CHANGE_KINDS),
        *(*TARGET_KEY, change_set.c.version),
    ),
    _by_run(sync_issue, ("target_id", *seal.ISSUE), *TARGET_KEY, sync_issue.c.id),
    *(
        _by_run(metadata.tables[name], columns, *metadata.tables[name].primary_key)
        for name, columns in seal.EVENTS.items()
    ),
)
"""Versions, issues, and the events in the order of the rules."""
_WERE_PRUNED: Final = (
    select(pruned_issues.c.pruned_run_id)
    .distinct()
    .where(pruned_issues.c.pruned_run_id.between(bindparam("low"), bindparam("high")))
)
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


def compare_runs(engine: Engine, since: int, sealing: Sealing) -> Iterator[Finding]:
    """Go through all runs together with what names them; compare those that seals after number ``since`` seal."""
    low, scopes = BEFORE_ALL, Scopes()

    def compare(connection: Connection, runs: Sequence[Row[Any]]) -> Iterator[Finding]:
        nonlocal low
        high = runs[-1].id if len(runs) == _RUNS_AT_ONCE else _HIGHEST
        span = {"low": low, "high": high}
        with ExitStack() as opened:
            pruned = set(connection.execute(_WERE_PRUNED, span).scalars())
            streams = [_by_id_of_run(connection, opened, query, span) for query in _NAME_A_RUN]
            for run in runs:
                yield from _of_missing_runs(streams, run.id)
                versions, issues, *events = (each.take(run.id) for each in streams)
                if run.seal_id is not None and run.seal_id <= since:
                    continue
                try:
                    if run.status == "running":
                        _require_unsealed(run, versions, sealing)
                    else:
                        _require_scope(run.scope)
                        sums = _Sums(run, scopes.targets_of(connection, run.scope), was_pruned=run.id in pruned)
                        _require_sealed(sums, versions, issues, events)
                except Broken as broken:
                    yield broken.of(run_id=run.id, seal_id=run.seal_id)
                except (ValueError, LookupError, TypeError, OverflowError) as error:
                    unreadable = Broken("sync_run", Verbatim("readable"), Verbatim(f"not: {error}"))
                    yield unreadable.of(run_id=run.id, seal_id=run.seal_id)
            yield from _of_missing_runs(streams, _HIGHEST + 1)
        low = high + 1

    return pages(engine, _RUNS, sync_run.c.id, compare, at_once=_RUNS_AT_ONCE, tolerant=True)


def _by_id_of_run(
    connection: Connection, opened: ExitStack, query: Select[Any], span: dict[str, int]
) -> Stream[Row[Any]]:
    found = connection.execute(query, span, execution_options=STREAMED)
    opened.callback(found.close)
    return Stream(found, itemgetter(0), lambda row: row)


def _of_missing_runs(streams: Sequence[Stream[Row[Any]]], before: int) -> Iterator[Finding]:
    """A finding for each stream with rows of runs that are not there, about the last such run before this one."""
    for run_id in [each.skipped(before) for each in streams]:
        if run_id is not None:
            nothing = f"without rows of run {run_id}, which does not exist"
            yield Finding(run_id=run_id, what="run_id", expected=nothing, found="with some")


def _require_unsealed(run: Row[Any], versions: Iterable[Row[Any]], sealing: Sealing) -> None:
    sealing.unsealed_runs += 1
    sealing.unsealed_versions += sum(1 for _ in versions)
    for name in ("finished_at", "seal_id"):
        if getattr(run, name) is not None:
            place = "run_seal" if name == "seal_id" else f"sync_run.{name}"
            raise Broken(place, Verbatim("null, since the run has not ended"), getattr(run, name))


def _require_sealed(
    sums: _Sums, versions: Iterable[Row[Any]], issues: Iterable[Row[Any]], events: Iterable[Iterable[Row[Any]]]
) -> None:
    run, asked = sums.run, sums.asked
    if run.seal_id is None:
        raise Broken("run_seal", Verbatim("a seal, since the run has ended"), Verbatim("missing"))
    if run.closed_at is None:
        raise Broken("sync_run.closed_at", Verbatim("a time, since the run has ended"), None)
    require("sync_run.targets_digest", asked.digest, run.targets_digest)
    require("run_seal.targets_digest", asked.digest, run.sealed_targets)
    of_issues = seal.digest_of(map(sums.issue, issues))
    of_versions = seal.digest_of(map(sums.version, versions))
    sums.require()
    require("run_seal.change_sets_digest", of_versions, run.sealed_change_sets)
    if not sums.was_pruned:
        require("run_seal.issues_digest", of_issues, run.sealed_issues)
    of_events = seal.digest_of_lists(map(_event, rows) for rows in events)
    require("run_seal.events_digest", of_events, run.sealed_events)


class _Sums:
    """Adds up the rows of a run, one after the other, checks their places, and returns their bytes."""

    def __init__(self, run: Row[Any], asked: ScopeTargets, *, was_pruned: bool) -> None:
        self.run = run
        self.asked = asked
        self.was_pruned = was_pruned
        """Whether its issues were deleted when their time had come."""
        self._with_issue = set[int]()
        self._counts: Counter[str] = Counter()

    def issue(self, row: Row[Any]) -> bytes:
        """Add an issue; the issues of a run come before its versions."""
        self._require_asked("sync_issue", row, None)
        self._with_issue.add(row.target_id)
        self._counts[row.verdict] += 1
        return encode(list(row)[2:])

    def version(self, row: Row[Any]) -> bytes:
        run = self.run
        if not run.started_at <= row.observed_at <= run.finished_at:
            within = Verbatim(f"in the time of its run, {run.started_at} to {run.finished_at}")
            raise Broken("change_set.observed_at", within, row.observed_at, row.version, _target(row))
        self._require_asked("change_set", row, row.version)
        self._counts["changed"] += row.target_id not in self._with_issue
        for kind in CHANGE_KINDS:
            self._counts[kind] += getattr(row, kind)
        return encode(row.hash)

    def require(self) -> None:
        """Raise Broken unless these are the run's sums; unchanged targets left no row, and are the rest."""
        run = self.run
        if self.was_pruned:
            require("sync_issue", 0, len(self._with_issue))
        by_issues = () if self.was_pruned else ("changed", "held", "failed", "stale")
        for name in (*by_issues, *CHANGE_KINDS):
            require(f"sync_run.{name}", self._counts[name], getattr(run, name))
        others = run.changed + run.held + run.failed + run.stale
        require("sync_run.unchanged", 0 if run.status == "aborted" else run.targets - others, run.unchanged)
        if run.status != "aborted":
            unsuccessful = run.failed + run.held
            status = "succeeded" if not unsuccessful else "failed" if run.failed == run.targets else "partial"
            require("sync_run.status", status, run.status)

    def _require_asked(self, table: str, row: Row[Any], version: int | None) -> None:
        if row.target_id not in self.asked.target_ids:
            none = Verbatim("a run that was to ask this target")
            raise Broken(f"{table}.run_id", none, self.run.id, version, _target(row))


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
                wanted = Verbatim("an array, as runs write it")
                raise Broken(f"hold_event.{name}", wanted, text, target=_target(row))
        if name in _FLAGS:
            if values[place] not in (0, 1, None):
                raise Broken(f"{_FLAGS[name]}.{name}", Verbatim("0, 1 or null"), values[place])
            values[place] = None if values[place] is None else bool(values[place])
    return seal.encoded_row(values)
