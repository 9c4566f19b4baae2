"""The tables as streams of plain rows in the order of their targets: one pass, in constant memory."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast

import msgspec
from sqlalchemy import Connection, text

from etl.domain.kinds import CHANGE_KINDS
from etl.domain.model import Change, Span, Target
from etl.schema import time_of_text

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
    previous_at: dt.datetime | None
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


_TARGETS: Final = """
    SELECT t.id, t.org_id, t.user_id, t.expression, t.version, t.fence, t.observation_id, t.answer_digest,
           t.data_hash, t.state_digest, t.flow_count, t.consecutive_failures, t.last_error_code, t.last_error,
           @t.held_since
    FROM target t WHERE t.id > :after ORDER BY t.id
"""
_CHANGE_SETS: Final = f"""
    SELECT t.id, s.version, s.id, s.kind, @s.observed_at, @s.last_unchanged_at, @s.asked_at, @s.previous_at,
           @s.held_asked_at, @s.held_at, s.flow_count, s.state_digest,
           {", ".join(f"s.{kind}" for kind in CHANGE_KINDS)},
           s.approved_by, s.approved_scope, s.data_hash, s.format, s.parent_hash, s.hash
    FROM target t JOIN change_set s ON s.target_id = t.id
    WHERE t.id > :after ORDER BY t.id, s.version
"""  # noqa: S608 - the kinds are ours
_CHANGES: Final = """
    SELECT t.id, s.version, c.flow_id, c.kind, c.old_name, c.new_name, c.old_cycle, c.new_cycle,
           c.old_editable, c.new_editable
    FROM target t JOIN change_set s ON s.target_id = t.id JOIN workflow_change c ON c.change_set_id = s.id
    WHERE t.id > :after ORDER BY t.id, s.version
"""
_SPANS: Final = """
    SELECT t.id, o.version, o.id, @o.first_at, @o.last_asked_at, @o.last_at, o.observations,
           o.longest_gap_seconds, o.interrupted
    FROM target t JOIN observation o ON o.target_id = t.id
    WHERE t.id > :after ORDER BY t.id, o.version, o.id
"""
_WORKFLOWS: Final = """
    SELECT t.id, w.flow_id, w.flow_name, w.cycle, w.editable,
           @w.first_listed_at, @w.changed_at, @w.missing_since, w.doubted
    FROM target t JOIN workflow w ON w.target_id = t.id
    WHERE t.id > :after ORDER BY t.id
"""
TOUCHED: Final = """
    SELECT n.target_id FROM run_seal r, change_set n WHERE r.id > :since AND n.run_id = r.run_id
    UNION SELECT n.target_id FROM sync_run u, change_set n WHERE u.status = 'running' AND n.run_id = u.id
"""
"""The targets with a version from a run that was sealed after a seal, or has none yet."""
_LAST_HOLD: Final = """
    SELECT missing FROM sync_issue WHERE target_id = :target_id AND verdict = 'held' ORDER BY id DESC LIMIT 1
"""

_TIME_IN_UTC: Final = r"""
    CASE WHEN \1 NOT BETWEEN '0001-01-02T00:00Z' AND '9999-12-30T00:00Z' THEN '9999-12-31'
    ELSE \1 AT TIME ZONE 'UTC' END
"""
"""A time that no datetime can represent becomes a day that no trail has."""


class Stream(Generic[T]):
    """Rows in the order of a key, which is in their first columns. Skipped rows are not converted."""

    _key: Any
    _rows: Iterator[Row]

    def __init__(self, rows: Iterable[Row], key: Callable[[Row], Any], make: Callable[[Row], T]) -> None:
        self._groups = groupby(rows, key)
        self._make = make
        self._passed: Any = None
        self._advance()

    def take(self, key: Any) -> Iterator[T]:
        """The rows of ``key``, which must be above the key taken before."""
        if self._reach(key):
            yield from map(self._make, self._rows)
            self._advance()

    def take_all(self, key: Any) -> list[T]:
        """As ``take``, at once: for keys with few rows."""
        if not self._reach(key):
            return []
        rows = [self._make(row) for row in self._rows]
        self._advance()
        return rows

    def left_over(self, target_id: int) -> Any:
        """Skip the remaining rows of a target; return the last of their keys, if any."""
        while self._key is not None and self._key[0] <= target_id:
            self._passed = self._key
            self._advance()
        return self._passed if self._passed is not None and self._passed[0] == target_id else None

    def _reach(self, key: Any) -> bool:
        while self._key is not None and self._key < key:
            self._passed = self._key
            self._advance()
        return bool(self._key == key)

    def _advance(self) -> None:
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
        return msgspec.convert(self.changes.take_all((target_id, version)), list[Change])

    def last_hold(self, target_id: int) -> int | None:
        """How many workflows were missing at the latest hold of a target; None if no issue says."""
        missing: int | None = self.connection.execute(text(_LAST_HOLD), {"target_id": target_id}).scalar()
        return missing

    def target(self, row: Row) -> TargetRow:
        number, org_id, user_id, expression, *rest, held_since = row
        return TargetRow._make((number, Target(org_id, user_id, expression), *rest, self.time(held_since)))

    def _query(self, statement: str) -> Iterable[Row]:
        result = self.connection.execute(
            text(_in_dialect(_of_those(statement, self._since), self.connection.dialect.name)),
            {"after": self._after} | ({"since": self._since} if self._since else {}),
            execution_options={"stream_results": True, "yield_per": _AT_ONCE},
        )
        self._opened.callback(result.close)
        return result

    def _change_set(self, row: Row) -> ChangeSetRow:
        (target_id, version, number, kind, observed_at, last_unchanged_at, asked_at, previous_at, held_asked_at,
         held_at, flow_count, state_digest, *counts,
         approved_by, approved_scope, data_hash, chain_format, parent_hash, own_hash) = row  # fmt: skip
        return ChangeSetRow(
            target_id,
            version,
            number,
            kind,
            _known(self.time(observed_at)),
            self.time(last_unchanged_at),
            _known(self.time(asked_at)),
            self.time(previous_at),
            self.time(held_asked_at),
            self.time(held_at),
            flow_count,
            state_digest,
            counts,
            approved_by,
            approved_scope,
            data_hash,
            chain_format,
            parent_hash,
            own_hash,
        )

    def _span(self, row: Row) -> SpanRow:
        _, version, number, first_at, last_asked_at, last_at, observations, longest_gap_seconds, interrupted = row
        span = Span(
            _known(self.time(first_at)),
            _known(self.time(last_asked_at)),
            _known(self.time(last_at)),
            observations,
            longest_gap_seconds,
            _FLAGS[interrupted],
        )
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


@contextmanager
def any_time(connection: Connection) -> Iterator[None]:
    """On PostgreSQL, read a time that no datetime can represent as the last day of the calendar, not as an error."""
    if connection.dialect.name == "sqlite":
        yield
        return
    adapters = cast("Any", connection.connection.driver_connection).adapters
    usual = adapters.get_loader(_TIMESTAMPTZ, 0)

    class Tolerant:
        """Wraps the driver's own, which cannot be subclassed when it is compiled."""

        format = usual.format

        def __init__(self, oid: int, context: Any = None) -> None:
            self._usual = usual(oid, context)

        def load(self, data: Any) -> dt.datetime:
            try:
                return cast("dt.datetime", self._usual.load(data))
            except Exception as error:  # psycopg.DataError, which only the driver's owner may import
                if "timestamp too" not in str(error):
                    raise
                return _LAST_DAY

    adapters.register_loader(_TIMESTAMPTZ, Tolerant)
    try:
        yield
    finally:
        adapters.register_loader(_TIMESTAMPTZ, usual)


_TIMESTAMPTZ: Final = 1184
"""Its oid."""
_LAST_DAY: Final = dt.datetime(9999, 12, 31, tzinfo=dt.UTC)


def _tolerate_broken_text(connection: Connection, stack: ExitStack) -> None:
    """Read bytes that are not UTF-8 as lone surrogates, which no digest accepts. This costs a tenth of the speed."""
    driver: Any = connection.connection.driver_connection
    stack.callback(setattr, driver, "text_factory", driver.text_factory)
    driver.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")


def _of_those(statement: str, since: int) -> str:
    return statement.replace("t.id > :after", f"t.id > :after AND t.id IN ({TOUCHED})") if since else statement


def _in_dialect(statement: str, dialect: str) -> str:
    """``@column`` is a time. Tells SQLite the order of joins, and limits PostgreSQL's times to what a datetime can
    hold."""
    if dialect == "sqlite":
        return statement.replace("@", "").replace(" JOIN ", " CROSS JOIN ")
    return re.sub(r"@([a-z_.]+)", _TIME_IN_UTC, statement)


def _time_of_postgresql(value: dt.datetime | None) -> dt.datetime | None:
    return None if value is None else _EPOCH + (value - _NAIVE_EPOCH)  # `replace` takes five times as long


def _known(time: dt.datetime | None) -> dt.datetime:
    if time is None:
        raise ValueError("a time is missing, or beyond what a calendar holds")
    return time


def _unconverted_change(row: Row) -> tuple[Any, ...]:
    _, _, flow_id, kind, old_name, new_name, old_cycle, new_cycle, old_editable, new_editable = row
    return (
        flow_id,
        kind,
        old_name,
        new_name,
        old_cycle,
        new_cycle,
        _BOOLEANS[old_editable],
        _BOOLEANS[new_editable],
    )
