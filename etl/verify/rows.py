"""The tables as streams of plain rows in the order of their targets: one pass, in constant memory."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from importlib.resources import files
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast

import msgspec
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    Executable,
    Select,
    Table,
    TextClause,
    TextualSelect,
    bindparam,
    select,
    text,
    union,
)
from sqlalchemy import Row as SqlRow
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from etl.database import any_time, reading
from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import Change, Span, Target
from etl.errors import DatabaseError
from etl.schema import (
    UtcTime,
    change_set,
    observation,
    run_seal,
    sync_issue,
    sync_run,
    target,
    time_of_text,
    workflow,
    workflow_change,
)

T = TypeVar("T")
Row = Sequence[Any]
BEFORE_ALL: Final = -(2**63)
_AT_ONCE: Final = 2000
_NAIVE_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - PostgreSQL is asked for times without a zone, in UTC
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_FLAGS: Final[dict[Any, bool]] = {0: False, 1: True}
_BOOLEANS: Final[dict[Any, bool | None]] = {**_FLAGS, None: None}


class TargetRow(NamedTuple):
    """A row of ``target``, without columns that cannot be checked."""

    id: int
    target: Target
    version: int
    fence: int
    observation_id: int | None
    answer_digest: str | None
    data_hash: str | None
    state_digest: str | None
    flow_count: int
    consecutive_failures: int
    last_error_code: str | None
    last_error: str | None
    held_since: dt.datetime | None


class ChangeSetRow(msgspec.Struct, frozen=True, gc=False):
    """A row of ``change_set``, without its run."""

    target_id: int
    version: int
    id: int
    kind: str
    observed_at: dt.datetime
    last_unchanged_at: dt.datetime | None
    asked_at: dt.datetime
    last_arrived_at: dt.datetime | None
    held_asked_at: dt.datetime | None
    held_at: dt.datetime | None
    flow_count: int
    state_digest: str
    counts: list[int]
    """In the order of CHANGE_KINDS."""
    approved_by: str | None
    approved_scope: str | None
    data_hash: str
    format: int
    parent_hash: str
    hash: str


class SpanRow(msgspec.Struct, frozen=True, gc=False):
    """A row of ``observation``."""

    id: int
    version: int
    span: Span


class WorkflowRow(NamedTuple):
    """A row of ``workflow``."""

    flow_id: str
    flow_name: str | None
    cycle: str | None
    editable: bool | None
    first_listed_at: dt.datetime | None
    changed_at: dt.datetime | None
    missing_since: dt.datetime | None
    doubted: str | None


class _Stored(FunctionElement[Any]):
    """A column as the driver returns it: what its type does not allow is found where its target is looked at."""

    type = NullType()
    inherit_cache = True


@compiles(_Stored)
def _as_it_is(stored: _Stored, compiler: Any, **options: Any) -> Any:
    return compiler.process(stored.clauses, **options)


@compiles(_Stored, "postgresql")
def _without_zone(stored: _Stored, compiler: Any, **options: Any) -> Any:
    """A time without a zone is read faster; one that no datetime can represent becomes a day that no trail has."""
    column = compiler.process(stored.clauses, **options)
    if not isinstance(next(iter(stored.clauses)).type, UtcTime):
        return column
    possible = f"{column} BETWEEN '0001-01-02T00:00Z' AND '9999-12-30T00:00Z'"
    return f"CASE WHEN NOT {possible} THEN '9999-12-31' ELSE {column} AT TIME ZONE 'UTC' END"


def _stored(of: Table, names: str) -> Iterator[ColumnElement[Any]]:
    return (_Stored(of.c[name]).label(None) for name in names.split())


def _of_targets(table: Table, names: str, *order: Column[Any]) -> Select[Any]:
    """These columns of a table, after the target's id, in the order of the targets above ``after``."""
    query = select(target.c.id, *_stored(table, names)).where(target.c.id > bindparam("after"))
    joined = query if table is target else query.join_from(target, table, table.c.target_id == target.c.id)
    return joined.order_by(target.c.id, *order)


_TARGETS: Final = _of_targets(
    target,
    "org_id user_id expression version fence observation_id answer_digest data_hash state_digest flow_count "
    "consecutive_failures last_error_code last_error held_since",
)
_CHANGE_SETS: Final = _of_targets(
    change_set,
    "version id kind observed_at last_unchanged_at asked_at last_arrived_at held_asked_at held_at flow_count "
    f"state_digest {' '.join(CHANGE_KINDS)} approved_by approved_scope data_hash format parent_hash hash",
    change_set.c.version,
)
_CHANGES: Final = (
    _of_targets(change_set, "version", change_set.c.version)
    .add_columns(*_stored(workflow_change, " ".join(Change.__struct_fields__)))
    .join(workflow_change, workflow_change.c.change_set_id == change_set.c.id)
)
_SPANS: Final = _of_targets(
    observation, f"version id {' '.join(Span.__struct_fields__)}", observation.c.version, observation.c.id
)
_WORKFLOWS: Final = _of_targets(workflow, " ".join(WorkflowRow._fields))
TOUCHED: Final = union(
    select(change_set.c.target_id)
    .join(run_seal, run_seal.c.run_id == change_set.c.run_id)
    .where(run_seal.c.id > bindparam("since")),
    select(change_set.c.target_id)
    .join(sync_run, sync_run.c.id == change_set.c.run_id)
    .where(sync_run.c.status == "running"),
)
"""The targets with a version from a run that was sealed after a seal, or has none yet."""
_LAST_HOLD: Final = (
    select(sync_issue.c.missing)
    .where(sync_issue.c.target_id == bindparam("target_id"), sync_issue.c.verdict == "held")
    .order_by(sync_issue.c.id.desc())
    .limit(1)
)


def pages(
    engine: Engine,
    query: Select[Any] | TextualSelect,
    key: Column[Any] | str,
    gather: Callable[[Connection, Sequence[SqlRow[Any]]], Iterable[T]],
    *,
    at_once: int,
    after: Any = BEFORE_ALL,
    tolerant: bool = False,
) -> Iterator[T]:
    """Read ``query`` in the order of ``key``, ``at_once`` rows at a time; yield what ``gather`` makes of each part.

    Each part is read and gathered in a transaction of its own, which has ended when its results are yielded: a reader
    of SQLite keeps writers waiting. A part with fewer rows is the last one; it may have none.
    A statement of a file does the paging itself: it has ``:after`` and ``:at_once``.
    ``after``: None if any key may be there, even an empty one.
    ``tolerant``: a time that no datetime can represent is read as ``any_time`` does, and what cannot be read raises
    ValueError; else both raise DatabaseError.
    """
    first: Executable = query
    following: Executable = query
    if isinstance(query, Select):
        first = query.order_by(key).limit(at_once)
        following = first.where(cast("Column[Any]", key) > bindparam("after"))
    read, more = _all if tolerant else rows_of, True
    while more:
        found: list[T] = []
        try:
            with reading(engine) as connection, any_time(connection) if tolerant else nullcontext():
                rows = (
                    read(connection, first)
                    if after is None
                    else read(connection, following, after=after, at_once=at_once)
                )
                more, after = len(rows) == at_once, rows[-1]._mapping[key] if rows else after
                found.extend(gather(connection, rows))
        finally:
            yield from found  # also what was found before something that cannot be read


def statements(name: str) -> dict[str, TextClause]:
    """The statements of a file beside this module, by the word in the comment before each."""
    written = re.split(r"^-- (\w+):.*\n", (files("etl.verify") / f"{name}.sql").read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(written[1::2], map(text, written[2::2]), strict=True))


def as_read(_: Connection, rows: Sequence[SqlRow[Any]]) -> Sequence[SqlRow[Any]]:
    """For ``pages``: the rows themselves."""
    return rows


def by_target(connection: Connection, query: Executable, **within: int) -> dict[int, list[SqlRow[Any]]]:
    """The rows of some targets, whose ids are the first column and the order, by these ids."""
    rows = connection.execute(query, within)
    return {number: list(group) for number, group in groupby(rows, itemgetter(0))}


def rows_of(connection: Connection, statement: Executable, **values: Any) -> Sequence[SqlRow[Any]]:
    """All rows of ``statement``. Raises DatabaseError if a value cannot be read."""
    try:
        return _all(connection, statement, **values)
    except ValueError as error:
        raise DatabaseError(f"The database holds what cannot be read ({error}): run `flowtrail verify`.") from error


def _all(connection: Connection, statement: Executable, **values: Any) -> Sequence[SqlRow[Any]]:
    return connection.execute(statement, values).all()


class Stream(Generic[T]):
    """Rows in the order of a key. Skipped rows are not converted."""

    def __init__(self, rows: Iterable[Any], key: Callable[[Any], Any], make: Callable[[Any], T]) -> None:
        self._groups = groupby(rows, key)
        self._make = make
        self._skipped: Any = None
        self._advance()

    def take(self, key: Any) -> Iterator[T]:
        """The rows of ``key``, which must be above the key taken before; read them before those of another key."""
        self._skip_to(key)
        if self._key != key:
            return iter(())
        self._is_taken = True
        return map(self._make, self._rows)

    def skipped(self, key: Any) -> Any:
        """Skip the rows below ``key``; return the last key whose rows nobody took since the last call, if any."""
        self._skip_to(key)
        skipped, self._skipped = self._skipped, None
        return skipped

    def _skip_to(self, key: Any) -> None:
        while self._key is not None and self._key < key:
            if not self._is_taken:
                self._skipped = self._key
            self._advance()

    def _advance(self) -> None:
        self._is_taken = False
        self._key: Any
        self._rows: Iterator[Any]
        self._key, self._rows = next(self._groups, (None, iter(())))


class Rows:
    """Everything about the targets above an id, from one moment."""

    def __init__(self, connection: Connection, after: int, since: int, opened: ExitStack) -> None:
        self.connection = connection
        """For queries of single checks."""
        self._after = after
        self._since = since
        self._opened = opened
        self.time = time_of_text if connection.dialect.name == "sqlite" else _time_of_postgresql
        by_target, by_version = itemgetter(0), itemgetter(0, 1)
        self.targets = self._query(_TARGETS)
        self.change_sets = Stream(self._query(_CHANGE_SETS), by_target, self._change_set)
        self.changes = Stream(self._query(_CHANGES), by_version, _unconverted_change)
        self.spans = Stream(self._query(_SPANS), by_version, self._span)
        self.workflows = Stream(self._query(_WORKFLOWS), by_target, self._workflow)

    def changes_of(self, target_id: int, version: int) -> list[Change]:
        """The changes of a change set, in no order."""
        return msgspec.convert(list(self.changes.take((target_id, version))), list[Change])

    def last_hold(self, target_id: int) -> int | None:
        """How many workflows were missing at the latest hold of a target; None if no issue says."""
        missing: int | None = self.connection.execute(_LAST_HOLD, {"target_id": target_id}).scalar()
        return missing

    def target(self, row: Row) -> TargetRow:
        number, org_id, user_id, expression, *rest, held_since = row
        return TargetRow._make((number, Target(org_id, user_id, expression), *rest, self.time(held_since)))

    def _query(self, query: Select[Any]) -> Iterable[Row]:
        result = self.connection.execute(
            query.where(target.c.id.in_(TOUCHED)) if self._since else query,
            {"after": self._after, "since": self._since},
            execution_options={"stream_results": True, "yield_per": _AT_ONCE},
        )
        self._opened.callback(result.close)
        return result

    def _change_set(self, row: Row) -> ChangeSetRow:
        time, (observed_at, unchanged_at, asked_at, *others) = self.time, row[4:10]
        times = (_known(time(observed_at)), time(unchanged_at), _known(time(asked_at)), *map(time, others))
        values: list[Any] = [*row[:4], *times, *row[10:12], list(row[12:-6]), *row[-6:]]
        return ChangeSetRow(*values)

    def _span(self, row: Row) -> SpanRow:
        _, version, number, *times, observations, longest_gap_seconds, interrupted = row
        first_at, last_asked_at, last_at = map(_known, map(self.time, times))
        span = Span(first_at, last_asked_at, last_at, observations, longest_gap_seconds, _FLAGS[interrupted])
        return SpanRow(number, version, span)

    def _workflow(self, row: Row) -> WorkflowRow:
        _, flow_id, flow_name, cycle, editable, *times, doubted = row
        return WorkflowRow._make((flow_id, flow_name, cycle, _BOOLEANS[editable], *map(self.time, times), doubted))


@contextmanager
def opened(connection: Connection, after: int, *, since: int, any_bytes: bool) -> Iterator[Rows]:
    """The rows of the targets whose id is above ``after``; the transaction ends with the block.

    ``since``: only of targets that got a version from a run that was sealed after this seal, or has no seal yet.

    SQLite may contain texts that are not UTF-8; they end the reading unless ``any_bytes``.
    """
    with ExitStack() as stack:
        if any_bytes:
            _tolerate_broken_text(connection, stack)
        yield Rows(connection, after, since, stack)


def _tolerate_broken_text(connection: Connection, stack: ExitStack) -> None:
    """Read bytes that are not UTF-8 as lone surrogates, which no digest accepts. This costs a tenth of the speed."""
    driver: Any = connection.connection.driver_connection
    stack.callback(setattr, driver, "text_factory", driver.text_factory)
    driver.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")


def _time_of_postgresql(value: dt.datetime | None) -> dt.datetime | None:
    return None if value is None else _EPOCH + (value - _NAIVE_EPOCH)  # `replace` takes five times as long


def _known(time: dt.datetime | None) -> dt.datetime:
    if time is None:
        raise ValueError("a time is missing, or beyond what a calendar holds")
    return time


def _unconverted_change(row: Row) -> tuple[Any, ...]:
    """The fields of a Change, which are after the target and the version."""
    *texts, old_editable, new_editable = row[2:]
    return (*texts, _BOOLEANS[old_editable], _BOOLEANS[new_editable])
